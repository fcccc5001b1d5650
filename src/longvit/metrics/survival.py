"""Figures of survival: c-index (Harrell's and Uno's), time-dependent AUC, Brier score, Kaplan-Meier, log-rank.

`months` (N,) finite and ≥ 0; `event` (N,) 1 or True where the event happened then, 0 where follow-up ended without one;
`risk` (N,) finite, higher for an earlier event. A time that is NaN or negative is an `InputError`. A figure that the
data do not define is NaN, not an error: a fold without two patients to compare has no c-index.

IPCW: an event at time t stands for the patients that were censored before t, so it counts 1 / G(t), where G is the
Kaplan-Meier curve of the *censoring* in the training rows (an event at t leaves the risk set before a censoring at
t). G is unknown after the last training time and may be 0 at it: a figure that needs it there is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longvit.errors import InputError
from longvit.metrics.classification import Interval

Floats = NDArray[np.float64]
_PAIRS_AT_ONCE = 1_000_000  # 8 MB an array
_WEIGHTS_AT_ONCE = 2_000_000  # resamples × rows: 16 MB an array


@dataclass(frozen=True)
class KaplanMeier:
    """The share without an event over time, a step at each of `times`; before the first it is 1."""

    times: Floats
    """(K,) distinct months at which an event happened or follow-up ended, rising."""
    survival: Floats
    """(K,) from that month on."""
    lower: Floats
    """(K,) pointwise interval: Greenwood's variance on the log(-log) scale, so it stays in 0 … 1."""
    upper: Floats
    """(K,) 1 with `lower` before the first event; both 0 where `survival` is 0."""
    at_risk: NDArray[np.int64]
    """(K,) patients under observation just before that month."""
    events: NDArray[np.int64]
    """(K,) events at that month."""

    def at(self, months: ArrayLike) -> Floats:
        """Survival at any months; NaN after the last observation, unless it has fallen to 0 by then."""
        found = _step(self.times, self.survival, months)
        if len(self.times) and self.survival[-1] > 0:
            found = np.where(np.asarray(months) > self.times[-1], np.nan, found)
        return found

    def number_at_risk(self, months: ArrayLike) -> NDArray[np.int64]:
        """Patients still under observation just before each of `months`: the row of numbers below such a figure."""
        padded = np.append(self.at_risk, 0)
        return padded[np.searchsorted(self.times, np.asarray(months, dtype=np.float64), side="left")]

    def median(self) -> float:
        """The first month at which survival is at most one half; NaN where it stays above."""
        below = np.flatnonzero(self.survival <= 0.5)
        return float(self.times[below[0]]) if len(below) else math.nan


@dataclass(frozen=True)
class TimeDependentAuc:
    """How well the risk separates who has had the event by a time from who has not."""

    times: Floats
    """(T,) months."""
    auc: Floats
    """(T,) NaN where it is not defined."""
    mean: float
    """Over `times`, each weighted by how far the evaluation rows' Kaplan-Meier curve falls up to it; NaN where one
    of them is NaN or the curve does not fall."""


def c_index(months: ArrayLike, event: ArrayLike, risk: ArrayLike, tied_tol: float = 1e-8) -> float:
    """Harrell's c: of the pairs where it is known who had the event first, the share where that one's risk is higher.

    Comparable: i had the event, and j was followed for longer, or was censored at the same time. Risks within
    `tied_tol` count one half. NaN without a comparable pair. Equal to scikit-survival's
    `concordance_index_censored`, by which the figures of the paper's table 2 were made.
    """
    t, happened, r = _checked(months, event, risk)
    return _weighted_c_index(t, happened, r, happened.astype(np.float64), tied_tol)


def uno_c_index(
    train_months: ArrayLike,
    train_event: ArrayLike,
    months: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    tau: float | None = None,
    tied_tol: float = 1e-8,
) -> float:
    """Uno's c: the c-index whose pairs count 1 / G(t_i)², so that it does not depend on how many were censored.

    `tau`: only events before it (months_i < tau) count; choose one within the training follow-up, say its 80 %
    quantile. NaN without a comparable pair, and where an event that counts lies where G is 0 or unknown.
    """
    t, happened, r = _checked(months, event, risk)
    counts = happened if tau is None else happened & (t < tau)
    g = _Censoring(train_months, train_event)(t)
    if not (g[counts] > 0).all():
        return math.nan
    weights = np.where(counts, 1 / np.where(counts, g, 1) ** 2, 0)
    return _weighted_c_index(t, happened, r, weights, tied_tol)


