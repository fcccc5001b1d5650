"""Classification metrics, and bootstrap intervals resampled by patient.

A class that is absent from the labels has no one-vs-rest AUC or average precision and is left out of the mean, as in
the subtyping protocol. Libraries differ here: torchmetrics counts its AUC as 0, scikit-learn raises. Where no class
has one, the metric is NaN. Balanced accuracy and F1 are means over the classes that are present.

Every metric is computed from weights on the slides (B resamples × N slides; all ones for the sample itself). So the
bootstrap sorts the scores once and needs a few sums per resample: 1,000 resamples of 1,000 slides, all metrics, in
well under a second per class. The tests compare with scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRICS = ("auc", "average_precision", "balanced_accuracy", "accuracy", "f1", "ece")
BINS = 15
_WEIGHTS_AT_ONCE = 2_000_000  # resamples × slides: 16 MB an array


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a bootstrap."""

    low: float
    high: float
    resamples: int
    """Resamples in which the metric is defined (it needs both classes)."""


@dataclass(frozen=True)
class Reliability:
    """Reliability of the probabilities: confidence and accuracy per bin of the top-class probability."""

    edges: NDArray[np.float64]
    """(bins + 1,), equal widths from 0 to 1; a bin is open below and closed above."""
    counts: NDArray[np.int64]
    """(bins,) slides."""
    confidence: NDArray[np.float64]
    """(bins,) mean top-class probability; NaN in an empty bin."""
    accuracy: NDArray[np.float64]
    """(bins,) fraction of correct predictions; NaN in an empty bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over the slides of |accuracy - confidence| of their bin."""
        if not self.counts.sum():
            return math.nan
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.counts) / self.counts.sum())


def auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Area under the ROC curve. `labels` int (N,) in 0 … C - 1, `probabilities` (N, C).

    C = 2: AUC of p(class 1). C > 2: mean one-vs-rest AUC over the classes that have both positives and negatives. NaN
    where it is not defined: one class only, or no slide.
    """
    y, p = _checked(labels, probabilities)
    return _of_sample(y, p, ("auc",))["auc"]


def average_precision(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Area under the stepwise precision-recall curve, `sum (R_k - R_{k-1}) P_k`; classes as in `auc`.

    Random guessing gives the prevalence of the positive class, not 0.5.
    """
    y, p = _checked(labels, probabilities)
    return _of_sample(y, p, ("average_precision",))["average_precision"]


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """Metrics named in `METRICS`; those after `average_precision` judge the most probable class. NaN without slides.

    `f1`: of class 1 for two classes, else the mean over the classes that are present. `ece`: see `reliability`.
    """
    y, p = _checked(labels, probabilities)
    return _of_sample(y, p, METRICS)


def confusion(labels: ArrayLike, probabilities: ArrayLike) -> NDArray[np.int64]:
    """Confusion matrix (C, C) in slides: row = label, column = most probable class (the first of several)."""
    y, p = _checked(labels, probabilities)
    classes = p.shape[1]
    return np.bincount(y * classes + p.argmax(1), minlength=classes**2).reshape(classes, classes)


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> Reliability:
    """Confidence against accuracy in `bins` equal bins of the top-class probability (Guo et al. 2017, with their 15).

    With few slides the expected calibration error is too large: with 5 in a bin, chance moves its accuracy by 0.2.
    """
    y, p = _checked(labels, probabilities)
    top, right = p.max(1), p.argmax(1) == y
    bin_of = _bin_of(top, bins)
    counts = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bin_of, top, minlength=bins) / counts
        accuracy = np.bincount(bin_of, right, minlength=bins) / counts
    return Reliability(np.linspace(0, 1, bins + 1), counts, confidence, accuracy)


