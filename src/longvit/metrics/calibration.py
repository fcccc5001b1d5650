"""Calibration of the probability of one class: slope, intercept, and recalibration by a logistic regression.

Terms as in Van Calster et al. 2019: slope b and intercept a of logit P(y = 1) = a + b logit(p). Calibration in the
large is the intercept with the slope fixed to 1. Perfect: a = 0, b = 1. A slope below 1: predictions are too extreme,
as of an overfitted model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Calibration:
    """Calibration of probabilities on labelled cases; NaN where it is not defined."""

    slope: float
    """Perfect: 1. NaN where one class is absent, or a threshold separates the classes without an error."""
    intercept: float
    """Intercept beside the slope."""
    in_the_large: float
    """Intercept with slope 1; above 0: the probabilities are too low on average."""
    brier: float
    """Mean squared error of the probability."""


def logits_of(probability: ArrayLike) -> Floats:
    """log(p / (1 - p)) of probabilities in 0 … 1, which are kept 1e-9 away from 0 and 1."""
    p = np.clip(np.asarray(probability, dtype=np.float64), _SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(p) - np.log1p(-p))


def calibration(labels: ArrayLike, probability: ArrayLike) -> Calibration:
    """Calibration of `probability` (N,) of class 1 on `labels` (N,) 0 or 1.

    >>> fitted = calibration([0, 1, 0, 1, 1, 0], [0.2, 0.6, 0.5, 0.4, 0.9, 0.3])
    >>> fitted.slope > 0, round(fitted.brier, 3)
    (True, 0.152)
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    assert y.shape == p.shape, f"labels {y.shape}, probabilities {p.shape}"
    if not len(y):
        return Calibration(*[math.nan] * 4)
    x = logits_of(p)
    intercept, slope = fit_logistic(y, x)
    return Calibration(slope, intercept, _offset_intercept(y, x), float(((p - y) ** 2).mean()))


def fit_logistic(labels: ArrayLike, x: ArrayLike) -> tuple[float, float]:
    """Maximum-likelihood intercept and slope of a logistic regression of `labels` (N,) 0 or 1 on `x` (N,).

    NaN where there is none: one class only, one value of x only, or classes that a threshold separates.
    """
    y, z = np.asarray(labels, dtype=np.float64), np.asarray(x, dtype=np.float64)
    one, zero = z[y == 1], z[y == 0]
    if not len(one) or not len(zero) or one.min() >= zero.max() or zero.min() >= one.max():
        return math.nan, math.nan
    mean, sd = z.mean(), z.std()
    design = np.stack([np.ones_like(z), (z - mean) / sd], 1)
    beta = _newton(y, design, np.zeros_like(z))
    slope = beta[1] / sd
    return float(beta[0] - slope * mean), float(slope)


def recalibrated(probability: ArrayLike, intercept: float, slope: float) -> Floats:
    """Probabilities 1 / (1 + exp(-(intercept + slope logit(p)))), in the shape of `probability`."""
    from scipy.special import expit

    return np.asarray(expit(intercept + slope * logits_of(probability)))


def _offset_intercept(y: Floats, x: Floats) -> float:
    if y.min() == y.max():
        return math.nan
    return float(_newton(y, np.ones((len(y), 1)), x)[0])


def _newton(y: Floats, design: Floats, offset: Floats) -> Floats:
    """Newton's method for a logistic likelihood that has a maximum; a step that lowers it is halved."""
    beta = np.zeros(design.shape[1])

    def loss(b: Floats) -> float:
        z = design @ b + offset
        return float((np.logaddexp(0, z) - y * z).sum())

    current = loss(beta)
    for _ in range(200):
        z = design @ beta + offset
        p = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
        weight = np.maximum(p * (1 - p), 1e-12)
        step = np.linalg.solve((design * weight[:, None]).T @ design, design.T @ (y - p))
        size = 1.0
        while (new := loss(beta + size * step)) > current and size > 1e-8:
            size /= 2
        if new > current:
            break
        beta, current = beta + size * step, new
        if np.abs(step).max() < 1e-12:
            break
    return beta