def time_dependent_auc(
    train_months: ArrayLike,
    train_event: ArrayLike,
    months: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    times: ArrayLike,
    tied_tol: float = 1e-8,
) -> TimeDependentAuc:
    """Cumulative/dynamic AUC at each of `times` (T,) months, rising.

    At each time, cases had the event by then, controls came past it. Cases count 1 / G(t_i); risks within `tied_tol`
    count one half. NaN at a time without a case or without a control, and from the first case on whose G is 0
    or unknown.
    """
    t, happened, r = _checked(months, event, risk)
    at = np.asarray(times, dtype=np.float64)
    g = _Censoring(train_months, train_event)(t)
    weights = np.where(happened & (g > 0), 1 / np.where(g > 0, g, 1), np.nan)
    scores = np.full(len(at), np.nan)
    for k, time in enumerate(at):
        case, control = happened & (t <= time), t > time
        if case.any() and control.any():
            higher = _higher(r[case][:, None], r[control][None], tied_tol).mean(1)
            scores[k] = (weights[case] * higher).sum() / weights[case].sum()
    falls = -np.diff(np.concatenate([[1.0], kaplan_meier(t, happened).at(at)]))
    mean = float((scores * falls).sum() / falls.sum()) if falls.sum() > 0 else math.nan
    return TimeDependentAuc(at, scores, mean)


def brier_score(
    train_months: ArrayLike,
    train_event: ArrayLike,
    months: ArrayLike,
    event: ArrayLike,
    survival: ArrayLike,
    times: ArrayLike,
) -> Floats:
    """Mean squared error (T,) of the predicted survival at `times` (T,) months, rising: 0 is perfect, always-½ gives ¼.

    `survival` (N, T) in 0 … 1: the predicted probability of no event up to and at each time. Who had the event by then
    counts 1 / G(t_i), who came past it 1 / G(time), who was censored before it 0. NaN at a time where a G that is
    needed is 0 or unknown, and without rows.
    """
    t, happened = checked_times(months, event)
    at, s = np.asarray(times, dtype=np.float64), np.asarray(survival, dtype=np.float64)
    assert s.shape == (len(t), len(at)), f"survival {s.shape} for {len(t)} rows and {len(at)} times"
    if not len(t):
        return np.full(len(at), np.nan)
    g = _Censoring(train_months, train_event)
    g_of_row, g_of_time = g(t)[:, None], g(at)[None]
    case, control = happened[:, None] & (t[:, None] <= at), t[:, None] > at
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(case, s**2 / g_of_row, 0) + np.where(control, (1 - s) ** 2 / g_of_time, 0)
    needed = np.where(case, g_of_row, np.where(control, g_of_time, 1.0))
    defined = (needed > 0).all(0)
    return np.where(defined, error.mean(0), np.nan)


def integrated_brier_score(
    train_months: ArrayLike,
    train_event: ArrayLike,
    months: ArrayLike,
    event: ArrayLike,
    survival: ArrayLike,
    times: ArrayLike,
) -> float:
    """The Brier score averaged over `times` (trapezoids; at least two of them); NaN where it is NaN at one of them."""
    at = np.asarray(times, dtype=np.float64)
    assert len(at) >= 2
    scores = brier_score(train_months, train_event, months, event, survival, at)
    return float(((scores[1:] + scores[:-1]) / 2 * np.diff(at)).sum() / (at[-1] - at[0]))


def kaplan_meier(months: ArrayLike, event: ArrayLike, level: float = 0.95) -> KaplanMeier:
    """The product-limit estimate with a pointwise interval of `level`; arrays of length 0 without rows."""
    t, happened = checked_times(months, event)
    times, at_risk, events, _ = _counts(t, happened)
    with np.errstate(divide="ignore", invalid="ignore"):
        survival = np.cumprod(1 - events / at_risk)
        greenwood = np.cumsum(np.where(events > 0, events / (at_risk * (at_risk - events)), 0.0))
        width = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(greenwood) / np.log(survival)  # negative
        lower, upper = survival ** np.exp(-width), survival ** np.exp(width)
    certain = (survival == 0) | (survival == 1)
    lower, upper = (np.where(certain, survival, bound).astype(np.float64) for bound in (lower, upper))
    return KaplanMeier(times, survival.astype(np.float64), lower, upper, at_risk, events)


def log_rank(months: ArrayLike, event: ArrayLike, group: ArrayLike) -> tuple[float, float]:
    """chi², and the probability of one as large if all groups had one survival curve (groups - 1 degrees of freedom).

    `group` (N,) any values, two or more of them. (NaN, NaN) where there is one group only, or no event while two were
    under observation.
    """
    from scipy.stats import chi2

    t, happened = checked_times(months, event)
    names, which = np.unique(np.asarray(group), return_inverse=True)
    member = which[:, None] == np.arange(len(names))  # (N, groups)
    difference, covariance = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for time in np.unique(t[happened]):
        at_risk = (member & (t >= time)[:, None]).sum(0).astype(np.float64)
        observed = (member & (happened & (t == time))[:, None]).sum(0)
        n, d = at_risk.sum(), observed.sum()
        share = at_risk / n
        difference += observed - d * share
        if n > 1:
            covariance += d * (n - d) / (n - 1) * (np.diag(share) - np.outer(share, share))
    if len(names) < 2 or not covariance.any():
        return math.nan, math.nan
    # One group follows from the others. The pseudo-inverse: a group that is never at risk at an event says nothing.
    part = difference[:-1]
    statistic = float(part @ np.linalg.pinv(covariance[:-1, :-1], hermitian=True) @ part)
    return statistic, float(chi2.sf(statistic, len(names) - 1))


