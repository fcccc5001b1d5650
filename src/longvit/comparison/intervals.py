"""Bootstrap intervals of the mean over folds, resampled by patient within each fold.

All systems use the same resamples, so a difference of two systems has its own, narrower interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.tasks.task import Predictions, Task

Round = Mapping[str, Predictions]
"""System -> predictions of the evaluated patients of one fold."""


@dataclass(frozen=True)
class Spread:
    """Mean and SD over folds; None where not defined."""

    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Sure:
    """Value with its 95 % interval; None where not defined."""

    value: float | None
    low: float | None
    high: float | None


def spread_of(values: Sequence[float | None], ddof: int) -> Spread:
    """Mean and SD of the values that are defined; no SD of `ddof` values or fewer."""
    defined = [v for v in values if v is not None and math.isfinite(v)]
    if not defined:
        return Spread(None, None)
    sd = None
    if len(defined) > ddof:
        sd = statistics.stdev(defined) if ddof == 1 else statistics.pstdev(defined)
    return Spread(statistics.fmean(defined), sd)


def mean_of_folds(rounds: Sequence[Round], tasks: Sequence[Task], name: str) -> float | None:
    """Main metric of a system: mean over the folds in which it is present and defined."""
    values = [task.main_metric(fold[name]) for fold, task in zip(rounds, tasks, strict=True) if name in fold]
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else None


def drawn_means(rounds: Sequence[Round], tasks: Sequence[Task], *, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """System -> (resamples,) means over its folds of the main metric on the resampled patients.

    NaN where the metric of one fold is not defined (one class, no event)."""
    rng = np.random.default_rng(seed)
    folds = [_Fold(predictions, task) for predictions, task in zip(rounds, tasks, strict=True)]
    names = list(dict.fromkeys(name for predictions in rounds for name in predictions))
    means: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        values: dict[str, list[float]] = {name: [] for name in names}
        for fold in folds:
            drawn = rng.integers(len(fold.patients), size=len(fold.patients))
            for name in fold.predictions:
                values[name].append(fold.metric(name, drawn))
        for name in names:
            means[name].append(float(np.mean(values[name])) if values[name] else math.nan)
    return {name: np.array(values) for name, values in means.items()}


def interval(value: float | None, draws: np.ndarray) -> Sure:
    """Percentile interval of the resampled values."""
    defined = draws[np.isfinite(draws)]
    if value is None or not len(defined):
        return Sure(value, None, None)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Sure(value, float(low), float(high))


def only_common(rounds: Sequence[Round], one: str, other: str) -> list[dict[str, Predictions]]:
    """Predictions of two systems on their common folds and patients; an empty entry for other folds."""
    pairs = []
    for fold in rounds:
        if one in fold and other in fold:
            common = set(fold[one].patients) & set(fold[other].patients)
            pairs.append({name: _select_patients(fold[name], common) for name in (one, other)} if common else {})
        else:
            pairs.append({})
    return pairs


def _select_patients(p: Predictions, patients: set[str]) -> Predictions:
    keep = [i for i, row in enumerate(p.rows) if row.case_id in patients]
    return p if len(keep) == len(p.rows) else Predictions(tuple(p.rows[i] for i in keep), p.logits[keep], math.nan)


class _Fold:
    """Fold prepared for resampling."""

    def __init__(self, predictions: Round, task: Task) -> None:
        self.predictions, self.task = predictions, task
        self.patients = list(dict.fromkeys(case for p in predictions.values() for case in p.patients))
        number = {case: i for i, case in enumerate(self.patients)}
        self.places: dict[str, list[list[int]]] = {}
        for name, p in predictions.items():
            places: list[list[int]] = [[] for _ in self.patients]
            for i, case in enumerate(p.patients):
                places[number[case]].append(i)
            self.places[name] = places
        self._renamed: dict[tuple[str, int], SlideRow] = {}

    def metric(self, name: str, drawn: np.ndarray) -> float:
        """Main metric on the resampled patients `drawn` (indices); a patient drawn twice counts as two."""
        places, p = self.places[name], self.predictions[name]
        index = [(i, k) for k, patient in enumerate(drawn.tolist()) for i in places[patient]]
        if not index:
            return math.nan
        rows = tuple(self._copy(p.rows[i], k) for i, k in index)
        return self.task.main_metric(Predictions(rows, p.logits[[i for i, _ in index]], math.nan))

    def _copy(self, row: SlideRow, k: int) -> SlideRow:
        key = row.slide_id, k
        if key not in self._renamed:
            self._renamed[key] = replace(row, case_id=f"{row.case_id}#{k}")
        return self._renamed[key]
