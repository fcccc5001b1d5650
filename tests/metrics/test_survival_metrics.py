"""Survival metrics against values by hand, against scikit-survival on random data, and against published risks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.conftest import shared

from longvit.errors import InputError
from longvit.metrics.survival import (
    bootstrap_c_index,
    brier_score,
    c_index,
    integrated_brier_score,
    kaplan_meier,
    log_rank,
    time_dependent_auc,
    uno_c_index,
)

SEEDS = range(6)


def cohort(seed: int, n: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """months, event, risk; odd seeds have whole months and rounded risks: ties everywhere."""
    rng = np.random.default_rng(seed)
    hazard = rng.normal(size=n)
    months, censored_at = rng.exponential(20 * np.exp(-hazard)), rng.exponential(25, n)
    event = months <= censored_at
    months, risk = np.minimum(months, censored_at), hazard + rng.normal(size=n)
    if seed % 2:
        months, risk = np.ceil(months), risk.round(0)
    return months, event, risk


def folds(seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any, Any], np.ndarray]:
    """Training rows, evaluation rows within the training follow-up, times."""
    train = cohort(seed + 100)[:2]
    months, event, risk = cohort(seed)
    keep = months < train[0].max()
    rows = months[keep], event[keep], risk[keep]
    return train, rows, np.unique(np.quantile(months[keep], [0.1, 0.2, 0.4, 0.6, 0.75]))


@pytest.fixture
def oracle() -> Any:
    return pytest.importorskip("sksurv.metrics")


def surv(months: np.ndarray, event: np.ndarray) -> Any:
    from sksurv.util import Surv

    return Surv.from_arrays(event, months)


# c-index --------------------


def test_c_index_worked_out_by_hand() -> None:
    """Times 1 event, 2 censored, 3 event, 3 censored, 4 event. Comparable: 1 with four others, 3 with its censored
    twin and with 4; 2 is never the first. Risks 3, 9, 2, 2, 2.5: (1,2) wrong, three right; (3,3+) tied, (3,4) wrong."""
    assert c_index([1, 2, 3, 3, 4], [1, 0, 1, 0, 1], [3, 9, 2, 2, 2.5]) == pytest.approx(3.5 / 6)


def test_two_events_at_one_time_are_no_pair() -> None:
    assert math.isnan(c_index([2, 2], [1, 1], [1, 2]))


def test_risks_within_the_tolerance_are_a_tie() -> None:
    assert c_index([1, 2], [1, 1], [0.5, 0.5 + 9e-9]) == 0.5
    assert c_index([1, 2], [1, 1], [0.5, 0.5 + 2e-8]) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_c_index_agrees_with_an_independent_library(seed: int, oracle: Any) -> None:
    months, event, risk = cohort(seed)
    expected = oracle.concordance_index_censored(event, months, risk)[0]
    assert c_index(months, event, risk) == pytest.approx(expected, abs=1e-12)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "folds"),
    [
        ("ucec", [0.6523, 0.5978, 0.6131, 0.6109, 0.6354]),
        ("luad", [0.6490, 0.6057, 0.5627, 0.6392, 0.6440]),
        ("brca", [0.6466, 0.4512, 0.5691, 0.6236, 0.6098]),
    ],
)
def test_published_risks_give_the_published_c_index_of_every_fold(name: str, folds: list[float]) -> None:
    table = pd.read_csv(shared("data/mcat/published_survival_predictions.csv.gz"))
    rows = table[(table["system"] == "mcat") & (table["cohort"] == name)]
    ours = [c_index(f["survival_months"], 1 - f["censorship"], f["risk"]) for _, f in rows.groupby("fold")]
    np.testing.assert_allclose(ours, folds, atol=5e-5)


# Inverse probability of censoring --------------------

# Training: 1 event, 2 censored (G falls to 2/3 there, of 3 at risk), 3 event, 4 censored (G 0).
TRAIN = ([1, 2, 3, 4], [1, 0, 1, 0])


def test_uno_worked_out_by_hand() -> None:
    """Events at 1 (G = 1, with three later ones) and at 3 (G = 2/3, with one): weights 1 and 9/4."""
    months, event, risk = [1, 2.5, 3, 3.5], [1, 0, 1, 0], [4, 5, 2, 1]
    assert uno_c_index(*TRAIN, months, event, risk) == pytest.approx((2 + 9 / 4) / (3 + 9 / 4))
    assert uno_c_index(*TRAIN, months, event, risk, tau=3) == pytest.approx(2 / 3)  # the event at 3 is not before 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [None, 12.0])
def test_uno_agrees_with_an_independent_library(seed: int, tau: float | None, oracle: Any) -> None:
    train, rows, _ = folds(seed)
    expected = oracle.concordance_index_ipcw(surv(*train), surv(*rows[:2]), rows[2], tau=tau)[0]
    assert uno_c_index(*train, *rows, tau=tau) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_time_dependent_auc_agrees_with_an_independent_library(seed: int, oracle: Any) -> None:
    train, rows, times = folds(seed)
    each, mean = oracle.cumulative_dynamic_auc(surv(*train), surv(*rows[:2]), rows[2], times)
    ours = time_dependent_auc(*train, *rows, times)
    np.testing.assert_allclose(ours.auc, each, atol=1e-8)
    assert ours.mean == pytest.approx(mean, abs=1e-8)


def test_time_dependent_auc_worked_out_by_hand() -> None:
    """At 3: cases 1 (weight 1) and 3 (weight 3/2), one control, whose risk lies between theirs."""
    found = time_dependent_auc(*TRAIN, [1, 2.5, 3, 3.5], [1, 0, 1, 0], [4, 5, 2, 3], [0.5, 3, 3.7])
    assert math.isnan(found.auc[0])  # no case yet
    assert found.auc[1] == pytest.approx(1 / 2.5)
    assert math.isnan(found.auc[2])  # no control left
    assert math.isnan(found.mean)


@pytest.mark.parametrize("seed", SEEDS)
def test_brier_score_agrees_with_an_independent_library(seed: int, oracle: Any) -> None:
    train, (months, event, risk), times = folds(seed)
    survival = np.exp(-np.outer(np.exp(risk / 2), times / 40))
    _, each = oracle.brier_score(surv(*train), surv(months, event), survival, times)
    np.testing.assert_allclose(brier_score(*train, months, event, survival, times), each, atol=1e-8)
    expected = oracle.integrated_brier_score(surv(*train), surv(months, event), survival, times)
    assert integrated_brier_score(*train, months, event, survival, times) == pytest.approx(expected, abs=1e-8)


def test_brier_score_worked_out_by_hand() -> None:
    """At 3: 1 and 3 had the event (G 1 and 2/3), 2.5 was censored and counts 0, 3.5 is past it (G(3) = 2/3)."""
    survival = np.array([[0.2], [0.9], [0.4], [0.7]])
    expected = (0.2**2 + 0.4**2 * 1.5 + 0.3**2 * 1.5) / 4
    assert brier_score(*TRAIN, [1, 2.5, 3, 3.5], [1, 0, 1, 0], survival, [3])[0] == pytest.approx(expected)


def test_beyond_the_training_follow_up_is_not_a_number_and_no_crash() -> None:
    months, event, risk = [1, 3, 9, 10], [1, 1, 1, 0], [4, 3, 2, 1]
    assert math.isnan(uno_c_index(*TRAIN, months, event, risk))
    assert uno_c_index(*TRAIN, months, event, risk, tau=4) == 1
    aucs = time_dependent_auc(*TRAIN, months, event, risk, [2, 9.5]).auc
    assert aucs[0] == 1
    assert math.isnan(aucs[1])
    scores = brier_score(*TRAIN, months, event, np.full((4, 2), 0.5), [2, 9.5])
    assert math.isfinite(scores[0])
    assert math.isnan(scores[1])
    assert math.isnan(integrated_brier_score(*TRAIN, months, event, np.full((4, 2), 0.5), [2, 9.5]))


# Kaplan-Meier and log-rank --------------------


def test_kaplan_meier_worked_out_by_hand() -> None:
    km = kaplan_meier([1, 2, 2, 3, 5], [1, 1, 0, 0, 1])
    assert km.times.tolist() == [1, 2, 3, 5]
    assert km.at_risk.tolist() == [5, 4, 2, 1]
    assert km.events.tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(km.survival, [0.8, 0.6, 0.6, 0])
    # At 1: variance of log S = 1/(5·4); on the log(-log) scale its root over |log .8|.
    theta = 1.959963984540054 * math.sqrt(1 / 20) / abs(math.log(0.8))
    assert km.lower[0] == pytest.approx(0.8 ** math.exp(theta))
    assert km.upper[0] == pytest.approx(0.8 ** math.exp(-theta))
    np.testing.assert_allclose(km.at([0, 1, 2.5, 99]), [1, 0.8, 0.6, 0])
    assert km.number_at_risk([0, 1, 2, 2.5, 6]).tolist() == [5, 5, 4, 2, 0]
    assert km.median() == 5


def test_kaplan_meier_knows_nothing_after_the_last_patient() -> None:
    km = kaplan_meier([1, 4], [1, 0])
    assert math.isnan(km.at([4.5])[0])
    assert km.at([4]) == 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_kaplan_meier_agrees_with_an_independent_library(seed: int) -> None:
    nonparametric = pytest.importorskip("sksurv.nonparametric")
    months, event, _ = cohort(seed)
    times, survival, (lower, upper) = nonparametric.kaplan_meier_estimator(event, months, conf_type="log-log")
    km = kaplan_meier(months, event)
    for ours, theirs in ((km.times, times), (km.survival, survival), (km.lower, lower), (km.upper, upper)):
        np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_log_rank_worked_out_by_hand() -> None:
    """Group a: events at 1 and 3; b: event at 2, censored at 4. At risk of a: 2/4, 1/3, 1/2; none at 4."""
    chi2, p = log_rank([1, 3, 2, 4], [1, 1, 1, 0], ["a", "a", "b", "b"])
    observed_minus_expected = 2 - (1 / 2 + 1 / 3 + 1 / 2)
    variance = 1 / 4 + 2 / 9 + 1 / 4
    assert chi2 == pytest.approx(observed_minus_expected**2 / variance)
    assert p == pytest.approx(math.erfc(math.sqrt(chi2 / 2)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("groups", [2, 4])
def test_log_rank_agrees_with_an_independent_library(seed: int, groups: int) -> None:
    compare = pytest.importorskip("sksurv.compare")
    months, event, risk = cohort(seed)
    group = np.digitize(risk, np.quantile(risk, np.linspace(0, 1, groups + 1)[1:-1]))
    chi2, p = compare.compare_survival(surv(months, event), group)
    np.testing.assert_allclose(log_rank(months, event, group), (chi2, p), rtol=1e-8, atol=1e-12)


# Where nothing is defined, and the bootstrap --------------------


def test_all_censored_or_no_rows_give_no_figure_and_no_crash() -> None:
    for n in (0, 3):
        months, event, risk = [5.0] * n, [0] * n, [1.0] * n
        assert math.isnan(c_index(months, event, risk))
        assert math.isnan(uno_c_index(*TRAIN, months, event, risk))
        assert np.isnan(time_dependent_auc(*TRAIN, months, event, risk, [2.0]).auc).all()
        assert len(kaplan_meier(months, event).times) == min(n, 1)
        assert np.isnan(log_rank(months, event, ["a", "b", "b"][:n])).all()
        interval = bootstrap_c_index(months, event, risk, ["p"] * n, resamples=5)
        assert math.isnan(interval.low)
        assert interval.resamples == 0
    assert np.isnan(brier_score(*TRAIN, [], [], np.zeros((0, 2)), [1, 2])).all()
    assert math.isnan(uno_c_index([], [], [1, 2], [1, 1], [2, 1]))
    assert np.isnan(log_rank([1, 2], [1, 1], ["a", "a"])).all()


@pytest.mark.parametrize("figure", [lambda t, e: c_index(t, e, [1.0, 2]), kaplan_meier, lambda t, e: log_rank(t, e, t)])
@pytest.mark.parametrize("bad", [math.nan, -1.0, math.inf])
def test_impossible_time_is_named(figure: Callable[[Any, Any], Any], bad: float) -> None:
    with pytest.raises(InputError, match="in row 2"):
        figure([3.0, bad], [1, 1])


def test_bootstrap_draws_patients_with_all_their_slides() -> None:
    """The same resamples, done plainly: rows repeated, c-index of each."""
    months, event, risk = cohort(3, 60)
    patients = [f"p{i // 2}" for i in range(60)]
    ours = bootstrap_c_index(months, event, risk, patients, resamples=40, seed=7)
    names, patient_of = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(7)
    plain = []
    for _ in range(40):
        drawn = rng.integers(len(names), size=len(names))
        rows = np.concatenate([np.flatnonzero(patient_of == k) for k in drawn])
        plain.append(c_index(months[rows], event[rows], risk[rows]))
    low, high = np.quantile(plain, [0.025, 0.975])
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)
    assert ours.resamples == 40


def test_large_cohorts_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    months, event, risk = cohort(1)
    whole = c_index(months, event, risk), bootstrap_c_index(months, event, risk, list(map(str, risk)), resamples=20)
    monkeypatch.setattr("longvit.metrics.survival._PAIRS_AT_ONCE", 700)
    monkeypatch.setattr("longvit.metrics.survival._WEIGHTS_AT_ONCE", 500)
    parts = c_index(months, event, risk), bootstrap_c_index(months, event, risk, list(map(str, risk)), resamples=20)
    assert parts[0] == pytest.approx(whole[0], abs=1e-14)
    assert (parts[1].low, parts[1].high) == pytest.approx((whole[1].low, whole[1].high), abs=1e-12)
