"""Ordinal metrics: agreement of grades that have an order, and bootstrap intervals resampled by patient.

The predicted grade is the most probable one. A cut lies between two neighbouring grades: its AUC is that of the
probability of a grade above it. The tests compare with scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longvit.metrics.classification import Interval, bootstrap_weighted, mean_of_defined, weighted_metrics


def ordinal_metrics(labels: ArrayLike, probabilities: ArrayLike, grades: Sequence[str]) -> dict[str, float]:
    """Metrics of grades 0 … C - 1 (N,) and their probabilities (N, C); NaN where not defined.

    `quadratic_kappa`: Cohen's kappa with quadratic weights; 1 is agreement, 0 chance. `mae`: mean number of grades
    between prediction and label. `auc`: mean over the cuts. `auc_above_<grade>`: of each cut. Then
    `balanced_accuracy` and `accuracy`.
    """
    y, p = _checked(labels, probabilities)
    values = weighted_ordinal(y, p, np.ones((1, len(y))), grades)
    return {name: float(value[0]) for name, value in values.items()}


def bootstrap_ordinal(
    labels: ArrayLike,
    probabilities: ArrayLike,
    grades: Sequence[str],
    patients: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % interval of each metric, resampled by patient with all slides of the patient."""
    y, p = _checked(labels, probabilities)
    assert len(patients) == len(y)
    return bootstrap_weighted(
        lambda weights: weighted_ordinal(y, p, weights, grades), patients, resamples=resamples, seed=seed
    )


def weighted_ordinal(
    y: NDArray[np.int64], p: NDArray[np.float64], weights: NDArray[np.float64], grades: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of grades (N,) and probabilities (N, C) under each of the weights (B, N): metric -> (B,)."""
    predicted = p.argmax(1) if len(y) else np.zeros(0, np.int64)
    above = p[:, ::-1].cumsum(1)[:, ::-1]  # (N, C): the probability of a grade of at least k
    cuts = {}
    for k, grade in enumerate(grades[:-1]):
        score = np.stack([-above[:, k + 1], above[:, k + 1]], 1)
        cuts[f"auc_above_{grade}"] = weighted_metrics((y > k).astype(np.int64), score, weights, ("auc",))["auc"]
    return {
        "quadratic_kappa": _quadratic_kappa(y, predicted, weights),
        "mae": _mean(np.abs(predicted - y), weights),
        "auc": mean_of_defined(np.stack(list(cuts.values()), 1)),
        **cuts,
        **weighted_metrics(y, p, weights, ("balanced_accuracy", "accuracy")),
    }


def _quadratic_kappa(
    y: NDArray[np.int64], predicted: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """1 minus the mean squared distance, relative to its mean over all pairs of a label and a prediction."""
    total = weights.sum(1)
    observed = total * (weights @ (y - predicted) ** 2)  # whole numbers, so that 0 is exact
    squares = total * (weights @ (y**2 + predicted**2))
    by_chance = squares - 2 * (weights @ y) * (weights @ predicted)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(by_chance > 0, 1 - observed / by_chance, math.nan)


def _mean(values: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    total = weights.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, weights @ values / total, math.nan)


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    assert y.shape == p.shape[:1] and p.shape[1:] >= (2,), f"labels {y.shape}, probabilities {p.shape}"  # noqa: PT018
    return y, p
