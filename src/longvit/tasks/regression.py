"""Regression: a number per slide; squared error of the standardised number, one output of a linear head.

Numbers are standardised with mean and SD of the training slides. The name of the output keeps both, so that a model
folder alone turns its output into the unit of the label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.identity import is_missing_number
from longvit.errors import InputError
from longvit.metrics.classification import Interval
from longvit.tasks.label_cells import cell_of, quantile_strata, read_number
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import OutputMeaning, Predictions, Task

if TYPE_CHECKING:
    import torch

_OUTPUT = re.compile(r"(.*): mean (\S+), SD (\S+)", re.DOTALL)


class Regression(Task):
    """Regression of the number in a column of the cohort table."""

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "r2"
    metric_label: ClassVar[str] = "R²"
    chance: ClassVar[float] = 0.0
    loss_label: ClassVar[str] = "squared error, in variances of the label"
    pools_folds: ClassVar[bool] = True

    def __init__(self, cohort: Cohort, settings: TaskSettings) -> None:
        super().__init__(cohort, settings)
        self.column = number_column(settings)
        self._value_of = {row.slide_id: read_number(row, self.column, cohort.source) for row in cohort.rows}

    @classmethod
    def strata(cls, cohort: Cohort, settings: TaskSettings) -> list[str]:
        values = [read_number(row, number_column(settings), cohort.source) for row in cohort.rows]
        return quantile_strata(values, [row.case_id for row in cohort.rows])

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Mean and SD of the training slides; an SD of 0 counts as 1."""
        values = self.values(self.cohort.split("train") or self.cohort.rows)
        return float(values.mean()), float(values.std()) or 1.0

    @property
    def output_names(self) -> tuple[str, ...]:
        mean, sd = self.scale
        return (f"{self.column}: mean {mean!r}, SD {sd!r}",)

    @classmethod
    def meanings(cls, output_names: Sequence[str]) -> tuple[OutputMeaning, ...]:
        column, _, sd = scale_of(output_names)
        return (OutputMeaning(column, f"{column}, in units of {sd:.4g}"),)

    def values(self, rows: Sequence[SlideRow]) -> np.ndarray:
        """Labels of rows, float64 (N,), in the unit of the column."""
        return np.array([self._value_of[row.slide_id] for row in rows], dtype=np.float64)

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """Predicted numbers, float64 (N,), in the unit of the column."""
        mean, sd = self.scale
        return np.asarray(logits[:, 0] * sd + mean)

    def rescaled(self, logits: np.ndarray, other: Task) -> np.ndarray:
        assert isinstance(other, Regression)
        mean, sd = self.scale
        return np.asarray((other.predicted(logits) - mean) / sd)[:, None]

    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """`standardised`: (number - mean) / SD, float32 (N,)."""
        mean, sd = self.scale
        return {"standardised": ((self.values(rows) - mean) / sd).astype(np.float32)}

    def losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (logits[:, 0] - targets["standardised"]) ** 2

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        from longvit.metrics.regression import regression_metrics

        return regression_metrics(self.values(predictions.rows), self.predicted(predictions.logits))

    def intervals(self, predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Interval]:
        from longvit.metrics.regression import bootstrap_regression

        truth, predicted = self.values(predictions.rows), self.predicted(predictions.logits)
        return bootstrap_regression(truth, predicted, predictions.patients, resamples=resamples, seed=seed)

    @classmethod
    def prediction_columns(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        return ("predicted_value",)

    @classmethod
    def prediction_cells(cls, logits: np.ndarray, output_names: Sequence[str]) -> tuple[str, ...]:
        _, mean, sd = scale_of(output_names)
        return (f"{logits[0] * sd + mean:.9g}",)

    def label_columns(self) -> tuple[str, ...]:
        return ("value",)

    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        return (f"{self._value_of[row.slide_id]:.9g}",)

    def control(
        self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Ridge regression on standardised features; its penalty is selected by leave-one-out on the training rows."""
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fitted = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
        fitted.fit(features, self.targets(rows)["standardised"].astype(np.float64))
        return {split: fitted.predict(x)[:, None] if len(x) else np.zeros((0, 1)) for split, x in others.items()}

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:
        if len(np.unique(self.values(rows))) < 2:
            raise InputError(
                f"{self.cohort.source}: all slides of split train have the same {self.column}: nothing to learn{after}"
            )


def number_column(settings: TaskSettings) -> str:
    """Column of the number. `InputError` where several are named."""
    if len(settings.label_columns) > 1:
        raise InputError(
            f"--task regression takes one of --label-columns, not {len(settings.label_columns)}: run it once for each"
        )
    return settings.label_columns[0]


def without_numbers(cohort: Cohort, settings: TaskSettings) -> Cohort:
    """Cohort without the rows whose number is missing, which a note counts. `InputError` where all are missing."""
    column = number_column(settings)
    rows = tuple(row for row in cohort.rows if not is_missing_number(cell_of(row, column, cohort.source)))
    if len(rows) == len(cohort.rows):
        return cohort
    if not rows:
        raise InputError(f"{cohort.source}: no row has a {column}")
    n = len(cohort.rows)
    note = f"{cohort.source}: {n - len(rows)} of {n} rows have no {column} and are left out"
    return replace(cohort, rows=rows, notes=(*cohort.notes, note))


def scale_of(output_names: Sequence[str]) -> tuple[str, float, float]:
    """Column, mean and SD in the name of a model's output. `InputError`: a name that has none."""
    match = _OUTPUT.fullmatch(output_names[0]) if len(output_names) == 1 else None
    try:
        if match is not None:
            return match[1], float(match[2]), float(match[3])
    except ValueError:
        pass
    raise InputError(f"model of a regression: its output is {output_names!r}, without mean and SD; train it again")
