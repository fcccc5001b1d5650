"""Decisions by a threshold on the probability of one class: sensitivity, predictive values, net benefit.

A case counts as positive where its probability is at least the threshold.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
OPERATING = ("sensitivity", "specificity", "ppv", "npv")


def youden_threshold(labels: ArrayLike, probability: ArrayLike) -> float:
    """Threshold with the highest sensitivity + specificity (Youden 1950); of several the highest.

    It is one of the probabilities; NaN where a class is absent.

    >>> youden_threshold([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.8
    """
    y, p = np.asarray(labels), np.asarray(probability, dtype=np.float64)
    positives, negatives = int((y == 1).sum()), int((y == 0).sum())
    if not positives or not negatives:
        return math.nan
    thresholds = np.unique(p)[::-1]
    hits = np.searchsorted(np.sort(-p[y == 1]), -thresholds, side="right")
    false_alarms = np.searchsorted(np.sort(-p[y == 0]), -thresholds, side="right")
    scores = hits * negatives - false_alarms * positives  # whole numbers: ties are exact
    return float(thresholds[int(scores.argmax())])


def counts_at(labels: ArrayLike, probability: ArrayLike, threshold: float) -> dict[str, int]:
    """Counts at a threshold: true_positive, false_positive, true_negative, false_negative."""
    y, called = np.asarray(labels) == 1, np.asarray(probability, dtype=np.float64) >= threshold
    return {
        "true_positive": int((y & called).sum()),
        "false_positive": int((~y & called).sum()),
        "true_negative": int((~y & ~called).sum()),
        "false_negative": int((y & ~called).sum()),
    }


def operating_point(
    labels: ArrayLike, probability: ArrayLike, threshold: float, prevalence: float | None = None
) -> dict[str, float]:
    """Sensitivity, specificity, ppv and npv at a threshold; NaN where not defined.

    `prevalence` (0 … 1) of the class replaces that of the cases in ppv and npv (Bayes).

    >>> point = operating_point([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.35)
    >>> point["sensitivity"], point["specificity"]
    (1.0, 0.5)
    """
    n = counts_at(labels, probability, threshold)
    hits, misses = n["true_positive"], n["false_negative"]
    rejected, false_alarms = n["true_negative"], n["false_positive"]
    sensitivity = _ratio(hits, hits + misses)
    specificity = _ratio(rejected, rejected + false_alarms)
    if prevalence is None:
        ppv, npv = _ratio(hits, hits + false_alarms), _ratio(rejected, rejected + misses)
    else:
        true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        ppv = _ratio(true, true + false)
        true, false = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        npv = _ratio(true, true + false)
    return {"sensitivity": sensitivity, "specificity": specificity, "ppv": ppv, "npv": npv}


def net_benefit(
    labels: ArrayLike, probability: ArrayLike, thresholds: ArrayLike, prevalence: float | None = None
) -> tuple[Floats, Floats]:
    """Net benefit (T,) of acting on cases at or above each threshold, and of acting on all (Vickers and Elkin 2006).

    `thresholds` (T,) in 0 … 1, below 1. Acting on none has net benefit 0. `prevalence` as in `operating_point`. The
    first is NaN where a class is absent.
    """
    y, p = np.asarray(labels) == 1, np.asarray(probability, dtype=np.float64)
    t = np.asarray(thresholds, dtype=np.float64)
    rate = float(y.mean()) if prevalence is None else prevalence
    called = p[None] >= t[:, None]
    if not y.any() or y.all():
        sensitivity = false_rate = np.full(len(t), np.nan)
    else:
        sensitivity, false_rate = called[:, y].mean(1), called[:, ~y].mean(1)
    odds = t / (1 - t)
    return sensitivity * rate - false_rate * (1 - rate) * odds, rate - (1 - rate) * odds


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
