"""Prediction of the site from vectors: k-NN and a linear probe, by patient, against permuted sites.

- k-NN: vote of the 11 nearest vectors of other patients, in Euclidean distance after standardisation; a vote of a site
  counts by one over the number of its samples.
- Linear probe: ridge regression of the sites (one column each, weighted in the same way), in five folds by patient.
  It is linear in the sites, so each permutation costs one product of matrices.

Both are judged by balanced accuracy. Chance is their mean over permuted sites. Where labels are given, sites are
permuted only among samples of one label: then a site that is found by its share of a label does not count.

N samples, D width, S sites, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvit.sites.robustness import codes, nearest_of_others

NEIGHBOURS, FOLDS, RIDGE = 11, 5, 1.0
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SitePrediction:
    """Balanced accuracy of a prediction of the site."""

    method: str
    """`knn` or `linear`."""
    accuracy: float
    """Mean over the sites of the fraction that is found."""
    low: float
    high: float
    """Bounds of its 95 % interval, resampled by patient."""
    chance: float
    """Mean over permuted sites."""
    p: float
    """Fraction of permutations, with the data themselves, that are at least as accurate."""


def predict_sites(
    vectors: NDArray[np.floating],
    sites: Sequence[str],
    patients: Sequence[str],
    strata: Sequence[str],
    *,
    permutations: int = 999,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[SitePrediction, SitePrediction]:
    """Prediction of the sites from vectors (N, D), by k-NN and by a linear probe.

    Sites are permuted among samples of one of the `strata`, e.g. of one label.

    >>> import numpy as np
    >>> from longvit.sites.site_prediction import predict_sites
    >>> vectors = np.random.default_rng(0).normal(size=(60, 4))
    >>> vectors[:30, 0] += 4
    >>> knn, linear = predict_sites(vectors, ["a"] * 30 + ["b"] * 30, [str(i) for i in range(60)], [""] * 60)
    >>> linear.accuracy > 0.9, linear.p
    (True, 0.001)
    """
    site, patient, stratum = codes(sites), codes(patients), codes(strata)
    x = standardised(vectors)
    rng = np.random.default_rng(seed)
    permuted = np.stack([within(stratum, site, rng) for _ in range(permutations)])
    drawn = _patient_weights(patient, resamples, rng)
    return (
        _judged("knn", knn_predictor(x, patient), site, permuted, drawn),
        _judged("linear", linear_predictor(x, patient, rng), site, permuted, drawn),
    )


def standardised(vectors: NDArray[np.floating]) -> Floats:
    """Vectors with mean 0 and SD 1 in each column; a constant column is 0."""
    x = np.asarray(vectors, np.float64)
    x = x - x.mean(0)
    sd = x.std(0)
    return x / np.where(sd > 0, sd, 1)


def within(stratum: Ints, site: Ints, rng: np.random.Generator) -> Ints:
    """Sites permuted among the samples of each stratum."""
    permuted = site.copy()
    for s in np.unique(stratum):
        members = np.flatnonzero(stratum == s)
        permuted[members] = site[rng.permutation(members)]
    return permuted


def knn_predictor(x: Floats, patient: Ints, k: int = NEIGHBOURS) -> Callable[[Ints], Ints]:
    """Predictor by k-NN: sites (N,) → predicted sites (N,)."""
    squares = (x**2).sum(1)
    nearest = nearest_of_others(squares[:, None] + squares - 2 * x @ x.T, patient, k)
    known = nearest >= 0

    def predict(site: Ints) -> Ints:
        weight = 1 / np.bincount(site)[site]
        votes = np.zeros((len(site), site.max() + 1))
        rows = np.broadcast_to(np.arange(len(site))[:, None], nearest.shape)[known]
        np.add.at(votes, (rows, site[nearest[known]]), weight[nearest[known]])
        return votes.argmax(1)

    return predict


def linear_predictor(x: Floats, patient: Ints, rng: np.random.Generator, folds: int = FOLDS) -> Callable[[Ints], Ints]:
    """Predictor by ridge regression in folds by patient: sites (N,) → predicted sites (N,)."""
    groups = rng.permutation(patient.max() + 1) % min(folds, patient.max() + 1)
    fold = groups[patient]
    parts = []
    for f in np.unique(fold):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        mean = x[train].mean(0)
        a, b = x[train] - mean, x[test] - mean
        penalty = RIDGE * a.shape[1]  # columns have SD 1: the penalty grows with their number, as the squared norms do
        if a.shape[1] <= len(a):
            hat = b @ np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T)
        else:
            hat = np.linalg.solve(a @ a.T + penalty * np.eye(len(a)), a @ b.T).T
        parts.append((train, test, hat))

    def predict(site: Ints) -> Ints:
        target = np.eye(site.max() + 1)[site]
        target = target / target.sum(0)
        predicted = np.zeros(len(site), np.int64)
        for train, test, hat in parts:
            centred = target[train] - target[train].mean(0)
            predicted[test] = (hat @ centred).argmax(1)
        return predicted

    return predict


def balanced_accuracies(hits: NDArray[np.bool_], site: Ints, weights: Floats) -> Floats:
    """Balanced accuracy of hits (N,) under each of the weights (R, N): mean over the sites that are present."""
    present = np.eye(site.max() + 1)[site]
    total, found = weights @ present, weights @ (present * hits[:, None])
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(total > 0, found / total, np.nan), axis=1)


def _judged(
    method: str, predict: Callable[[Ints], Ints], site: Ints, permuted: NDArray[np.int64], drawn: Floats
) -> SitePrediction:
    ones = np.ones((1, len(site)))
    hits = predict(site) == site
    accuracy = float(balanced_accuracies(hits, site, ones)[0])
    chances = np.array([balanced_accuracies(predict(other) == other, other, ones)[0] for other in permuted])
    low, high = np.quantile(balanced_accuracies(hits, site, drawn), [0.025, 0.975])
    p = (1 + int((chances >= accuracy - 1e-12).sum())) / (1 + len(chances))
    return SitePrediction(method, accuracy, float(low), float(high), float(chances.mean()), p)


def _patient_weights(patient: Ints, resamples: int, rng: np.random.Generator) -> Floats:
    """Counts of each sample in the bootstrap resamples of the patients, (R, N)."""
    n = patient.max() + 1
    drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)]
    return np.stack(drawn)[:, patient].astype(np.float64)
