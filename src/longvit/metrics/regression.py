"""Regression metrics: errors of predicted numbers, and bootstrap intervals resampled by patient.

Each metric is computed from weights on the slides (B resamples × N slides), as in `classification`. A correlation is
not defined where truth or prediction is constant, nor is R² where the truth is. The tests compare with scikit-learn
and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longvit.metrics.classification import Interval, bootstrap_weighted

REGRESSION_METRICS = ("r2", "mae", "rmse", "pearson", "spearman")


def regression_metrics(truth: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Metrics named in `REGRESSION_METRICS`, of numbers (N,); NaN where not defined.

    `r2`: 1 minus the squared error relative to that of the mean truth; at most 1, and negative where the mean is the
    better prediction. `mae`, `rmse`: in the unit of the truth.
    """
    y, p = _checked(truth, predicted)
    return {name: float(values[0]) for name, values in weighted_regression(y, p, np.ones((1, len(y)))).items()}


def bootstrap_regression(
    truth: ArrayLike, predicted: ArrayLike, patients: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """95 % interval of each metric, resampled by patient with all slides of the patient."""
    y, p = _checked(truth, predicted)
    assert len(patients) == len(y)
    return bootstrap_weighted(
        lambda weights: weighted_regression(y, p, weights), patients, resamples=resamples, seed=seed
    )


def weighted_regression(
    y: NDArray[np.float64], p: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of numbers (N,) under each of the weights (B, N): metric -> (B,)."""
    if not len(y):
        return {name: np.full(len(weights), math.nan) for name in REGRESSION_METRICS}
    total = weights.sum(1)
    error = p - y
    centred = y - y.mean()  # fewer digits are lost in the sums of squares
    mean = weights @ centred / total
    spread = weights @ centred**2 - total * mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(_is_constant(y, weights), math.nan, 1 - (weights @ error**2) / spread)
    return {
        "r2": r2,
        "mae": weights @ np.abs(error) / total,
        "rmse": np.sqrt(weights @ error**2 / total),
        "pearson": _correlation(np.broadcast_to(y, weights.shape), np.broadcast_to(p, weights.shape), weights, y, p),
        "spearman": _correlation(_ranks(y, weights), _ranks(p, weights), weights, y, p),
    }


def _correlation(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    weights: NDArray[np.float64],
    y: NDArray[np.float64],
    p: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Weighted correlation (B,) of a and b (B, N); NaN where y or p (N,) has one value among the drawn slides."""
    total = weights.sum(1, keepdims=True)
    a = a - (weights * a).sum(1, keepdims=True) / total
    b = b - (weights * b).sum(1, keepdims=True) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (weights * a * b).sum(1) / np.sqrt((weights * a**2).sum(1) * (weights * b**2).sum(1))
    return np.where(_is_constant(y, weights) | _is_constant(p, weights), math.nan, np.clip(value, -1, 1))


def _ranks(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks (B, N) of each slide in its resample; equal values share the mean of their ranks."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    count = np.add.reduceat(weights[:, order], starts, axis=1)  # (B, distinct values)
    rank = count.cumsum(1) - count + (count + 1) / 2
    return np.asarray(rank[:, group])


def _is_constant(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True (B,) where the drawn slides have one value."""
    drawn = weights > 0
    return np.asarray(np.where(drawn, values, -math.inf).max(1) == np.where(drawn, values, math.inf).min(1))


def _checked(truth: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    assert y.ndim == 1 and y.shape == p.shape, f"truth {y.shape}, predicted {p.shape}"  # noqa: PT018
    assert np.isfinite(y).all() and np.isfinite(p).all()  # noqa: PT018
    return y, p
