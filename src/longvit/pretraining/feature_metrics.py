"""Metrics of frozen features: k-NN and linear probe on labelled regions, rank and spread on any regions.

k-NN (Wu et al. 2018, as in DINO's `eval_knn.py`): the k regions of largest cosine s to a region vote for their class
with weight exp(s / T). Linear probe: a logistic regression on standardised features. Both exclude regions of the same
group (slide, patient), which stain alone would identify. DINO's code has a separate training set; here neighbours of
the same group are skipped, and folds are disjoint by group.

    RankMe = exp(−Σ p_k log p_k),   p_k = σ_k / Σ σ + 1e-7      (Garrido et al. 2023, arXiv 2210.02885)

σ: singular values of the features, not centred. RankMe is at most min(n, D). A direction common to all features pulls
it towards 1, so it is comparable over a run, not between networks.

n regions, D features, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longvit.metrics.classification import classification_metrics

K = 20
TEMPERATURE = 0.07
FOLDS = 5
# Strengths tried by the inner folds. On standardised features the loss is flat around the optimum. Regularisation
# weaker than 1 overfits a few hundred regions of some hundred features.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_INNER_FOLDS = 3
_EPSILON = 1e-7
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe; each region is classified by regions of other groups."""

    accuracy: float
    balanced: float
    """Mean recall over the classes; chance is 1 / C."""
    auc: float
    """`longvit.metrics.classification.auc`."""
    probabilities: NDArray[np.float64]
    """(n, C); a row sums to 1. `longvit.metrics.classification.bootstrap` with the groups gives intervals."""

    @property
    def predictions(self) -> NDArray[np.int64]:
        """Predicted classes, int64 (n,)."""
        return self.probabilities.argmax(1)


def knn_probe(
    features: ArrayLike, labels: ArrayLike, groups: Sequence[str], *, k: int = K, temperature: float = TEMPERATURE
) -> ProbeResult:
    """DINO's weighted k-NN without the region's own group.

    `features` (n, D) of any length, `labels` int (n,) in 0 … C − 1, `groups` n names, two different ones at least.
    Where the other groups have fewer than k regions, all of them vote.
    """
    x, y, group = _checked(features, labels, groups)
    x = unit_rows(x)
    votes = np.zeros((len(y), int(y.max()) + 1))
    k = min(k, len(y) - 1)
    for rows in _chunks(len(y)):
        cosine = x[rows] @ x.T
        cosine[group[rows, None] == group] = -np.inf
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        s = np.take_along_axis(cosine, nearest, 1)
        weights = np.exp((s - s.max(1, keepdims=True)) / temperature)  # 0 for the own group
        np.add.at(votes, (np.arange(len(y))[rows, None], y[nearest]), weights)
    return _result(y, votes / votes.sum(1, keepdims=True))


def linear_probe(
    features: ArrayLike, labels: ArrayLike, groups: Sequence[str], *, folds: int = FOLDS, seed: int = 0
) -> ProbeResult:
    """Linear probe: logistic regression on standardised features with balanced classes, cross-validated by group.

    Each region is classified in the fold that holds its group out. The regularisation strength is selected within the
    training part, by folds disjoint by group again. With fewer groups than `folds`, a fold per group.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    x, y, group = _checked(features, labels, groups)
    folds = min(folds, len(np.unique(group)), int(np.bincount(y)[np.unique(y)].min()))
    probabilities = np.zeros((len(y), int(y.max()) + 1))
    outer = StratifiedGroupKFold(max(2, folds), shuffle=True, random_state=seed)
    for train, test in outer.split(x, y, group):
        if len(np.unique(y[train])) == 1:  # nothing to tell apart
            probabilities[test, y[train[0]]] = 1
            continue
        fitted = _fit(x[train], y[train], group[train], seed)
        probabilities[np.ix_(test, fitted.classes_)] = fitted.predict_proba(x[test])
    return _result(y, probabilities)


def rankme(features: ArrayLike) -> float:
    """RankMe of (n, D): 1 where all features are multiples of one, up to min(n, D). NaN where all are 0."""
    sigma = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    if not sigma.sum():
        return math.nan
    p = sigma / sigma.sum() + _EPSILON
    return float(np.exp(-(p * np.log(p)).sum()))


def feature_std(features: ArrayLike) -> float:
    """Spread of the directions of (n, D): 0 where all are the same, about 1 where they cover the sphere.

    Standard deviation over the regions of each coordinate of the unit vectors, averaged, times √D (Chen and He 2021,
    arXiv 2011.10566, figure 2).
    """
    x = unit_rows(np.asarray(features, dtype=np.float64))
    return float(x.std(0).mean() * math.sqrt(x.shape[1]))


def unit_rows(features: ArrayLike) -> NDArray[np.float64]:
    """Features (n, D) with rows of length 1; a row of zeros is unchanged."""
    x = np.asarray(features, dtype=np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _fit(x: NDArray[np.float64], y: NDArray[np.int64], group: NDArray[np.int64], seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced"))
    groups_per_class = [len(np.unique(group[y == c])) for c in np.unique(y)]
    inner = min(_INNER_FOLDS, *groups_per_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest strength, which is then not selected
        if inner < 2:  # a class of one group cannot be split: the middle strength
            return model.set_params(logisticregression__C=_STRENGTHS[len(_STRENGTHS) // 2]).fit(x, y)
        search = GridSearchCV(
            model,
            {"logisticregression__C": _STRENGTHS},
            scoring="balanced_accuracy",
            cv=StratifiedGroupKFold(inner, shuffle=True, random_state=seed),
        )
        return search.fit(x, y, groups=group)


def _result(y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> ProbeResult:
    metrics = classification_metrics(y, probabilities)
    return ProbeResult(metrics["accuracy"], metrics["balanced_accuracy"], metrics["auc"], probabilities)


def _checked(
    features: ArrayLike, labels: ArrayLike, groups: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    x = np.asarray(features, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    assert x.ndim == 2 and len(x) == len(y) == len(group), (x.shape, y.shape, group.shape)  # noqa: PT018
    assert y.min() >= 0
    assert y.max() > 0, "one class only"
    assert group.max() > 0, "one group only: nothing to judge its regions by"
    return x, y, group


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, n))
