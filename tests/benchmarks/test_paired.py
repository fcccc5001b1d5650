"""Paired intervals: AUCs against scikit-learn, and gaps that follow the cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score


def test_weighted_aucs_are_those_of_scikit_learn() -> None:
    from paired import weighted_aucs

    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 8, 40).astype(float)  # with ties
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    expected = [roc_auc_score(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(weighted_aucs(labels, scores, weights), expected, atol=1e-12)


def test_ranks_keep_the_auc_and_the_gap() -> None:
    from paired import gap, rounds_of, scored

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    ours, other = labels + 0.5 * rng.standard_normal(60), labels + 2 * rng.standard_normal(60)
    rows = [{"seed": 0, **scored("a", labels, scores)} for scores in (ours, other)]
    found = gap(rounds_of(rows[:1], rows[1:]))
    expected = roc_auc_score(labels, ours) - roc_auc_score(labels, other)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    assert found.low > 0


def test_an_interval_of_few_cases_is_wider_than_one_of_their_images() -> None:
    from paired import gap, rounds_of, scored

    rng = np.random.default_rng(2)
    case = np.repeat(np.arange(12), 10)
    labels = case % 2
    luck = np.repeat(rng.standard_normal(12), 10)  # images of a case share their error
    ours, other = labels + luck, labels + np.repeat(rng.standard_normal(12), 10)
    widths = []
    for cases in ([str(c) for c in case], []):
        rows = [{"seed": 0, **scored("a", labels, scores, cases)} for scores in (ours, other)]
        found = gap(rounds_of(rows[:1], rows[1:]))
        widths.append(found.high - found.low)
    assert widths[0] > 2 * widths[1]


def test_only_trials_of_the_same_seed_and_test_set_are_paired() -> None:
    from paired import rounds_of, scored

    columns = scored("a", [0, 1], [0.1, 0.2])
    ours = [{"seed": seed, **columns} for seed in (0, 1)]
    others = [{"seed": 1, **columns}, {"seed": 2, **columns}, {"seed": 0, **columns, "test_set": "b"}]
    assert len(rounds_of(ours, others)) == 1
