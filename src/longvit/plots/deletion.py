"""Plot of a deletion test: fall of the score against the fraction of patches replaced by background."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longvit.plots.style import GREY, blank, colour, legend_name, safe_plot, save

_LEVEL = (0.025, 0.975)
_RESAMPLES = 1000


@safe_plot
def deletion_plot(fractions: np.ndarray, falls: Mapping[str, np.ndarray], path: str | Path, *, unit: str) -> None:
    """Mean fall of the score over the slides in each order, with a 95 % bootstrap band over the slides.

    `fractions`: (F,). `falls`: order -> (slides, F); an order named random is grey. A single slide has no band.
    """
    figure, axes = blank(5.4, 3.8)
    for i, (name, values) in enumerate(falls.items()):
        drawn = GREY if name.startswith("random") else colour(i)
        axes.plot(100 * fractions, values.mean(0), color=drawn, marker=".", label=legend_name(name))
        if len(values) > 1:
            chosen = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
            low, high = np.quantile(values[chosen].mean(1), _LEVEL, axis=0)
            axes.fill_between(100 * fractions, low, high, color=drawn, alpha=0.2, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="patches replaced by background, %", ylabel=f"fall of the {unit}", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)
