"""Figures against values by hand and against scikit-learn; our rule for a class that is absent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from longvit.tasks.metrics import auc, bootstrap_auc, classification_metrics


def random_case(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)) + np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_binary_auc_counts_ties_half() -> None:
    """Positives .8, .5, negatives .5, .2, .9: of 6 pairs 3 are right and one is a tie."""
    p = np.array([0.8, 0.5, 0.5, 0.2, 0.9])
    assert auc([1, 1, 0, 0, 0], np.stack([1 - p, p], 1)) == pytest.approx(3.5 / 6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_figures_agree_with_scikit_learn(classes: int) -> None:
    labels, p = random_case(200, classes, classes)
    figures = classification_metrics(labels, p)
    score = p[:, 1] if classes == 2 else p
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, score, multi_class="ovr", average="macro"))
    assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))
    assert figures["accuracy"] == (labels == p.argmax(1)).mean()
    average = "binary" if classes == 2 else "macro"
    assert figures["f1"] == pytest.approx(f1_score(labels, p.argmax(1), average=average))


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    """As the subtyping protocol has it: not 0, and no error."""
    labels, p = random_case(60, 3, 1)
    labels = np.where(labels == 2, 0, labels)
    expected = np.mean([roc_auc_score(labels == c, p[:, c]) for c in (0, 1)])
    assert auc(labels, p) == pytest.approx(expected)
    figures = classification_metrics(labels, p)
    guess = p.argmax(1)
    assert figures["balanced_accuracy"] == pytest.approx(np.mean([(guess[labels == c] == c).mean() for c in (0, 1)]))


def test_one_class_or_no_slide_has_no_auc() -> None:
    assert math.isnan(auc([1, 1], [[0.1, 0.9], [0.2, 0.8]]))
    assert math.isnan(auc([2, 2, 2], np.full((3, 3), 1 / 3)))
    assert all(math.isnan(v) for v in classification_metrics(np.zeros(0), np.zeros((0, 2))).values())
    assert math.isnan(bootstrap_auc([1, 1], [[0.1, 0.9], [0.2, 0.8]], ["a", "b"]).low)
    assert bootstrap_auc(np.zeros(0), np.zeros((0, 2)), []).resamples == 0


def test_the_interval_holds_the_auc_and_covers_about_95_in_100() -> None:
    """Scores N(1, 1) against N(0, 1): the true AUC is Phi(1 / sqrt 2) = .760."""
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 40)
        score = 1 / (1 + np.exp(-rng.normal(labels)))
        p = np.stack([1 - score, score], 1)
        interval = bootstrap_auc(labels, p, [str(i) for i in range(80)], resamples=60, seed=seed)
        assert interval.low <= auc(labels, p) <= interval.high
        inside += interval.low <= 0.760 <= interval.high
    assert 34 <= inside <= 40


def test_many_slides_of_few_patients_are_no_many_witnesses() -> None:
    """Eight copies of every slide change nothing when the patients are drawn, and narrow it when slides are."""
    labels, p = random_case(30, 2, 3)
    patients = [str(i) for i in range(30)]
    once = bootstrap_auc(labels, p, patients, resamples=200)
    many = bootstrap_auc(np.tile(labels, 8), np.tile(p, (8, 1)), patients * 8, resamples=200)
    wrong = bootstrap_auc(np.tile(labels, 8), np.tile(p, (8, 1)), [str(i) for i in range(240)], resamples=200)
    assert (many.low, many.high) == pytest.approx((once.low, once.high))
    assert wrong.high - wrong.low < 0.6 * (once.high - once.low)
    assert once == bootstrap_auc(labels, p, patients, resamples=200)
