"""Plots of an external validation: ROC on both cohorts, calibration, decision curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.plots.style import GREY, blank, colour, legend_name, safe_plot, save

_BINS = 8


@safe_plot
def cohort_roc_plot(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path) -> None:
    """ROC curve of each cohort: name -> labels (N,) 0 or 1 and probability (N,) of class 1."""
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = blank(4.6, 4.7)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for i, (name, (labels, p)) in enumerate(curves.items()):
        if len(np.unique(labels)) == 2:
            fpr, tpr, _ = roc_curve(labels, p)
            label = f"{legend_name(name)}: AUC {roc_auc_score(labels, p):.3f}"
            axes.plot(fpr, tpr, color=colour(i), linewidth=1.8, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="1 − specificity", ylabel="sensitivity")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    save(figure, path)


@safe_plot
def class_calibration_plot(
    labels: np.ndarray, probability: np.ndarray, path: str | Path, *, slope: float, intercept: float
) -> None:
    """Observed fraction of class 1 against its probability, in bins of equal size with Wilson's 95 % intervals.

    The line is the logistic calibration with this `slope` and `intercept`; none where they are NaN.
    """
    from longvit.metrics.calibration import recalibrated

    figure, (axes, below) = blank(4.8, 5.0, rows=2, heights=(5, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    order = np.argsort(probability, kind="stable")
    for rows in np.array_split(order, min(_BINS, max(1, len(order) // 5))):
        if len(rows):
            low, high = wilson(int(labels[rows].sum()), len(rows))
            x = probability[rows].mean()
            axes.plot([x, x], [low, high], color=colour(0), linewidth=1.2, alpha=0.6)
            axes.plot(x, labels[rows].mean(), marker="o", markersize=5, color=colour(0))
    if math.isfinite(slope) and math.isfinite(intercept):
        grid = np.linspace(0.001, 0.999, 300)
        axes.plot(grid, recalibrated(grid, intercept, slope), color=colour(1), linewidth=1.6, label="logistic fit")
        axes.legend(frameon=False, fontsize=8.5)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="observed fraction")
    edges = np.linspace(0, 1, 31)
    below.hist([probability[labels == 0], probability[labels == 1]], edges, stacked=True, color=[GREY, colour(0)])
    below.set(xlabel="predicted probability", ylabel="slides")
    save(figure, path)


@safe_plot
def decision_curve_plot(curve: Mapping[str, Sequence[float]], path: str | Path, *, threshold: float = math.nan) -> None:
    """Net benefit of the model, of acting on all and on none, against the threshold probability."""
    figure, axes = blank(5.2, 4.0)
    x = np.asarray(curve["threshold"], dtype=np.float64)
    model = np.array([math.nan if v is None else v for v in curve["model"]], dtype=np.float64)
    everyone = np.asarray(curve["all"], dtype=np.float64)
    axes.plot(x, everyone, color=colour(1), linewidth=1.2, linestyle="--", label="act on all")
    axes.plot(x, np.zeros_like(x), color=GREY, linewidth=1.2, linestyle=":", label="act on none")
    axes.plot(x, model, color=colour(0), linewidth=1.8, label="act on the model")
    if math.isfinite(threshold):
        axes.axvline(threshold, color=GREY, linewidth=0.8)
    top = max(0.05, float(np.nanmax(np.r_[model, everyone, 0.0])) * 1.1)
    axes.set(xlim=(0, 1), ylim=(-0.25 * top, top), xlabel="threshold probability", ylabel="net benefit")
    axes.legend(frameon=False, fontsize=8.5)
    save(figure, path)


@safe_plot
def survival_calibration_plot(entries: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Observed (Kaplan-Meier) against predicted survival in groups, a colour per time."""
    figure, axes = blank(4.8, 4.6)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for i, entry in enumerate(entries):
        groups = [g for g in entry["groups"] if g["observed"] is not None]
        for g in groups:
            if g["low"] is not None:
                axes.plot([g["predicted"]] * 2, [g["low"], g["high"]], color=colour(i), linewidth=1.0, alpha=0.5)
        axes.plot(
            [g["predicted"] for g in groups], [g["observed"] for g in groups],
            color=colour(i), marker="o", markersize=5, label=f"{entry['months']:.3g} months",
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="predicted survival", ylabel="observed survival")
    if entries:
        axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    save(figure, path)


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction."""
    z = 1.959963984540054
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    width = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - width), min(1.0, centre + width)
