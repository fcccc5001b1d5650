"""Survival losses against hand values, the formula in float64 and the protocol's published bin edges."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from tests.conftest import shared

from longvit.errors import InputError
from longvit.tasks.survival_loss import bin_of, cox_loss, nll_loss, risk, survival_curve, time_bins

# Hazards .1, .2, .5, .25: S = .9, .72, .36, .27
HAZARDS = torch.tensor([0.1, 0.2, 0.5, 0.25], dtype=torch.float64)
LOGITS = torch.logit(HAZARDS)


def _formula(logits: np.ndarray, y: np.ndarray, event: np.ndarray, alpha: float, eps: float = 1e-7) -> np.ndarray:
    """The published formula with probabilities, patient by patient."""
    losses = []
    for z, k, e in zip(logits, y, event, strict=True):
        h = 1 / (1 + np.exp(-z))
        s = np.concatenate([[1.0], np.cumprod(1 - h)])
        uncensored = -e * (math.log(max(s[k], eps)) + math.log(max(h[k], eps)))
        censored = -(1 - e) * math.log(max(s[k + 1], eps))
        losses.append((1 - alpha) * (censored + uncensored) + alpha * uncensored)
    return np.array(losses)


@pytest.mark.parametrize(
    ("y", "event", "alpha", "expected"),
    [
        (0, 1, 0.0, -math.log(0.1)),  # the first bin: nothing to survive before it
        (2, 1, 0.0, -math.log(0.72) - math.log(0.5)),
        (3, 1, 0.0, -math.log(0.36) - math.log(0.25)),
        (0, 0, 0.0, -math.log(0.9)),
        (3, 0, 0.0, -math.log(0.27)),  # the last bin, censored
        (3, 0, 0.25, -0.75 * math.log(0.27)),
        (2, 1, 0.25, -math.log(0.72) - math.log(0.5)),  # alpha leaves events as they are
    ],
)
def test_nll_has_the_values_worked_out_by_hand(y: int, event: int, alpha: float, expected: float) -> None:
    loss = nll_loss(LOGITS[None], torch.tensor([y]), torch.tensor([event]), alpha=alpha)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.15])
@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30: probabilities below eps
def test_nll_equals_the_published_formula(alpha: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    logits, y, event = rng.normal(size=(500, 4)) * scale, rng.integers(0, 4, 500), rng.integers(0, 2, 500)
    ours = nll_loss(torch.tensor(logits), torch.tensor(y), torch.tensor(event), alpha=alpha).numpy()
    np.testing.assert_allclose(ours, _formula(logits, y, event, alpha), rtol=0, atol=1e-8)


def test_nll_stays_finite_with_its_gradient_in_float32() -> None:
    logits = torch.tensor([[200.0, -200.0, 200.0, 0.0], [-200.0] * 4, [18.0] * 4], requires_grad=True)
    loss = nll_loss(logits, torch.tensor([3, 2, 1]), torch.tensor([1, 1, 0]))
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


def test_curve_and_risk() -> None:
    np.testing.assert_allclose(survival_curve(LOGITS[None]).numpy()[0], [0.9, 0.72, 0.36, 0.27], atol=1e-12)
    assert risk(LOGITS[None]).item() == pytest.approx(-2.25)


def test_saturated_hazards_tie_as_published_deep_sets_do() -> None:
    assert len(set(risk(torch.tensor([[40.0] * 4, [90.0] * 4, [60.0] * 4]).double()).round(decimals=8).tolist())) == 1


def test_cox_has_the_value_worked_out_by_hand() -> None:
    # Times 1, 2 (tied: event and event), 3 censored, 4 event; Breslow: each tied event against all three at risk.
    r = torch.tensor([0.5, -0.2, 0.3, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    months = torch.tensor([1.0, 2.0, 2.0, 3.0, 4.0])
    event = torch.tensor([1, 1, 1, 0, 1])
    e = [math.exp(v) for v in r.tolist()]
    nll = math.log(sum(e)) - 0.5 + 2 * math.log(sum(e[1:])) - (-0.2 + 0.3) + 0
    losses = cox_loss(r, months, event)
    assert losses.shape == (5,)
    assert losses.mean().item() == pytest.approx(nll / 4, abs=1e-12)
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    assert cox_loss(r[shuffled], months[shuffled], event[shuffled]).mean().item() == pytest.approx(nll / 4, abs=1e-12)


def test_cox_equals_an_independent_library_at_its_optimum() -> None:
    """The library's coefficients (no penalty, Breslow) are where our gradient vanishes."""
    linear_model = pytest.importorskip("sksurv.linear_model")
    from sksurv.util import Surv

    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 3))
    months, event = np.ceil(rng.exponential(10, 80)), rng.random(80) < 0.6  # whole months: many ties
    model = linear_model.CoxPHSurvivalAnalysis(ties="breslow", tol=1e-12).fit(x, Surv.from_arrays(event, months))
    weights = torch.tensor(model.coef_, requires_grad=True)
    cox_loss(torch.tensor(x) @ weights, torch.tensor(months), torch.tensor(event)).mean().backward()
    assert weights.grad is not None
    np.testing.assert_allclose(weights.grad.numpy(), 0, atol=1e-8)


