"""Plots of a finished run, by task: ROC curves, Kaplan-Meier curves, confusion of grades, scatter of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.tasks.multilabel import Multilabel, sigmoid
from longvit.tasks.ordinal import Ordinal, grade_probabilities
from longvit.tasks.regression import Regression
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
    """Draws the task's plots into `folder`: roc.png, kaplan_meier_<split>.png, confusion_<split>.png or scatter.png.

    A task of another kind has none.

    `intervals`: split -> metric -> interval. `controls`: control -> split -> metric -> value.
    """
    if isinstance(task, Subtyping):
        _draw_roc(folder, task, predictions, intervals, controls)
    elif isinstance(task, Survival):
        _draw_kaplan_meier(folder, task, predictions)
    elif isinstance(task, Regression):
        from longvit.plots.regression import scatter_plot

        parts = {split: (task.values(p.rows), task.predicted(p.logits)) for split, p in predictions.items()}
        scatter_plot(parts, folder / "scatter.png", unit=task.column)
    elif isinstance(task, Ordinal):
        from longvit.plots.classification import confusion_plot

        for split, p in predictions.items():
            labels = task.targets(p.rows)["label"]
            confusion_plot(labels, grade_probabilities(p.logits), task.grades, folder / f"confusion_{split}.png")
    elif isinstance(task, Multilabel):
        from longvit.plots.multilabel import label_roc_plot

        split, p = list(predictions.items())[-1]
        label_roc_plot({split: (task.labels(p.rows), sigmoid(p.logits))}, task.columns, folder / "roc.png")


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
