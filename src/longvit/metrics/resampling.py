"""Bootstrap by patient of any statistic, from the indices of the drawn rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def patient_draws(patients: Sequence[str], resamples: int, seed: int) -> Iterator[Indices]:
    """Indices of the rows of each resample: patients drawn with replacement, with all rows of each."""
    _, patient_of = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    if not len(patient_of):
        return
    order = np.argsort(patient_of, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(patient_of[order])) + 1)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.concatenate([rows_of[k] for k in rng.integers(len(rows_of), size=len(rows_of))])


def bootstrap_values(
    patients: Sequence[str], statistic: Callable[[Indices], Mapping[str, float]], *, resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Name -> values (resamples,) of a statistic; NaN where it is not defined in a resample."""
    values: dict[str, list[float]] = {}
    for rows in patient_draws(patients, resamples, seed):
        for name, value in statistic(rows).items():
            values.setdefault(name, []).append(value)
    return {name: np.array(drawn, dtype=np.float64) for name, drawn in values.items()}
