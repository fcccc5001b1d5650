"""Association of label and site: Cramér's V without bias (Bergsma 2013), and the label that a site predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvit.sites.robustness import codes

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Association:
    """Association of label and site."""

    v: float
    """Cramér's V, corrected for bias: 0 where they are independent, 1 where the site determines the label."""
    p: float
    """p value of χ² by permutation of the labels."""
    accuracy: float
    """Balanced accuracy of the label that is most frequent at the site among the other samples."""
    chance: float
    """One over the number of labels."""


def association(labels: Sequence[str], sites: Sequence[str], *, permutations: int = 999, seed: int = 0) -> Association:
    """Association of the labels and sites of samples.

    >>> from longvit.sites.association import association
    >>> round(association(["a"] * 20 + ["b"] * 20, ["x"] * 20 + ["y"] * 20).v, 2)
    1.0
    """
    label, site = codes(labels), codes(sites)
    rng = np.random.default_rng(seed)
    chi2 = _chi2(label, site)
    as_large = sum(_chi2(rng.permutation(label), site) >= chi2 - 1e-9 for _ in range(permutations))
    n_labels = int(label.max()) + 1
    return Association(
        _cramers_v(chi2, label, site), (1 + as_large) / (1 + permutations), _label_accuracy(label, site), 1 / n_labels
    )


def _table(label: Ints, site: Ints) -> NDArray[np.float64]:
    counts = np.zeros((label.max() + 1, site.max() + 1))
    np.add.at(counts, (label, site), 1)
    return counts


def _chi2(label: Ints, site: Ints) -> float:
    table = _table(label, site)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def _cramers_v(chi2: float, label: Ints, site: Ints) -> float:
    n, r, c = len(label), int(label.max()) + 1, int(site.max()) + 1
    if min(r, c) < 2 or n < 2:
        return 0.0
    phi2 = max(0.0, chi2 / n - (r - 1) * (c - 1) / (n - 1))
    r_corrected, c_corrected = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)
    smaller = min(r_corrected, c_corrected) - 1
    return float(min(1.0, (phi2 / smaller) ** 0.5)) if smaller > 0 else 0.0


def _label_accuracy(label: Ints, site: Ints) -> float:
    """Each sample is left out of its site's counts; a label counts by one over its number of samples."""
    own = np.eye(label.max() + 1)[label]
    others = _table(label, site).T[site] - own
    hits = (others / own.sum(0)).argmax(1) == label
    return float(np.mean([hits[label == c].mean() for c in np.unique(label)]))
