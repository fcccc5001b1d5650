"""Regression plots: predicted numbers against labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longvit.metrics.regression import regression_metrics
from longvit.plots.style import GREY, blank, colour, legend_name, safe_plot, save, write_note

_MOST_COLOURS = 6


@safe_plot
def scatter_plot(
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path, *, title: str = "", unit: str = "value"
) -> None:
    """Scatter of predictions against labels, on equal axes with the diagonal.

    `parts`: split or fold -> labels (N,) and predictions (N,). Up to six parts have a colour each.
    """
    figure, axes = blank(4.9, 4.9)
    points = [(name, truth, predicted) for name, (truth, predicted) in parts.items() if len(truth)]
    if not points:
        write_note(axes, "no slides")
        save(figure, path)
        return
    everything = np.concatenate([values for _, truth, predicted in points for values in (truth, predicted)])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.04 * (high - low) or 1.0
    axes.plot([low - margin, high + margin], [low - margin, high + margin], color=GREY, linewidth=0.8, linestyle=":")
    for i, (name, truth, predicted) in enumerate(points):
        metrics = regression_metrics(truth, predicted)
        label = f"{legend_name(name)}: R² {metrics['r2']:.2f}, MAE {metrics['mae']:.3g}"
        shade = colour(i) if len(points) <= _MOST_COLOURS else colour(0)
        axes.scatter(truth, predicted, s=16, color=shade, alpha=0.6, linewidth=0, label=label, clip_on=False)
    axes.set(
        xlim=(low - margin, high + margin),
        ylim=(low - margin, high + margin),
        aspect="equal",
        xlabel=f"label ({unit})",
        ylabel=f"predicted ({unit})",
        title=title,
    )
    if len(points) <= _MOST_COLOURS:
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    save(figure, path)