def bootstrap_c_index(
    months: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    patients: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    tied_tol: float = 1e-8,
) -> Interval:
    """The percentile interval of the c-index when the *patients* are drawn anew, with all their rows each time.

    NaN bounds where no resample has a comparable pair.
    """
    t, happened, r = _checked(months, event, risk)
    assert len(patients) == len(t)
    names, patient_of = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    values = []
    left = resamples if len(names) else 0
    while left:
        # A row drawn k times counts k: it makes no pair with itself (an event is not compared with one at its time).
        n = min(left, max(1, _WEIGHTS_AT_ONCE // len(t)))
        left -= n
        drawn = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(n)]
        weights = np.stack(drawn)[:, patient_of].astype(np.float64)  # (n, N)
        right, pairs = np.zeros(n), np.zeros(n)
        for rows, comparable, score in _pairs(t, happened, r, tied_tol):
            right += (weights[:, rows] @ (comparable * score) * weights).sum(1)
            pairs += (weights[:, rows] @ comparable.astype(np.float64) * weights).sum(1)
        values.append(right[pairs > 0] / pairs[pairs > 0])
    found = np.concatenate([np.zeros(0), *values])
    if not len(found):
        return Interval(math.nan, math.nan, 0)
    tail = (1 - level) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(float(low), float(high), len(found))


def checked_times(months: ArrayLike, event: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """`months` as float64, `event` as bool; `InputError` at a time that is NaN, infinite or negative, by its row."""
    t, happened = np.asarray(months, dtype=np.float64), np.asarray(event)
    assert t.ndim == 1
    assert happened.shape == t.shape, f"{len(t)} times, {happened.shape} events"
    if (bad := np.flatnonzero(~(np.isfinite(t) & (t >= 0)))).size:
        raise InputError(f"survival time {t[bad[0]]} in row {bad[0] + 1}: a number of months, at least 0, is needed")
    if not np.isin(happened, (0, 1)).all():
        raise InputError("event must be 1 (happened) or 0 (censored)")
    return t, happened.astype(bool)


def _checked(months: ArrayLike, event: ArrayLike, risk: ArrayLike) -> tuple[Floats, NDArray[np.bool_], Floats]:
    t, happened = checked_times(months, event)
    r = np.asarray(risk, dtype=np.float64)
    assert r.shape == t.shape, f"{len(t)} times, {r.shape} risks"
    assert np.isfinite(r).all()
    return t, happened, r


def _higher(ours: Floats, theirs: Floats, tied_tol: float) -> Floats:
    """1 where our risk is higher, ½ where the two tie, else 0."""
    return np.where(np.abs(ours - theirs) <= tied_tol, 0.5, ours > theirs)


def _pairs(
    t: Floats, happened: NDArray[np.bool_], r: Floats, tied_tol: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], Floats]]:
    """(event rows (b,), whom each is comparable with (b, N), `_higher` (b, N)), a block of events at a time."""
    rows = np.flatnonzero(happened)
    block = max(1, _PAIRS_AT_ONCE // max(1, len(t)))
    for start in range(0, len(rows), block):
        i = rows[start : start + block]
        later, same = t[None] > t[i, None], t[None] == t[i, None]
        yield i, later | (same & ~happened[None]), _higher(r[i, None], r[None], tied_tol)


def _weighted_c_index(t: Floats, happened: NDArray[np.bool_], r: Floats, weights: Floats, tied_tol: float) -> float:
    """The c-index whose pairs count as much as their event's row says."""
    right = pairs = 0.0
    for rows, comparable, score in _pairs(t, happened, r, tied_tol):
        right += float(weights[rows] @ (comparable * score).sum(1))
        pairs += float(weights[rows] @ comparable.sum(1))
    return right / pairs if pairs > 0 else math.nan


def _counts(
    t: Floats, happened: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct times, and at each: who is at risk just before it, events, ends of follow-up."""
    times, which = np.unique(t, return_inverse=True)
    events = np.bincount(which[happened], minlength=len(times))
    ended = np.bincount(which[~happened], minlength=len(times))
    leaving = events + ended
    return times, leaving[::-1].cumsum()[::-1], events, ended


class _Censoring:
    """G(months): the share not yet censored, from the training rows; NaN after their last time."""

    def __init__(self, months: ArrayLike, event: ArrayLike) -> None:
        self.times, at_risk, events, ended = _counts(*checked_times(months, event))
        self.share = np.cumprod(1 - ended / np.maximum(at_risk - events, 1))

    def __call__(self, months: Floats) -> Floats:
        last = self.times[-1] if len(self.times) else -np.inf
        return np.where(months > last, np.nan, _step(self.times, self.share, months))


def _step(times: Floats, values: Floats, months: ArrayLike) -> Floats:
    """The step function that is 1 before the first time and `values[k]` from `times[k]` on."""
    return np.append(1.0, values)[np.searchsorted(times, np.asarray(months, dtype=np.float64), side="right")]
