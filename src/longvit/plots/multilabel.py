"""Multilabel plots: a ROC curve for each label column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from longvit.metrics.classification import auc
from longvit.plots.curves import ROC_GRID, roc_heights
from longvit.plots.style import GREY, blank, colour, legend_name, safe_plot, save, write_note


@safe_plot
def label_roc_plot(
    folds: Mapping[str, tuple[np.ndarray, np.ndarray]], columns: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """ROC curve of each label column over the slides that have its label; of several folds, the mean curve.

    `folds`: name -> labels (N, C), 1, 0 or NaN where there is none, and probabilities (N, C).
    """
    figure, axes = blank(4.9, 4.9 + 0.2 * len(columns))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    drawn = False
    for c, column in enumerate(columns):
        heights, areas = [], []
        for labels, probabilities in folds.values():
            rows = np.isfinite(labels[:, c])
            positive, score = labels[rows, c] == 1, probabilities[rows, c]
            if positive.any() and not positive.all():
                heights.append(roc_heights(positive, score))
                areas.append(auc(positive.astype(int), np.stack([1 - score, score], 1)))
        if heights:
            drawn = True
            label = f"{legend_name(column)}: AUC {np.mean(areas):.2f}"
            label += f" ± {np.std(areas, ddof=1):.2f} ({len(areas)} folds)" if len(areas) > 1 else ""
            axes.plot(ROC_GRID, np.mean(heights, 0), color=colour(c), linewidth=1.8, label=label, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="1 − specificity", ylabel="sensitivity", title=title)
    if drawn:
        axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    else:
        write_note(axes, "no label column with both classes:\nno curve")
    save(figure, path)