def test_batch_without_events_teaches_nothing_and_breaks_nothing() -> None:
    r = torch.randn(4, requires_grad=True)
    losses = cox_loss(r, torch.arange(4.0), torch.zeros(4))
    losses.mean().backward()
    assert losses.tolist() == [0, 0, 0, 0]
    assert r.grad is not None
    assert r.grad.tolist() == [0, 0, 0, 0]


def test_bins_hold_equally_many_events_and_reach_beyond_every_time() -> None:
    months = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 30, 0.5])
    event = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    edges = time_bins(months, event)
    np.testing.assert_allclose(edges, [0.5 - 1e-6, 2.75, 4.5, 6.25, 30 + 1e-6])
    assert np.bincount(bin_of(months[event == 1], edges)).tolist() == [2, 2, 2, 2]


def test_time_on_an_edge_belongs_to_the_later_bin_and_times_outside_to_the_outer_bins() -> None:
    found = bin_of([0.0, 1.0, 9.99, 10.0, 30.0, 99.0], [1.0, 10.0, 20.0, 30.0])
    assert found.dtype == np.int64
    assert found.tolist() == [0, 0, 0, 1, 2, 2]


def test_fewer_bins_than_four() -> None:
    assert len(time_bins([1, 2, 3, 4], [1, 1, 1, 1], n_bins=2)) == 3


@pytest.mark.parametrize(
    ("months", "event", "line"),
    [
        ([1, 2, 3, 4], [0, 0, 0, 0], "all 4 survival times are censored"),
        ([1, math.nan, 3, 4], [1, 1, 1, 1], "survival time nan in row 2"),
        ([1, 2, -3, 4], [1, 1, 1, 1], "survival time -3.0 in row 3"),
        ([5, 5, 5, 5, 6], [1, 1, 1, 1, 1], "2 distinct times among 5 events: too few for 4 bins"),
        ([1, 2, 3, 4], [1, 2, 1, 1], "event must be 1"),
        ([], [], "no rows"),
    ],
)
def test_times_that_make_no_bins_are_said_in_one_line(months: list[float], event: list[int], line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        time_bins(months, event)
    assert "\n" not in str(caught.value)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("cohort", "patients", "events", "inner"),
    [("ucec", 480, 75, [12.125, 23.46, 33.855]), ("luad", 453, 158, [10.0975, 20.55, 35.445])],
)
def test_published_bin_edges(cohort: str, patients: int, events: int, inner: list[float]) -> None:
    table = pd.read_csv(shared(f"data/mcat/clinical/tcga_{cohort}_all_clean.csv.zip"), low_memory=False)
    table = table.drop_duplicates("case_id")
    event = 1 - table["censorship"].to_numpy()
    assert (len(table), event.sum()) == (patients, events)
    np.testing.assert_allclose(time_bins(table["survival_months"], event)[1:-1], inner, atol=1e-9)


@pytest.mark.shared
@pytest.mark.parametrize("cohort", ["ucec", "luad", "brca"])
def test_every_patient_falls_into_the_published_bin(cohort: str) -> None:
    table = pd.read_csv(shared("data/mcat/published_survival_predictions.csv.gz"))
    rows = table[(table["system"] == "mcat") & (table["cohort"] == cohort)]
    edges = time_bins(rows["survival_months"], 1 - rows["censorship"])
    assert (bin_of(rows["survival_months"], edges) == rows["disc_label"]).all()


@pytest.mark.shared
def test_ridge_cox_on_real_patients_reaches_the_protocols_figure() -> None:
    """UCEC, 123 copy numbers, five published folds: c-index .628 (± .01), loss per event + 2 |w|²."""
    from scipy.optimize import minimize

    from longvit.metrics.survival import c_index

    table = pd.read_csv(shared("data/mcat/clinical/tcga_ucec_all_clean.csv.zip"), low_memory=False)
    table = table.drop_duplicates("case_id").set_index("case_id")
    features = table[[c for c in table.columns if c.endswith("_cnv")]]
    found = []
    for k in range(5):
        split = pd.read_csv(shared(f"data/mcat/splits/tcga_ucec/splits_{k}.csv"))
        train, val = (table.loc[split[part].dropna()] for part in ("train", "val"))
        mean, sd = features.loc[train.index].mean(), features.loc[train.index].std()
        x = torch.tensor(((features.loc[train.index] - mean) / sd).to_numpy())
        months, event = (
            torch.tensor(train["survival_months"].to_numpy()),
            torch.tensor(1 - train["censorship"].to_numpy()),
        )

        def objective(weights: np.ndarray, x=x, months=months, event=event) -> tuple[float, np.ndarray]:
            w = torch.tensor(weights, requires_grad=True)
            value = cox_loss(x @ w, months, event).mean() + 2 * w.square().sum()
            value.backward()
            return value.item(), w.grad.numpy()

        w = minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
        risks = ((features.loc[val.index] - mean) / sd).to_numpy() @ w
        found.append(c_index(val["survival_months"], 1 - val["censorship"], risks))
    assert np.mean(found) == pytest.approx(0.628, abs=0.01)
