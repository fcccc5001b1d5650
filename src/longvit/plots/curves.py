"""ROC and precision-recall curves over folds: folds as thin lines, their mean as a thick line, ± SD as a band.

The mean is taken over the curves' heights on a fixed grid (1 − specificity, recall), as in scikit-learn's example of
ROC with cross-validation. Between two thresholds a ROC curve is a straight line. A precision-recall curve is a
staircase (Davis and Goadrich 2006), so that the area under the mean curve is the mean of the average precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.metrics.classification import Interval, auc, average_precision
from longvit.plots.style import GREY, blank, colour, legend_name, safe_plot, save, write_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Fold = tuple[np.ndarray, np.ndarray]
"""Labels of a fold, int (N,), and its class probabilities, (N, C)."""

ROC_GRID = np.linspace(0, 1, 501)


@safe_plot
def roc_curves_plot(
    folds: Mapping[str, Fold],
    classes: Sequence[str],
    path: str | Path,
    *,
    interval: Interval | None = None,
    title: str = "",
) -> None:
    """ROC curves: of the second of two classes, or of each of more classes against the rest.

    `folds`: name -> labels and probabilities; one fold gives a plain curve. `interval`: of the AUC, for two classes.
    """
    figure, axes = blank(4.6, 4.7)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    _curves(axes, folds, classes, roc_heights, auc, "AUC", interval)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="1 − specificity", ylabel="sensitivity", title=title)
    save(figure, path)


@safe_plot
def pr_curves_plot(
    folds: Mapping[str, Fold],
    classes: Sequence[str],
    path: str | Path,
    *,
    interval: Interval | None = None,
    title: str = "",
) -> None:
    """Precision-recall curves, as `roc_curves_plot`; dotted: prevalence of the class, the level of chance."""
    figure, axes = blank(4.6, 4.7)
    labels = np.concatenate([np.zeros(0, np.int64), *(labels for labels, _ in folds.values())])
    for i, c in enumerate(_shown(classes)):
        if len(labels):
            axes.axhline((labels == c).mean(), color=colour(i) if len(classes) > 2 else GREY, linewidth=0.8, ls=":")
    _curves(axes, folds, classes, pr_heights, average_precision, "average precision", interval)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="recall", ylabel="precision", title=title)
    save(figure, path)


def roc_heights(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Sensitivity on a grid of 1 − specificity, 0 … 1 in 500 steps, from bool (N,) and float (N,)."""
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(positive, score, drop_intermediate=False)
    heights = np.interp(ROC_GRID, false_positive, true_positive)
    heights[0] = 0.0
    return heights


def pr_heights(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Precision on a grid of recall, 0 … 1: that of the first threshold that reaches the recall."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(positive, score)
    precision, recall = precision[:-1][::-1], recall[:-1][::-1]  # best score first, without the artificial last point
    first = np.searchsorted(recall, ROC_GRID - 1e-12, side="left")
    first[0] = 0
    return precision[first]


def _curves(
    axes: Axes,
    folds: Mapping[str, Fold],
    classes: Sequence[str],
    heights_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    area_of: Callable[[np.ndarray, np.ndarray], float],
    area: str,
    interval: Interval | None,
) -> None:
    drawn = False
    for i, c in enumerate(_shown(classes)):
        heights, areas = [], []
        for labels, probabilities in folds.values():
            positive = labels == c
            if positive.any() and not positive.all():
                score = probabilities[:, c]
                heights.append(heights_of(positive, score))
                areas.append(area_of(positive.astype(int), np.stack([-score, score], 1)))
        if not heights:
            continue
        drawn = True
        for fold in heights if len(heights) > 1 else []:
            axes.plot(ROC_GRID, fold, color=colour(i), linewidth=0.6, alpha=0.35 if len(classes) == 2 else 0.18)
        mean, spread = np.mean(heights, 0), np.std(heights, 0, ddof=len(heights) > 1)
        label = f"{legend_name(classes[c])}: {area} {np.mean(areas):.2f}"
        if len(heights) > 1:
            label += f" ± {np.std(areas, ddof=1):.2f} ({len(heights)} folds)"
            low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
            axes.fill_between(ROC_GRID, low, high, color=colour(i), alpha=0.15, linewidth=0)
        if interval is not None and len(classes) == 2 and np.isfinite(interval.low):
            label += f"\n(95 % interval {interval.low:.2f}–{interval.high:.2f})"
        axes.plot(ROC_GRID, mean, color=colour(i), linewidth=1.8, label=label, clip_on=False)
    if drawn:
        axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    else:
        write_note(axes, "no slides of two classes:\nno curve")


def _shown(classes: Sequence[str]) -> Sequence[int]:
    return [1] if len(classes) == 2 else range(len(classes))
