"""DeLong's variance against its definition over all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from longvit.metrics.delong import delong_covariance, delong_interval, delong_test, delong_unpaired


def by_pairs(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and covariance by DeLong's equations, a loop over all pairs."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positive), len(negative)
    kernel = np.zeros((len(scores), m, n))
    for s, row in enumerate(scores):
        for i, a in enumerate(positive):
            for j, b in enumerate(negative):
                kernel[s, i, j] = 1.0 if row[a] > row[b] else 0.5 if row[a] == row[b] else 0.0
    aucs = kernel.mean((1, 2))
    v10, v01 = kernel.mean(2) - aucs[:, None], kernel.mean(1) - aucs[:, None]
    return aucs, v10 @ v10.T / (m - 1) / m + v01 @ v01.T / (n - 1) / n


@pytest.mark.parametrize("seed", range(20))
def test_the_covariance_is_that_of_all_pairs_with_and_without_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(0, 2, rng.integers(5, 80))]
    scores = rng.normal(size=(3, len(labels))) + labels * [[0.0], [0.5], [2.0]]
    if seed % 2:
        scores = scores.round(0)
    aucs, covariance = delong_covariance(labels, scores)
    expected_aucs, expected = by_pairs(labels, scores)
    np.testing.assert_allclose(aucs, expected_aucs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(aucs, [roc_auc_score(labels, row) for row in scores], rtol=0, atol=1e-12)


def test_a_test_is_the_normal_test_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = rng.normal(size=(2, 60)) + labels
    aucs, c = by_pairs(labels, scores)
    sd = math.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    test = delong_test(labels, scores[0], scores[1])
    assert test.value == pytest.approx(aucs[0] - aucs[1], abs=1e-12)
    assert test.high - test.low == pytest.approx(2 * 1.959963984540054 * sd, abs=1e-12)
    assert test.p == pytest.approx(math.erfc(abs(aucs[0] - aucs[1]) / sd / math.sqrt(2)), abs=1e-12)
    other = delong_unpaired(labels, scores[0], labels, scores[1])
    assert other.high - other.low == pytest.approx(2 * 1.959963984540054 * math.sqrt(c[0, 0] + c[1, 1]), abs=1e-12)


def test_an_interval_is_not_defined_with_one_case_of_a_class_and_does_not_leave_0_to_1() -> None:
    one = delong_interval([0, 0, 1], [0.1, 0.4, 0.3])
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(delong_interval([1, 1], [0.1, 0.2]).value)
    high = delong_interval([0, 0, 0, 0, 1, 1, 1], [0, 1, 2, 5, 4, 6, 7])
    assert high.high == 1


def test_equal_scores_have_difference_0_and_no_p_value() -> None:
    test = delong_test([0, 1, 0, 1], [1, 2, 3, 4], [1, 2, 3, 4])
    assert test.value == 0
    assert math.isnan(test.p)
