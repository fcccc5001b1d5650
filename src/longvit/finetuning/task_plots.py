"""Plots of a finished run, by task: ROC curves (subtyping), Kaplan-Meier curves (survival)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.tasks.subtyping import Subtyping, softmax
from longvit.tasks.survival import Survival
from longvit.tasks.task import Predictions, Task

if TYPE_CHECKING:
    from longvit.metrics.classification import Interval


@dataclass(frozen=True)
class Probabilities:
    """Labels and class probabilities from which curves are drawn."""

    labels: np.ndarray
    """True class, int64 (N,)."""
    probabilities: np.ndarray
    """float64 (N, classes); a row sums to 1."""


def draw_task_plots(
    folder: Path,
    task: Task,
    predictions: Mapping[str, Predictions],
    intervals: Mapping[str, Mapping[str, Interval]],
    controls: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Draws the task's curves into `folder`: roc.png, or kaplan_meier_<split>.png; none for other tasks.

    `intervals`: split -> metric -> interval. `controls`: control -> split -> metric -> value.
    """
    if isinstance(task, Subtyping):
        _draw_roc(folder, task, predictions, intervals, controls)
    elif isinstance(task, Survival):
        _draw_kaplan_meier(folder, task, predictions)


def _draw_roc(
    folder: Path,
    task: Subtyping,
    predictions: Mapping[str, Predictions],
    intervals: Mapping[str, Mapping[str, Interval]],
    controls: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    from longvit.plots.classification import roc_plot

    last_split = list(predictions)[-1]
    roc_plot(
        {split: Probabilities(task.targets(p.rows)["label"], softmax(p.logits)) for split, p in predictions.items()},
        task.cohort.classes,
        folder / "roc.png",
        intervals={split: by_metric["auc"] for split, by_metric in intervals.items()},
        controls={name.replace("_", " "): by_split[last_split]["auc"] for name, by_split in controls.items()},
    )


def _draw_kaplan_meier(folder: Path, task: Survival, predictions: Mapping[str, Predictions]) -> None:
    from longvit.plots.survival import kaplan_meier_plot, risk_halves

    for split, p in predictions.items():
        if p.rows:
            rows, risk, _ = task.by_patient(p)
            months, event = task.times(rows)
            halves = risk_halves([""] * len(rows), [row.case_id for row in rows], risk)
            kaplan_meier_plot(months, event, halves, folder / f"kaplan_meier_{split}.png", title=split)
