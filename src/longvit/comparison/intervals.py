"""How sure the mean over folds is: the patients of every fold drawn anew, the same ones for every system.

So the difference of two systems has an interval of its own, narrower than their two intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.tasks.task import Predictions, Task

Round = Mapping[str, Predictions]
"""System -> its predictions of one fold's evaluated patients."""


@dataclass(frozen=True)
class Sure:
    """A value and its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


def mean_of_folds(rounds: Sequence[Round], tasks: Sequence[Task], name: str) -> float | None:
    """The main figure of a system, mean over the folds in which it is there and defined."""
    values = [task.main_metric(of[name]) for of, task in zip(rounds, tasks, strict=True) if name in of]
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else None


def drawn_means(rounds: Sequence[Round], tasks: Sequence[Task], *, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """System -> (resamples,) mean over its folds of the main figure of the patients drawn; NaN where one fold has
    none (one class, no event)."""
    rng = np.random.default_rng(seed)
    folds = [_Fold(of, task) for of, task in zip(rounds, tasks, strict=True)]
    names = list(dict.fromkeys(name for of in rounds for name in of))
    means: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        values: dict[str, list[float]] = {name: [] for name in names}
        for fold in folds:
            drawn = rng.integers(len(fold.patients), size=len(fold.patients))
            for name in fold.of:
                values[name].append(fold.metric(name, drawn))
        for name in names:
            means[name].append(float(np.mean(values[name])) if values[name] else math.nan)
    return {name: np.array(of) for name, of in means.items()}


def interval(value: float | None, draws: np.ndarray) -> Sure:
    """The percentile interval of what was drawn."""
    defined = draws[np.isfinite(draws)]
    if value is None or not len(defined):
        return Sure(value, None, None)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Sure(value, float(low), float(high))


def only_common(rounds: Sequence[Round], one: str, other: str) -> list[dict[str, Predictions]]:
    """Two systems on the folds that both have, on the patients that both have in each."""
    found = []
    for of in rounds:
        if one in of and other in of:
            common = set(of[one].patients) & set(of[other].patients)
            found.append({name: _of_patients(of[name], common) for name in (one, other)} if common else {})
        else:
            found.append({})
    return found


def _of_patients(p: Predictions, patients: set[str]) -> Predictions:
    keep = [i for i, row in enumerate(p.rows) if row.case_id in patients]
    return p if len(keep) == len(p.rows) else Predictions(tuple(p.rows[i] for i in keep), p.logits[keep], math.nan)


class _Fold:
    """A fold ready to be drawn from."""

    def __init__(self, of: Round, task: Task) -> None:
        self.of, self.task = of, task
        self.patients = list(dict.fromkeys(case for p in of.values() for case in p.patients))
        number = {case: i for i, case in enumerate(self.patients)}
        self.places: dict[str, list[list[int]]] = {}
        for name, p in of.items():
            places: list[list[int]] = [[] for _ in self.patients]
            for i, case in enumerate(p.patients):
                places[number[case]].append(i)
            self.places[name] = places
        self._renamed: dict[tuple[str, int], SlideRow] = {}

    def metric(self, name: str, drawn: np.ndarray) -> float:
        """The main figure where patients `drawn` (numbers, some twice) are those that there are; a patient drawn twice
        counts as two."""
        places, p = self.places[name], self.of[name]
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
