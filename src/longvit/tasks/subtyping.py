"""Subtyping: one of two or more classes per slide; cross-entropy on the logits of one linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.errors import InputError
from longvit.metrics.classification import Interval, auc, bootstrap, classification_metrics
from longvit.tasks.task import Aggregate, Predictions, Task

if TYPE_CHECKING:
    import torch


class Subtyping(Task):
    """Subtyping: one of the cohort's classes per slide."""

    name: ClassVar[str] = "subtyping"
    metric: ClassVar[str] = "auc"
    metric_label: ClassVar[str] = "AUC"
    loss_label: ClassVar[str] = "cross-entropy"
    has_classes: ClassVar[bool] = True
    outputs_are_classes: ClassVar[bool] = True
    pools_folds: ClassVar[bool] = True

    @classmethod
    def classes_of(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        return tuple(output_names)

    @classmethod
    def aggregated(cls, logits: np.ndarray, how: Aggregate) -> np.ndarray:
        """Mean of the slides' probabilities. Maximum: the slide with the highest probability of the second of two
        classes; of more classes, the highest probability of each, divided by their sum."""
        p = softmax(logits)
        if how == "max" and p.shape[1] == 2:
            return np.asarray(logits[p[:, 1].argmax()])
        together = p.mean(0) if how == "mean" else p.max(0)
        return np.log(np.maximum(together / together.sum(), 1e-300))

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.cohort.classes

    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """`label`: index of the class, int64 (N,)."""
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

    def label_columns(self) -> tuple[str, ...]:
        return ("label",)

    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        return (row.label,)

    def control(
        self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Logistic regression (inputs standardised, classes balanced); a class absent from training gets 1e-300."""
        labels = self.targets(rows)["label"]
        probabilities = logistic_probabilities(features, labels, others, len(self.cohort.classes))
        return {split: np.log(np.maximum(p, 1e-300)) for split, p in probabilities.items()}

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:
        present = {row.label for row in rows}
        if absent := [name for name in self.cohort.classes if name not in present]:
            raise InputError(f"{self.cohort.source}: no slide of class {absent[0]!r} in split train{after}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax of float64 (…, W), the same shape; rows sum to 1."""
    from scipy import special

    return np.asarray(special.softmax(logits, axis=-1))


def logistic_probabilities(
    train_features: np.ndarray, train_labels: np.ndarray, features: Mapping[str, np.ndarray], classes: int
) -> dict[str, np.ndarray]:
    """Split -> class probabilities (slides, classes) of a logistic regression fitted on the training slides.

    A class that is absent from training has probability 0 everywhere.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    fitted.fit(train_features, train_labels)
    result = {}
    for split, x in features.items():
        result[split] = np.zeros((len(x), classes))
        if len(x):
            result[split][:, fitted.classes_] = fitted.predict_proba(x)
    return result
