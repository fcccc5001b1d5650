"""Thresholds, predictive values, net benefit and calibration against scikit-learn and the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, confusion_matrix, roc_curve

from longvit.metrics.calibration import calibration, fit_logistic, logits_of, recalibrated
from longvit.metrics.decision import counts_at, net_benefit, operating_point, youden_threshold


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 2, 80)]
    p = 1 / (1 + np.exp(-(rng.normal(size=82) + y)))
    return y, p.round(2) if seed % 2 else p


@pytest.mark.parametrize("seed", range(10))
def test_the_threshold_is_that_of_the_roc_curve(seed: int) -> None:
    y, p = case(seed)
    fpr, tpr, thresholds = roc_curve(y, p, drop_intermediate=False)
    n1, n0 = int(y.sum()), int((1 - y).sum())
    best = np.rint(tpr * n1 * n0 - fpr * n0 * n1).argmax()
    assert youden_threshold(y, p) == thresholds[best]


@pytest.mark.parametrize("seed", range(4))
def test_an_operating_point_is_that_of_the_confusion_matrix(seed: int) -> None:
    y, p = case(seed)
    tn, fp, fn, tp = confusion_matrix(y, p >= 0.6).ravel()
    point = operating_point(y, p, 0.6)
    assert point == {
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
    }
    counts = counts_at(y, p, 0.6)
    assert list(counts.values()) == [tp, fp, tn, fn]
    own = operating_point(y, p, 0.6, prevalence=y.mean())
    assert own == pytest.approx(point, abs=1e-12)
    rare = operating_point(y, p, 0.6, prevalence=0.01)
    sens, spec = point["sensitivity"], point["specificity"]
    assert rare["ppv"] == pytest.approx(sens * 0.01 / (sens * 0.01 + (1 - spec) * 0.99), abs=1e-12)


def test_net_benefit_is_that_of_the_counts() -> None:
    y, p = case(1)
    grid = np.array([0.1, 0.3, 0.62])
    model, everyone = net_benefit(y, p, grid)
    for t, value, of_all in zip(grid, model, everyone, strict=True):
        n = counts_at(y, p, t)
        expected = n["true_positive"] / len(y) - n["false_positive"] / len(y) * t / (1 - t)
        assert value == pytest.approx(expected, abs=1e-12)
        assert of_all == pytest.approx(y.mean() - (1 - y.mean()) * t / (1 - t), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_slope_and_intercept_are_those_of_an_unpenalised_logistic_regression(seed: int) -> None:
    y, p = case(seed)
    fitted = calibration(y, p)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-14, max_iter=1000)
    model.fit(logits_of(p)[:, None], y)
    assert fitted.slope == pytest.approx(model.coef_[0, 0], abs=1e-9)
    assert fitted.intercept == pytest.approx(model.intercept_[0], abs=1e-9)
    assert fitted.brier == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    x = logits_of(p)
    large = minimize_scalar(lambda a: float((np.logaddexp(0, a + x) - y * (a + x)).sum()), tol=1e-12)
    assert fitted.in_the_large == pytest.approx(float(large.x), abs=1e-5)
    again = calibration(y, recalibrated(p, fitted.intercept, fitted.slope))
    assert again.slope == pytest.approx(1, abs=1e-9)
    assert again.intercept == pytest.approx(0, abs=1e-9)


def test_separated_classes_have_no_slope_and_one_class_has_no_calibration() -> None:
    assert math.isnan(fit_logistic([0, 0, 1, 1], [1, 2, 3, 4])[1])
    assert math.isnan(fit_logistic([0, 1, 0, 1], [1, 1, 1, 1])[1])
    assert math.isnan(calibration([1, 1], [0.5, 0.7]).in_the_large)
    assert math.isnan(youden_threshold([1, 1], [0.5, 0.7]))
