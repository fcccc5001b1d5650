"""Metrics against values by hand and against scikit-learn; our rule for a class that is absent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

from longvit.metrics.classification import (
    METRICS,
    auc,
    average_precision,
    bootstrap,
    bootstrap_auc,
    classification_metrics,
    confusion,
    reliability,
)


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
    metrics = classification_metrics(labels, p)
    score = p[:, 1] if classes == 2 else p
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, score, multi_class="ovr", average="macro"))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))
    assert metrics["accuracy"] == (labels == p.argmax(1)).mean()
    average = "binary" if classes == 2 else "macro"
    assert metrics["f1"] == pytest.approx(f1_score(labels, p.argmax(1), average=average))
    one_hot = labels if classes == 2 else np.eye(classes, dtype=int)[labels]
    assert metrics["average_precision"] == pytest.approx(average_precision_score(one_hot, score, average="macro"))
    assert np.array_equal(confusion(labels, p), confusion_matrix(labels, p.argmax(1)))


@pytest.mark.parametrize("decimals", [1, 2])
def test_equal_scores_are_one_step_of_the_curves(decimals: int) -> None:
    """Rounded scores tie across the classes; a sort that breaks ties by position would be off."""
    labels, p = random_case(200, 2, 9)
    score = p[:, 1].round(decimals)
    tied = np.stack([1 - score, score], 1)
    assert auc(labels, tied) == pytest.approx(roc_auc_score(labels, score))
    assert average_precision(labels, tied) == pytest.approx(average_precision_score(labels, score))


def test_average_precision_by_hand() -> None:
    """Best first: hit, miss, hit, miss. Precision at the hits 1 and 2/3, each a recall of 1/2."""
    p = np.array([0.9, 0.7, 0.5, 0.1])
    assert average_precision([1, 0, 1, 0], np.stack([1 - p, p], 1)) == pytest.approx((1 + 2 / 3) / 2)


def test_calibration_error_by_hand() -> None:
    """Ten bins. Two slides at .85, one right: |.5 - .85|; two at .65, both right: |1 - .65|."""
    p = np.array([0.85, 0.85, 0.65, 0.65])
    found = reliability([0, 1, 0, 0], np.stack([p, 1 - p], 1), bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 2, 0]
    assert found.accuracy[[6, 8]].tolist() == [1.0, 0.5]
    assert found.ece == pytest.approx(0.35)
    assert reliability([0], [[0.75, 0.25]], bins=4).counts.tolist() == [0, 0, 1, 0]  # an edge belongs to the bin below
    assert reliability([0, 1], [[1.0, 0.0], [0.0, 1.0]]).ece == 0.0  # sure and right, in the last bin
    assert math.isnan(reliability(np.zeros(0), np.zeros((0, 2))).ece)


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_agrees_with_scikit_learn(classes: int) -> None:
    labels, p = random_case(300, classes, 5)
    found = reliability(labels, p)
    accuracy, confidence = calibration_curve(p.argmax(1) == labels, p.max(1), n_bins=15)
    filled = found.counts > 0
    assert found.accuracy[filled] == pytest.approx(accuracy)
    assert found.confidence[filled] == pytest.approx(confidence)
    weights = found.counts[filled] / 300
    assert found.ece == pytest.approx((weights * np.abs(accuracy - confidence)).sum())
    assert classification_metrics(labels, p)["ece"] == pytest.approx(found.ece)


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    """As the subtyping protocol has it: not 0, and no error."""
    labels, p = random_case(60, 3, 1)
    labels = np.where(labels == 2, 0, labels)
    expected = np.mean([roc_auc_score(labels == c, p[:, c]) for c in (0, 1)])
    assert auc(labels, p) == pytest.approx(expected)
    expected = np.mean([average_precision_score(labels == c, p[:, c]) for c in (0, 1)])
    assert average_precision(labels, p) == pytest.approx(expected)
    metrics = classification_metrics(labels, p)
    guess = p.argmax(1)
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean([(guess[labels == c] == c).mean() for c in (0, 1)]))
    assert metrics["f1"] == pytest.approx(f1_score(labels, guess, labels=[0, 1], average="macro"))


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


@pytest.mark.parametrize("classes", [2, 3])
def test_the_bootstrap_is_that_of_drawing_the_slides_one_by_one(classes: int) -> None:
    """The plain twin: every metric computed from the drawn patients' slides. Rare classes are absent at times."""
    labels, p = random_case(40, classes, 11)
    labels[labels == classes - 1] = 0
    labels[7] = classes - 1
    patients = np.array([f"P{i // 3}" for i in range(40)])
    names = np.unique(patients)
    rng = np.random.default_rng(4)
    drawn = []
    for _ in range(60):
        chosen = names[rng.integers(len(names), size=len(names))]
        slides = np.concatenate([np.flatnonzero(patients == name) for name in chosen])
        drawn.append(classification_metrics(labels[slides], p[slides]))
    found = bootstrap(labels, p, patients.tolist(), resamples=60, seed=4)
    assert tuple(found) == METRICS
    for name, interval in found.items():
        values = np.array([of[name] for of in drawn])
        values = values[np.isfinite(values)]
        assert interval.resamples == len(values)
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_many_slides_do_not_change_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resamples go through in pieces where slides are many; the pieces are no part of the result."""
    labels, p = random_case(50, 3, 2)
    patients = [str(i) for i in range(50)]
    whole = bootstrap(labels, p, patients, resamples=30)
    monkeypatch.setattr("longvit.metrics.classification._WEIGHTS_AT_ONCE", 350)
    assert bootstrap(labels, p, patients, resamples=30) == whole
