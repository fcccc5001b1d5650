"""Plot of a site check: how well the site is predicted, against chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longvit.plots.style import GREY, blank, colour, safe_plot, save


@safe_plot
def site_prediction_plot(methods: Sequence[tuple[str, float, float, float, float]], path: Path) -> None:
    """Draws per method its name, balanced accuracy, both bounds of the interval, and chance."""
    figure, axes = blank(6.2, 1.1 + 0.5 * len(methods))
    for i, (_, accuracy, low, high, chance) in enumerate(methods):
        first = i == 0
        axes.plot([low, high], [i, i], color=colour(0), linewidth=2)
        axes.plot([accuracy], [i], "o", color=colour(0), label="balanced accuracy, 95 % interval" if first else None)
        axes.plot([chance], [i], "|", color=GREY, markersize=16, label="chance" if first else None)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(methods) + 0.2), xlabel="balanced accuracy of the predicted site")
    axes.set_yticks(range(len(methods)), [name for name, *_ in methods])
    axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
    save(figure, path)
