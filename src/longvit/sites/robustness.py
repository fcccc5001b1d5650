"""Robustness index of an embedding (PathoROB; Kömen et al. 2025, arXiv 2507.17845): tissue or hospital?

Among the k nearest neighbours of every sample, SO have the same label and another site, OS another label and the same
site:  RI = ΣSO / (ΣSO + ΣOS).  1: neighbours share the label; 0: they share the site. The k is the one of the
candidates whose k-NN vote predicts the labels best. Neighbours of the same patient are not counted. The numbers are
those of the package croma, against which the tests compare.

N samples, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

K_CANDIDATES = (5, 11, 21, 51)


@dataclass(frozen=True)
class RobustnessIndex:
    """Robustness index of an embedding."""

    value: float
    """0 to 1; 0.5 where no neighbour is SO or OS."""
    k: int
    """Neighbours of every sample."""
    support: float
    """Fraction of the samples that have an SO or OS neighbour."""


def robustness_index(
    vectors: NDArray[np.floating],
    labels: Sequence[str],
    sites: Sequence[str],
    patients: Sequence[str],
    k_candidates: Sequence[int] = K_CANDIDATES,
) -> RobustnessIndex:
    """Robustness index of vectors (N, D), by cosine distance.

    >>> import numpy as np
    >>> from longvit.sites.robustness import robustness_index
    >>> vectors = np.random.default_rng(0).normal(size=(40, 8))
    >>> robustness_index(vectors, ["a", "b"] * 20, ["x"] * 20 + ["y"] * 20, [str(i) for i in range(40)]).k
    11
    """
    label, site, patient = codes(labels), codes(sites), codes(patients)
    neighbours = nearest_of_others(cosine_distances(vectors), patient, max(k_candidates))
    k = max(k_candidates, key=lambda k: _label_accuracy(neighbours[:, :k], label))
    nearest = neighbours[:, :k]
    known = nearest >= 0
    same_label, same_site = label[nearest] == label[:, None], site[nearest] == site[:, None]
    so, os = known & same_label & ~same_site, known & ~same_label & same_site
    total = so.sum() + os.sum()
    value = float(so.sum() / total) if total else 0.5
    return RobustnessIndex(value, k, float((so | os).any(1).mean()))


def codes(names: ArrayLike) -> NDArray[np.int64]:
    """Number of each name, in the order of their first appearance."""
    found: dict[str, int] = {}
    return np.array([found.setdefault(str(name), len(found)) for name in np.asarray(names, object)], np.int64)


def cosine_distances(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distances (N, N); a vector of zeros is at distance 1 of all."""
    x = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    units = x / np.where(norms > 0, norms, 1)
    return 1 - units @ units.T


def nearest_of_others(distances: NDArray[np.float64], patient: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The k nearest samples of other patients, nearest first, (N, k); -1 where there are fewer."""
    found = np.full((len(distances), k), -1, np.int64)
    for i, row in enumerate(distances):
        others = np.flatnonzero(patient != patient[i])
        order = others[np.argsort(row[others], kind="stable")[:k]]
        found[i, : len(order)] = order
    return found


def _label_accuracy(nearest: NDArray[np.int64], label: NDArray[np.int64]) -> float:
    """Balanced accuracy of the vote of the neighbours; samples without neighbours are not counted."""
    votes = (label[nearest][..., None] == np.arange(label.max() + 1)) & (nearest >= 0)[..., None]
    voted = (nearest >= 0).any(1)
    hits = votes.sum(1).argmax(1) == label
    return float(np.mean([hits[voted & (label == c)].mean() for c in np.unique(label[voted])]))
