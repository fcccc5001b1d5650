"""Figures of a classification: AUC, balanced accuracy, accuracy, F1, and the patients' bootstrap interval of the AUC.

Our rule for a class that is absent from the labels (libraries differ: torchmetrics counts its AUC as 0, scikit-learn
raises): its one-vs-rest AUC is not defined and left out of the mean, as the subtyping protocol has it; where
none is defined the AUC is NaN. Balanced accuracy and F1 are means over the classes that are present.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """A percentile interval of the bootstrap."""

    low: float
    high: float
    resamples: int
    """Resamples that gave a figure (one without both classes gives none)."""


def auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Area under the ROC curve. `labels` int (N,) in 0 … C - 1, `probabilities` (N, C).

    C = 2: that of p(class 1). C > 2: the mean of the one-vs-rest AUCs of the classes that are present (and not alone).
    NaN where it is not defined: one class only, or no slide.
    """
    from sklearn.metrics import roc_auc_score

    y, p = _checked(labels, probabilities)
    each = []
    for c in [1] if p.shape[1] == 2 else range(p.shape[1]):
        positive = y == c
        if positive.any() and not positive.all():
            each.append(float(roc_auc_score(positive, p[:, c])))
    return float(np.mean(each)) if each else math.nan


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """`auc`, `balanced_accuracy`, `accuracy`, `f1` of the most probable class; NaN without slides.

    `f1` is that of class 1 for two classes, else the mean over the classes that are present.
    """
    from sklearn.metrics import f1_score

    y, p = _checked(labels, probabilities)
    if not len(y):
        return dict.fromkeys(("auc", "balanced_accuracy", "accuracy", "f1"), math.nan)
    guess = p.argmax(1)
    present = np.unique(y)
    if p.shape[1] == 2:
        f1 = f1_score(y, guess, pos_label=1, average="binary", zero_division=0.0)
    else:
        f1 = f1_score(y, guess, labels=present, average="macro", zero_division=0.0)
    return {
        "auc": auc(y, p),
        "balanced_accuracy": float(np.mean([(guess[y == c] == c).mean() for c in present])),
        "accuracy": float((guess == y).mean()),
        "f1": float(f1),
    }


def bootstrap_auc(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of the AUC when the *patients* are drawn anew, with all their slides each time.

    Slides of a patient are no independent witnesses: drawing slides would make the interval too narrow. NaN bounds
    where no resample has a defined AUC.
    """
    y, p = _checked(labels, probabilities)
    assert len(patients) == len(y)
    names, patient_of = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    slides_of = [np.flatnonzero(patient_of == k) for k in range(len(names))]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples if len(names) else 0):
        drawn = np.concatenate([slides_of[k] for k in rng.integers(len(names), size=len(names))])
        if not math.isnan(value := auc(y[drawn], p[drawn])):
            values.append(value)
    if not values:
        return Interval(math.nan, math.nan, 0)
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high), len(values))


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y = np.asarray(labels, dtype=np.int64)
    p = np.asarray(probabilities, dtype=np.float64)
    assert y.shape == p.shape[:1] and p.shape[1:] >= (2,), f"labels {y.shape}, probabilities {p.shape}"  # noqa: PT018
    assert np.isfinite(p).all()
    assert ((y >= 0) & (y < p.shape[1])).all()
    return y, p
