"""Prediction of the site, robustness index and association: the numbers of independent code."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association as scipy_association
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score
from tests.sites.made import made

from longvit.sites.association import association
from longvit.sites.robustness import codes, robustness_index
from longvit.sites.site_prediction import (
    RIDGE,
    balanced_accuracies,
    knn_predictor,
    linear_predictor,
    predict_sites,
    standardised,
    within,
)


@pytest.mark.filterwarnings("ignore:dataset:RuntimeWarning")  # croma: fewer samples with such neighbours
@pytest.mark.parametrize("seed", range(20))
def test_the_robustness_index_is_that_of_croma(seed: int) -> None:
    croma = pytest.importorskip("croma", reason="croma is not installed")
    data = made(seed, linked=seed % 2 == 0, stained=seed % 3 == 0, n=90 + 3 * seed, width=8 + seed)
    manifest = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(len(data.labels))],
            "image_path": "none",
            "label": data.labels,
            "group_id": data.patients,
            "site": data.sites,
        }
    )
    wanted = croma.RI.compute(data.vectors, manifest, confounder_column="site", k_candidates=[5, 11, 21, 51])
    found = robustness_index(data.vectors, data.labels, data.sites, data.patients)
    assert found.k == wanted.k
    assert abs(found.value - wanted.value) <= 1e-9
    assert abs(found.support - wanted.support) <= 1e-9


def test_the_robustness_index_by_hand() -> None:
    angle = np.deg2rad([0, 5, 40, 46])
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1)
    found = robustness_index(vectors, ["a", "a", "b", "b"], ["x", "y", "x", "y"], list("1234"), [1])
    assert (found.value, found.k, found.support) == (1, 1, 1)
    found = robustness_index(vectors, ["a", "b", "a", "b"], ["x", "x", "y", "y"], list("1234"), [1])
    assert found.value == 0
    found = robustness_index(vectors, ["a", "a", "b", "b"], ["x", "y", "x", "y"], list("1123"), [1])
    assert (found.value, found.support) == (2 / 3, 0.75)  # without itself: OS, neither, SO, SO


def test_the_linear_probe_is_scikit_learns_ridge() -> None:
    for width in (6, 400):
        data = made(3, linked=False, stained=True, width=width)
        x, site, patient = standardised(data.vectors), codes(data.sites), codes(data.patients)
        found = linear_predictor(x, patient, np.random.default_rng(5))(site)
        fold = (np.random.default_rng(5).permutation(patient.max() + 1) % 5)[patient]
        target = np.eye(3)[site]
        target = target / target.sum(0)
        for f in range(5):
            train, test = fold != f, fold == f
            assert not set(patient[train]) & set(patient[test])
            wanted = Ridge(alpha=RIDGE * width).fit(x[train], target[train] - target[train].mean(0))
            np.testing.assert_array_equal(found[test], wanted.predict(x[test]).argmax(1))


def test_a_patients_own_slides_are_no_neighbours() -> None:
    """Pairs of slides of one patient lie together, patients of the two sites at random: nothing can be predicted."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(60, 5)), 2, axis=0)
    sites, patients = ["a"] * 60 + ["b"] * 60, [str(i // 2) for i in range(120)]
    order = rng.permutation(60).repeat(2) * 2 + np.tile([0, 1], 60)
    site = codes(sites)[order]
    patient = codes(np.array(patients)[order])
    accuracy = balanced_accuracy_score(site, knn_predictor(standardised(vectors), patient, k=1)(site))
    assert accuracy < 0.7


def test_balanced_accuracy_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    site, found = rng.integers(4, size=80), rng.integers(4, size=80)
    weights = rng.integers(1, 4, size=(3, 80)).astype(float)
    for value, weight in zip(balanced_accuracies(found == site, site, weights), weights, strict=True):
        assert value == pytest.approx(balanced_accuracy_score(site, found, sample_weight=weight), abs=1e-12)


def test_sites_are_permuted_within_labels_only() -> None:
    rng = np.random.default_rng(0)
    site, stratum = rng.integers(3, size=50), rng.integers(2, size=50)
    permuted = within(stratum, site, rng)
    assert (permuted != site).any()
    for s in (0, 1):
        np.testing.assert_array_equal(np.bincount(permuted[stratum == s]), np.bincount(site[stratum == s]))


def test_the_p_value_of_sites_at_random_is_uniform() -> None:
    values = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, sites = rng.normal(size=(40, 5)), [str(s) for s in rng.integers(2, size=40)]
        values += [one.p for one in predict_sites(x, sites, list(map(str, range(40))), [""] * 40, permutations=99)]
    assert 0.3 < np.mean(values) < 0.7
    assert np.mean(np.array(values) <= 0.05) <= 0.15


def test_the_association_is_scipys() -> None:
    data = made(0, linked=True, stained=False)
    found = association(data.labels, data.sites, permutations=199)
    table = pd.crosstab(pd.Series(data.labels), pd.Series(data.sites)).to_numpy()
    chi2, n = chi2_contingency(table, correction=False).statistic, table.sum()
    assert math.sqrt(chi2 / n) == pytest.approx(scipy_association(table, method="cramer"))
    phi2 = chi2 / n - 2 / (n - 1)
    smaller = 2 - 1 / (n - 1) - 1
    assert found.v == pytest.approx(math.sqrt(phi2 / smaller))
    assert found.p == 1 / 200
    assert found.chance == 0.5
    assert found.accuracy > 0.7
    independent = association(["a", "b"] * 50, ["x"] * 50 + ["y"] * 50)
    assert (independent.v, independent.p) == (0, 1)
