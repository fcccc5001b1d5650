"""DeLong's variance of AUCs (DeLong et al. 1988), by midranks in N log N (Sun and Xu 2014): intervals and tests.

Cases count as independent: use one score per patient where a patient has several slides. The tests compare with the
definition over all pairs, which is quadratic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Estimate with its normal interval."""

    value: float
    low: float
    """NaN where a class has fewer than two cases."""
    high: float
    p: float = math.nan
    """Two-sided p value of the value 0; NaN where there is no test."""


def delong_covariance(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """AUCs (S,) of S systems on the same N cases, and their covariance (S, S).

    `labels` (N,) 0 or 1, `scores` (S, N). NaN where a class is absent; the covariance is NaN with fewer than two cases
    of a class.

    >>> import numpy as np
    >>> aucs, covariance = delong_covariance([0, 0, 1, 1], [[0.1, 0.4, 0.35, 0.8]])
    >>> float(aucs[0]), covariance.shape
    (0.75, (1, 1))
    """
    from scipy.stats import rankdata

    y, s = np.asarray(labels), np.atleast_2d(np.asarray(scores, dtype=np.float64))
    assert y.ndim == 1, f"labels {y.shape}"
    assert s.shape[1:] == y.shape, f"labels {y.shape}, scores {s.shape}"
    assert np.isfinite(s).all()
    positive, negative = s[:, y == 1], s[:, y == 0]
    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        return np.full(len(s), np.nan), np.full((len(s), len(s)), np.nan)
    ranks = rankdata(np.concatenate([positive, negative], 1), axis=1)
    above = (ranks[:, :m] - rankdata(positive, axis=1)) / n  # (S, m): negatives below each positive
    below = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m  # (S, n): positives above each negative
    aucs = above.mean(1)
    if m < 2 or n < 2:
        return aucs, np.full((len(s), len(s)), np.nan)
    return aucs, np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n


def delong_interval(labels: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Estimate:
    """AUC of `scores` (N,) with DeLong's interval, cut off at 0 and 1.

    >>> delong_interval([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value
    0.75
    """
    aucs, covariance = delong_covariance(labels, scores)
    estimate = _normal(float(aucs[0]), float(covariance[0, 0]), level)
    low, high = np.clip([estimate.low, estimate.high], 0, 1)  # NaN stays
    return Estimate(estimate.value, float(low), float(high))


def delong_test(labels: ArrayLike, scores: ArrayLike, others: ArrayLike, level: float = 0.95) -> Estimate:
    """Difference of two AUCs on the same cases, `scores` minus `others` (N,), with DeLong's interval and test.

    >>> delong_test([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], [0.1, 0.2, 0.3, 0.4]).value
    -0.25
    """
    aucs, covariance = delong_covariance(labels, np.stack([np.asarray(scores), np.asarray(others)]))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return _normal(float(aucs[0] - aucs[1]), max(0.0, float(variance)), level)


def delong_unpaired(
    labels: ArrayLike, scores: ArrayLike, other_labels: ArrayLike, other_scores: ArrayLike, level: float = 0.95
) -> Estimate:
    """Difference of the AUCs of two independent samples, the first minus the other, with interval and test.

    >>> delong_unpaired([0, 0, 1, 1], [1, 2, 3, 4], [0, 0, 1, 1], [1, 3, 2, 4]).value
    0.25
    """
    (one,), covariance = delong_covariance(labels, scores)
    (other,), other_covariance = delong_covariance(other_labels, other_scores)
    return _normal(float(one - other), float(covariance[0, 0] + other_covariance[0, 0]), level)


def _normal(value: float, variance: float, level: float) -> Estimate:
    """Estimate with a normal interval; the p value is NaN where the variance is 0 or not defined."""
    if not math.isfinite(variance) or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    sd = math.sqrt(variance)
    width = NormalDist().inv_cdf((1 + level) / 2) * sd
    p = math.erfc(abs(value) / sd / math.sqrt(2)) if sd > 0 else math.nan
    return Estimate(value, value - width, value + width, p)