def bootstrap(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[str],
    metrics: Sequence[str] = METRICS,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile interval of each metric, resampled by *patient* with all slides of the patient.

    Slides of a patient are not independent: resampling slides would make the intervals too narrow. All metrics use the
    same resamples. NaN bounds where no resample has the metric.
    """
    values = resampled_metrics(labels, probabilities, patients, metrics, resamples=resamples, seed=seed)
    return {name: percentile_interval(drawn, level) for name, drawn in values.items()}


def resampled_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[str],
    metrics: Sequence[str] = METRICS,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Metric -> its value (resamples,) in each resample of `bootstrap`; NaN where it is not defined.

    Two systems on the same slides have the same resamples, so that their difference has an interval too.
    """
    y, p = _checked(labels, probabilities)
    assert len(patients) == len(y)
    return resampled_weighted(
        lambda weights: weighted_metrics(y, p, weights, metrics), patients, resamples=resamples, seed=seed
    )


def bootstrap_weighted(
    weighted: Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]],
    patients: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile interval of each metric of `weighted`: weights (B, N) on the slides -> metric -> values (B,)."""
    values = resampled_weighted(weighted, patients, resamples=resamples, seed=seed)
    return {name: percentile_interval(drawn, level) for name, drawn in values.items()}


def resampled_weighted(
    weighted: Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]],
    patients: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Metric of `weighted` (see `bootstrap_weighted`) -> its value (resamples,) in each resample.

    A weight is the number of times that the patient of a slide is drawn. All metrics use the same resamples.
    """
    names, patient_of = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in weighted(np.ones((0, len(patients))))}
    left = resamples if len(names) else 0
    while left:
        rows = min(left, max(1, _WEIGHTS_AT_ONCE // len(patients)))
        left -= rows
        times_drawn = [
            np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(rows)
        ]
        weights = np.stack(times_drawn)[:, patient_of].astype(np.float64)  # (rows, N)
        for name, resampled in weighted(weights).items():
            values[name].append(resampled)
    return {name: np.concatenate([np.zeros(0), *chunks]) for name, chunks in values.items()}


def bootstrap_auc(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`bootstrap` of the AUC alone."""
    intervals = bootstrap(labels, probabilities, patients, ("auc",), resamples=resamples, level=level, seed=seed)
    return intervals["auc"]


def percentile_interval(values: NDArray[np.float64], level: float = 0.95) -> Interval:
    """Percentile interval of the resamples that are defined; NaN bounds without one."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan, 0)
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high), len(values))


def _of_sample(y: NDArray[np.int64], p: NDArray[np.float64], metrics: Sequence[str]) -> dict[str, float]:
    return {name: float(values[0]) for name, values in weighted_metrics(y, p, np.ones((1, len(y))), metrics).items()}


# Legend for what follows: B resamples, N slides, C classes, K distinct scores; y (N,), p (N, C), weights (B, N).


def weighted_metrics(
    y: NDArray[np.int64], p: NDArray[np.float64], weights: NDArray[np.float64], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Metrics under weights: metric -> values (B,), NaN where not defined."""
    unknown = set(metrics) - set(METRICS)
    assert not unknown, f"unknown metric: {sorted(unknown)}"
    if not len(y):
        return {name: np.full(len(weights), math.nan) for name in metrics}
    values: dict[str, NDArray[np.float64]] = {}
    if {"auc", "average_precision"} & set(metrics):
        values["auc"], values["average_precision"] = _ranking(y, p, weights)
    if {"balanced_accuracy", "accuracy", "f1"} & set(metrics):
        values |= _decisions(y, p, weights)
    if "ece" in metrics:
        values["ece"] = _calibration_error(y, p, weights)
    return {name: values[name] for name in metrics}


def _ranking(
    y: NDArray[np.int64], p: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC and average precision, (B,) each: mean over the classes that have both positives and negatives."""
    areas, precisions = [], []
    for c in [1] if p.shape[1] == 2 else range(p.shape[1]):
        order = np.argsort(-p[:, c], kind="stable")
        score = p[order, c]
        starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])  # equal scores are one step of the curve
        positive = (y[order] == c).astype(np.float64)
        hits = np.add.reduceat(weights[:, order] * positive, starts, axis=1)  # (B, K), best score first
        misses = np.add.reduceat(weights[:, order] * (1 - positive), starts, axis=1)
        hits_so_far, misses_so_far = hits.cumsum(1), misses.cumsum(1)
        all_hits, all_misses = hits_so_far[:, -1], misses_so_far[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            # a miss counts for every hit with a higher score, and half for one with the same
            areas.append((misses * (hits_so_far - hits / 2)).sum(1) / (all_hits * all_misses))
            precision = np.nan_to_num(hits_so_far / (hits_so_far + misses_so_far))  # 0 / 0 where nothing is drawn yet
            precisions.append((hits * precision).sum(1) / all_hits)
        for values in (areas[-1], precisions[-1]):
            values[(all_hits == 0) | (all_misses == 0)] = math.nan
    return mean_of_defined(np.stack(areas, 1)), mean_of_defined(np.stack(precisions, 1))


def _decisions(
    y: NDArray[np.int64], p: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Balanced accuracy, accuracy and F1 from the weighted confusion matrix."""
    classes = p.shape[1]
    entry = np.zeros((len(y), classes**2))
    entry[np.arange(len(y)), y * classes + p.argmax(1)] = 1
    matrix = (weights @ entry).reshape(-1, classes, classes)  # (B, true, predicted)
    right, true, predicted = np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(2), matrix.sum(1)  # (B, C) each
    with np.errstate(invalid="ignore"):
        recall = right / true  # NaN for an absent class: left out of the means
        f1 = 2 * right / (true + predicted)
    f1[true == 0] = math.nan if classes > 2 else 0.0
    return {
        "balanced_accuracy": mean_of_defined(recall),
        "accuracy": right.sum(1) / true.sum(1),
        "f1": f1[:, 1] if classes == 2 else mean_of_defined(f1),
    }


def _calibration_error(
    y: NDArray[np.int64], p: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    top = p.max(1)
    gap = np.zeros((len(y), BINS))
    gap[np.arange(len(y)), _bin_of(top, BINS)] = (p.argmax(1) == y) - top
    return np.abs(weights @ gap).sum(1) / weights.sum(1)


def _bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Bin of each confidence: bin k holds edges[k] < confidence <= edges[k + 1]; the last takes rounding above 1."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")


def mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean (B,) over the columns that are not NaN; NaN where all are."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(1) / defined.sum(1)


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y = np.asarray(labels, dtype=np.int64)
    p = np.asarray(probabilities, dtype=np.float64)
    assert y.shape == p.shape[:1] and p.shape[1:] >= (2,), f"labels {y.shape}, probabilities {p.shape}"  # noqa: PT018
    assert np.isfinite(p).all()
    assert ((y >= 0) & (y < p.shape[1])).all()
    return y, p
