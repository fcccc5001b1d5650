"""Multilabel: several yes-or-no labels per slide, one output each; cross-entropy over the labels that are there.

A cell may be empty: the slide then trains and is judged on its other labels. The loss of a slide is the sum of the
cross-entropies of its labels, divided by the number of columns: every label of the cohort has the same weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.identity import class_name, first_places, refuse_clashes
from longvit.data.table import column_name
from longvit.errors import InputError
from longvit.metrics.classification import Interval
from longvit.tasks.label_cells import merged_strata, read_yes_or_no
from longvit.tasks.ordinal import binary_logits
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import Aggregate, OutputMeaning, Predictions, Task

if TYPE_CHECKING:
    import torch


class Multilabel(Task):
    """Multilabel: a probability for each label column."""

    name: ClassVar[str] = "multilabel"
    metric: ClassVar[str] = "auc"
    metric_label: ClassVar[str] = "macro AUC"
    loss_label: ClassVar[str] = "cross-entropy"
    pools_folds: ClassVar[bool] = True

    def __init__(self, cohort: Cohort, settings: TaskSettings) -> None:
        super().__init__(cohort, settings)
        columns = columns_of(settings)
        self.columns = tuple(columns)
        self._labels_of = {row.slide_id: labels_of(row, columns, cohort.source) for row in cohort.rows}

    @classmethod
    def select(cls, cohort: Cohort, settings: TaskSettings) -> Cohort:
        """Leaves out the slides that have none of the labels, with a note."""
        columns = columns_of(settings)
        rows = tuple(row for row in cohort.rows if np.isfinite(labels_of(row, columns, cohort.source)).any())
        if len(rows) == len(cohort.rows):
            return cohort
        if not rows:
            raise InputError(f"{cohort.source}: no slide has a label in {', '.join(columns)}")
        n = len(cohort.rows)
        note = f"{cohort.source}: {n - len(rows)} of {n} slides have no label in {', '.join(columns)} and are left out"
        return replace(cohort, rows=rows, notes=(*cohort.notes, note))

    @classmethod
    def strata(cls, cohort: Cohort, settings: TaskSettings) -> list[str]:
        """Combination of the labels; rare ones are one stratum."""
        columns = columns_of(settings)
        names = []
        for row in cohort.rows:
            labels = labels_of(row, columns, cohort.source)
            names.append("/".join("?" if np.isnan(label) else str(int(label)) for label in labels))
        return merged_strata(names, [row.case_id for row in cohort.rows])

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.columns

    @classmethod
    def meanings(cls, output_names: Sequence[str]) -> tuple[OutputMeaning, ...]:
        return tuple(OutputMeaning(name, f"log-odds of {name}") for name in output_names)

    @classmethod
    def aggregated(cls, logits: np.ndarray, how: Aggregate) -> np.ndarray:
        """Mean of the slides' probabilities of each label, or the highest one."""
        if how == "max":
            return np.asarray(logits.max(0))
        return np.log(np.maximum(sigmoid(logits).mean(0), 1e-300)) - np.log(
            np.maximum(sigmoid(-logits).mean(0), 1e-300)
        )

    def patient_row(self, rows: Sequence[SlideRow]) -> SlideRow | None:
        """Row with all labels of a patient: a label that one slide lacks is that of another; None where two differ."""
        labels = self.labels(rows)
        is_there = np.isfinite(labels)
        known = np.where(is_there, labels, 0).max(0)
        if (is_there & (labels != known)).any():
            return None
        merged = tuple(np.where(is_there.any(0), known, np.nan).tolist())
        if np.array_equal(merged, self._labels_of[rows[0].slide_id], equal_nan=True):
            return rows[0]
        row = replace(rows[0], slide_id=f"{rows[0].slide_id} and {len(rows) - 1} more of {rows[0].case_id}")
        self._labels_of[row.slide_id] = merged
        return row

    def labels(self, rows: Sequence[SlideRow]) -> np.ndarray:
        """Labels of rows, float64 (N, C): 1, 0, or NaN where there is none."""
        return np.array([self._labels_of[row.slide_id] for row in rows], dtype=np.float64).reshape(
            len(rows), len(self.columns)
        )

    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """`label_0`, `label_1` …, one per column: 1, 0, or NaN where there is none; float32 (N,)."""
        labels = self.labels(rows).astype(np.float32)
        return {f"label_{c}": labels[:, c] for c in range(len(self.columns))}

    def losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch
        from torch.nn import functional

        labels = torch.stack([targets[f"label_{c}"] for c in range(logits.shape[1])], 1).to(logits.dtype)
        is_there = torch.isfinite(labels)
        losses = functional.binary_cross_entropy_with_logits(
            logits, torch.where(is_there, labels, torch.zeros_like(labels)), reduction="none"
        )
        return (losses * is_there).mean(1)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        from longvit.metrics.multilabel import multilabel_metrics

        return multilabel_metrics(self.labels(predictions.rows), sigmoid(predictions.logits), self.columns)

    def intervals(self, predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Interval]:
        from longvit.metrics.multilabel import bootstrap_multilabel

        labels, p = self.labels(predictions.rows), sigmoid(predictions.logits)
        return bootstrap_multilabel(labels, p, self.columns, predictions.patients, resamples=resamples, seed=seed)

    @classmethod
    def prediction_columns(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"probability_{name}" for name in output_names)

    @classmethod
    def prediction_cells(cls, logits: np.ndarray, output_names: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{p:.9g}" for p in sigmoid(logits))

    def label_columns(self) -> tuple[str, ...]:
        return tuple(f"label_{name}" for name in self.columns)

    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        return tuple("" if np.isnan(label) else str(int(label)) for label in self._labels_of[row.slide_id])

    def control(
        self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A logistic regression for each column, on the training slides that have its label."""
        labels = self.labels(rows)
        logits = {split: np.zeros((len(x), len(self.columns))) for split, x in others.items()}
        for c in range(len(self.columns)):
            is_there = np.isfinite(labels[:, c])
            for split, z in binary_logits(features[is_there], labels[is_there, c] == 1, others).items():
                logits[split][:, c] = z
        return logits

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:
        labels = self.labels(rows)
        for c, column in enumerate(self.columns):
            found = set(labels[np.isfinite(labels[:, c]), c].tolist())
            if len(found) < 2:
                what = f"only {int(found.pop())}" if found else "no label"
                raise InputError(f"{self.cohort.source}: {column} has {what} in split train: nothing to learn{after}")


def columns_of(settings: TaskSettings) -> dict[str, str]:
    """Label column -> class that is 1, or "" where the cells are 0 and 1. `InputError`: a column named twice."""
    columns: dict[str, str] = {}
    for text in settings.label_columns:
        name, _, positive = text.partition("=")
        name = name.strip()
        if name in columns or column_name(name) in {column_name(other) for other in columns}:
            raise InputError(f"--label-columns: {name} is named twice")
        columns[name] = class_name(positive)
    refuse_clashes("columns", first_places((name, "") for name in columns), "--label-columns")
    return columns


def labels_of(row: SlideRow, columns: Mapping[str, str], source: str) -> tuple[float, ...]:
    """Labels of a slide: 1, 0, or NaN where the cell is empty."""
    return tuple(read_yes_or_no(row, column, positive, source) for column, positive in columns.items())


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of label 1, the same shape."""
    from scipy import special

    return np.asarray(special.expit(logits))
