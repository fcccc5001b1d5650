"""Multilabel metrics: AUC and average precision of each label column, over the slides that have its label.

`auc` and `average_precision` are means over the columns in which both classes occur (macro). Bootstrap intervals are
resampled by patient. The tests compare with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longvit.metrics.classification import Interval, bootstrap_weighted, mean_of_defined, weighted_metrics

_RANKING = ("auc", "average_precision")


def multilabel_metrics(labels: ArrayLike, probabilities: ArrayLike, columns: Sequence[str]) -> dict[str, float]:
    """Macro `auc` and `average_precision`, then `auc_<column>` and `average_precision_<column>` of each column.

    `labels` (N, C): 1, 0, or NaN where a slide has no label of the column. `probabilities` (N, C) of label 1. NaN
    where not defined.
    """
    y, p = _checked(labels, probabilities)
    values = weighted_multilabel(y, p, np.ones((1, len(y))), columns)
    return {name: float(value[0]) for name, value in values.items()}


def bootstrap_multilabel(
    labels: ArrayLike,
    probabilities: ArrayLike,
    columns: Sequence[str],
    patients: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % interval of each metric, resampled by patient with all slides of the patient."""
    y, p = _checked(labels, probabilities)
    assert len(patients) == len(y)
    return bootstrap_weighted(
        lambda weights: weighted_multilabel(y, p, weights, columns), patients, resamples=resamples, seed=seed
    )


def weighted_multilabel(
    y: NDArray[np.float64], p: NDArray[np.float64], weights: NDArray[np.float64], columns: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of labels and probabilities (N, C) under each of the weights (B, N): metric -> (B,)."""
    by_column = []
    for c in range(len(columns)):
        rows = np.flatnonzero(np.isfinite(y[:, c]))
        score = np.stack([-p[rows, c], p[rows, c]], 1)
        by_column.append(weighted_metrics(y[rows, c].astype(np.int64), score, weights[:, rows], _RANKING))
    return {
        **{name: mean_of_defined(np.stack([values[name] for values in by_column], 1)) for name in _RANKING},
        **{
            f"{name}_{column}": values[name]
            for column, values in zip(columns, by_column, strict=True)
            for name in _RANKING
        },
    }


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    assert y.shape == p.shape, f"labels {y.shape}, probabilities {p.shape}"
    return y, p
