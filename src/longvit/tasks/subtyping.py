"""Subtyping: which of two or more classes a slide belongs to; cross-entropy on the logits of one linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.errors import InputError
from longvit.metrics.classification import Interval, auc, bootstrap, classification_metrics
from longvit.tasks.controls import logistic_probabilities
from longvit.tasks.task import Predictions, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Probabilities:
    """What curves are drawn from."""

    labels: np.ndarray
    """True class, int64 (N,)."""
    probabilities: np.ndarray
    """float64 (N, classes); a row sums to 1."""


class Subtyping(Task):
    """One of the cohort's classes per slide."""

    name: ClassVar[str] = "subtyping"
    metric: ClassVar[str] = "auc"
    metric_label: ClassVar[str] = "AUC"
    loss_words: ClassVar[str] = "cross-entropy"
    has_classes: ClassVar[bool] = True

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.cohort.classes

    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """`label`: index of the class, int64."""
        index = {name: i for i, name in enumerate(self.cohort.classes)}
        return {"label": np.array([index[row.label] for row in rows], dtype=np.int64)}

    def losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from torch.nn import functional

        return functional.cross_entropy(logits, targets["label"], reduction="none")

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return classification_metrics(self.targets(predictions.rows)["label"], softmax(predictions.logits))

    def main_metric(self, predictions: Predictions) -> float:
        return auc(self.targets(predictions.rows)["label"], softmax(predictions.logits))

    def intervals(self, predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Interval]:
        labels = self.targets(predictions.rows)["label"]
        return bootstrap(labels, softmax(predictions.logits), predictions.patients, resamples=resamples, seed=seed)

    @classmethod
    def prediction_columns(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        return (*(f"prob_{name}" for name in output_names), "prediction")

    @classmethod
    def prediction_cells(cls, logits: np.ndarray, output_names: Sequence[str]) -> tuple[str, ...]:
        return (*(f"{p:.9g}" for p in softmax(logits)), output_names[int(logits.argmax())])

    @classmethod
    def label_columns(cls) -> tuple[str, ...]:
        return ("label",)

    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        return (row.label,)

    def control(
        self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A logistic regression (inputs standardised, classes balanced); a class absent from training gets 1e-300."""
        labels = self.targets(rows)["label"]
        found = logistic_probabilities(features, labels, others, len(self.cohort.classes))
        return {split: np.log(np.maximum(p, 1e-300)) for split, p in found.items()}

    def plots(
        self,
        folder: Path,
        predictions: Mapping[str, Predictions],
        intervals: Mapping[str, Mapping[str, Interval]],
        controls: Mapping[str, Mapping[str, Mapping[str, float]]],
    ) -> None:
        from longvit.plots.classification import roc_plot

        shown = list(predictions)[-1]
        roc_plot(
            {
                split: Probabilities(self.targets(p.rows)["label"], softmax(p.logits))
                for split, p in predictions.items()
            },
            self.cohort.classes,
            folder / "roc.png",
            intervals={split: of["auc"] for split, of in intervals.items()},
            controls={name.replace("_", " "): of[shown]["auc"] for name, of in controls.items()},
        )

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:
        present = {row.label for row in rows}
        if absent := [name for name in self.cohort.classes if name not in present]:
            raise InputError(f"{self.cohort.source}: no slide of class {absent[0]!r} in split train{after}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 (…, W) -> the same shape; rows sum to 1."""
    from scipy.special import softmax as of

    return np.asarray(of(logits, axis=-1))
