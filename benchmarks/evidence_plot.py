"""Plot of `evidence.py`: a row per set of fields, a column per axis, a curve per system, extrapolations dotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.figure import new_figure, write_figure
from longvit.plots.style import COLOURS, GREY

EXTRAPOLATED_TO = 10
"""Multiple of the largest number of slides up to which a power law is drawn."""
LABELS = {
    "slides": "training slides",
    "pixels": "pixels of a slide's canvas",
    "epochs": "epochs",
    "parameters": "parameters",
}


def plot(
    curves: Mapping[tuple[str, str], Mapping[str, Sequence[Any]]],
    laws: Mapping[tuple[str, str], Mapping[str, Any]],
    path: Path,
) -> None:
    """Draws curves, (fields, axis) -> system -> points, and the power laws that fit.

    A system with a single point is a level: the axis does not change it. Controls are dashed.
    """
    names, axes_names = (list(dict.fromkeys(key[i] for key in curves)) for i in (0, 1))
    figure = new_figure(3.2 * len(axes_names) + 1.6, 2.8 * len(names))
    panels = figure.subplots(len(names), len(axes_names), squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for (fields, axis), by_system in curves.items():
        panel = panels[names.index(fields), axes_names.index(axis)]
        for i, (system, points) in enumerate(by_system.items()):
            style = {"color": COLOURS[i % len(COLOURS)] if i < len(COLOURS) else GREY}
            dashes = "-" if system.startswith("longvit") else "--"
            if len(points) == 1:
                handles[system] = panel.axhline(points[0].auc, linestyle=dashes, linewidth=1, label=system, **style)
            elif points:
                x, auc, sd = ([getattr(point, name) for point in points] for name in ("x", "auc", "sd"))
                handles[system] = panel.errorbar(x, auc, sd, marker="o", linestyle=dashes, label=system, **style)
                if law := laws.get((fields, axis), {}).get(system):
                    beyond = np.geomspace(x[-1], EXTRAPOLATED_TO * x[-1], 30)
                    panel.plot(beyond, law.auc(beyond), ":", **style)
        panel.axhline(0.5, color=GREY, linewidth=0.6)
        panel.set_xscale("log")
        ticks = sorted({point.x for points in by_system.values() if len(points) > 1 for point in points})
        panel.set_xticks(ticks, [_short(tick) for tick in ticks], fontsize=7)
        panel.minorticks_off()
        panel.set_xlabel(LABELS[axis])
        if axis == axes_names[0]:
            panel.set_ylabel(f"{fields}\nAUC, unseen source")
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside right center")
    figure.suptitle("mean ± SD over sources and seeds; dotted: fitted power law of 1 − AUC, extrapolated", fontsize=9)
    write_figure(figure, path, dpi=120)


def _short(number: float) -> str:
    """Number of three digits: 42.7, 65.5 k, 3.47 M."""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
