"""Metrics of numbers, grades and several labels: those of scikit-learn and scipy, on samples and on resamples."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from longvit.metrics.classification import Interval
from longvit.metrics.multilabel import bootstrap_multilabel, multilabel_metrics
from longvit.metrics.ordinal import bootstrap_ordinal, ordinal_metrics
from longvit.metrics.regression import bootstrap_regression, regression_metrics

Metrics = dict[str, float]


def regression_reference(y: np.ndarray, p: np.ndarray) -> Metrics:
    can_correlate = len(set(y)) > 1 and len(set(p)) > 1
    return {
        "r2": reference.r2_score(y, p) if len(set(y)) > 1 else math.nan,
        "mae": reference.mean_absolute_error(y, p),
        "rmse": reference.root_mean_squared_error(y, p),
        "pearson": stats.pearsonr(y, p)[0] if can_correlate else math.nan,
        "spearman": stats.spearmanr(y, p)[0] if can_correlate else math.nan,
    }


def auc_reference(y: np.ndarray, score: np.ndarray) -> float:
    return float(reference.roc_auc_score(y, score)) if len(set(y.tolist())) == 2 else math.nan


def mean_of(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def ordinal_reference(y: np.ndarray, p: np.ndarray, grades: tuple[str, ...]) -> Metrics:
    guess = p.argmax(1)
    above = p[:, ::-1].cumsum(1)[:, ::-1]  # summed in this order, so that equal sums are ties here too
    cuts = {f"auc_above_{g}": auc_reference(y > k, above[:, k + 1]) for k, g in enumerate(grades[:-1])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappa = reference.cohen_kappa_score(y, guess, weights="quadratic", labels=range(len(grades)))
        balanced = reference.balanced_accuracy_score(y, guess)
    return {
        "quadratic_kappa": kappa,
        "mae": reference.mean_absolute_error(y, guess),
        "auc": mean_of(list(cuts.values())),
        **cuts,
        "balanced_accuracy": balanced,
        "accuracy": reference.accuracy_score(y, guess),
    }


def multilabel_reference(y: np.ndarray, p: np.ndarray, columns: tuple[str, ...]) -> Metrics:
    values: Metrics = {}
    for c, name in enumerate(columns):
        rows = np.isfinite(y[:, c])
        truth, score = y[rows, c], p[rows, c]
        values[f"auc_{name}"] = auc_reference(truth, score)
        both = len(set(truth.tolist())) == 2
        values[f"average_precision_{name}"] = (
            float(reference.average_precision_score(truth, score)) if both else math.nan
        )
    macro = {
        metric: mean_of([values[f"{metric}_{name}"] for name in columns]) for metric in ("auc", "average_precision")
    }
    return macro | values


def check(found: Metrics, wanted: Metrics) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def numbers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    n = int(rng.integers(2, 30))
    y = rng.integers(0, 5, n) * 1.5
    return y, np.round(y + rng.normal(0, 2, n), int(rng.integers(0, 3))), [f"P{i}" for i in rng.integers(0, n, n)]


def grades(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    n = int(rng.integers(2, 30))
    p = np.round(rng.dirichlet(np.ones(4), n), 2)
    return rng.integers(0, 4, n), p, [f"P{i}" for i in rng.integers(0, n, n)]


def labels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    n = int(rng.integers(2, 30))
    y = rng.integers(0, 2, (n, 3)).astype(float)
    y[rng.random((n, 3)) < 0.3] = math.nan
    return y, np.round(rng.random((n, 3)), 1), [f"P{i}" for i in rng.integers(0, n, n)]


GRADES, COLUMNS = ("0", "1", "2", "5"), ("MSI", "BRAF", "KRAS")


def test_metrics_of_random_cohorts_are_those_of_scikit_learn_and_scipy() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y, p, _ = numbers(rng)
        check(regression_metrics(y, p), regression_reference(y, p))
        y, p, _ = grades(rng)
        check(ordinal_metrics(y, p, GRADES), ordinal_reference(y, p, GRADES))
        y, p, _ = labels(rng)
        check(multilabel_metrics(y, p, COLUMNS), multilabel_reference(y, p, COLUMNS))


def resampled(patients: list[str], resamples: int, seed: int) -> list[np.ndarray]:
    """Rows of each resample of the patients, drawn as the bootstrap draws them."""
    names, patient_of = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(resamples)]
    return [np.repeat(np.arange(len(patients)), times[patient_of]) for times in draws]


def check_intervals(found: dict[str, Interval], values: list[Metrics]) -> None:
    for name, interval in found.items():
        defined = [value[name] for value in values if not math.isnan(value[name])]
        assert interval.resamples == len(defined), name
        if defined:
            low, high = np.quantile(defined, [0.025, 0.975])
            assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12), name


def test_intervals_are_those_of_the_metrics_of_resampled_patients() -> None:
    rng = np.random.default_rng(5)
    y, p, patients = numbers(rng)
    draws = resampled(patients, 30, 3)
    check_intervals(
        bootstrap_regression(y, p, patients, resamples=30, seed=3), [regression_reference(y[i], p[i]) for i in draws]
    )
    y, p, patients = grades(rng)
    draws = resampled(patients, 30, 3)
    check_intervals(
        bootstrap_ordinal(y, p, GRADES, patients, resamples=30, seed=3),
        [ordinal_reference(y[i], p[i], GRADES) for i in draws],
    )
    y, p, patients = labels(rng)
    draws = resampled(patients, 30, 3)
    check_intervals(
        bootstrap_multilabel(y, p, COLUMNS, patients, resamples=30, seed=3),
        [multilabel_reference(y[i], p[i], COLUMNS) for i in draws],
    )


def test_no_slides_and_one_slide_have_no_metric_but_no_error() -> None:
    assert all(math.isnan(value) for value in regression_metrics([], []).values())
    assert all(math.isnan(value) for value in ordinal_metrics([], np.zeros((0, 3)), ("a", "b", "c")).values())
    assert all(math.isnan(v) for v in multilabel_metrics(np.zeros((0, 2)), np.zeros((0, 2)), ("a", "b")).values())
    one = regression_metrics([2.0], [3.0])
    assert one["mae"] == 1
    assert math.isnan(one["r2"])
    assert bootstrap_regression([], [], [], resamples=10)["r2"].resamples == 0
