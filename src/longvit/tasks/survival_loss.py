"""Losses of survival: the discrete-time negative log likelihood of MCAT, and Cox's partial likelihood.

Follow-up is cut into n_bins bins of time. Logit k of a patient gives the hazard of bin k, the probability of the event
in it if there was none before: h_k = sigmoid(logit_k). S_k = (1 - h_0) … (1 - h_k) is the probability of no event up to
the end of bin k, S_-1 = 1, and risk = -(S_0 + … + S_{n_bins - 1}), higher for an earlier event. With the
patient's bin y (Zadeh and Schmid, "Bias in cross-entropy-based training of deep survival networks"; MCAT,
Chen et al., ICCV 2021):

    event     -log S_{y-1} - log h_y         (no event before bin y, then one in it)
    censored  -log S_y                       (no event up to the end of bin y)
    loss = (1 - alpha) (censored + event) + alpha event

Each probability counts as at least eps. B patients, n_bins bins.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from longvit.errors import InputError
from longvit.metrics.survival import checked_times

_WIDENED_BY = 1e-6


def time_bins(months: ArrayLike, event: ArrayLike, n_bins: int = 4) -> NDArray[np.float64]:
    """Edges (n_bins + 1,) of bins that hold equally many of the *uncensored* times.

    `months` (N,) ≥ 0, `event` (N,) 1 or True where the event happened, 0 where follow-up ended before it. The inner
    edges are the quantiles (linear) of the uncensored times; the outer ones lie 1e-6 outside all times, censored too.
    Give the rows of the training fold; the published way is to give the whole cohort, which lets the edges know the
    evaluation fold's times.

    `InputError`: every row is censored, a time is NaN, infinite or negative, or the uncensored times have too
    few distinct values for n_bins bins.
    """
    assert n_bins >= 1
    t, happened = checked_times(months, event)
    if not len(t):
        raise InputError("no survival times: no rows")
    if not happened.any():
        raise InputError(f"all {len(t)} survival times are censored: no event to learn from; check the event column")
    edges = np.quantile(t[happened], np.linspace(0, 1, n_bins + 1))
    edges[0], edges[-1] = t.min() - _WIDENED_BY, t.max() + _WIDENED_BY
    if not (np.diff(edges) > 0).all() or len(np.unique(t[happened])) < n_bins:
        raise InputError(
            f"{len(np.unique(t[happened]))} distinct times among {happened.sum()} events: too few for {n_bins} bins; "
            "take fewer bins or more rows"
        )
    return edges


def bin_of(months: ArrayLike, edges: ArrayLike) -> NDArray[np.int64]:
    """The bin 0 … n_bins - 1 of each time: edges[k] ≤ months < edges[k + 1].

    A time outside the edges goes into the first or the last bin: edges come from the training fold, other patients
    may have been followed for longer. `InputError` at a NaN, infinite or negative time.
    """
    t, _ = checked_times(months, np.zeros(len(np.asarray(months))))
    return np.digitize(t, np.asarray(edges, dtype=np.float64)[1:-1]).astype(np.int64)


def nll_loss(
    logits: torch.Tensor, bin: torch.Tensor, event: torch.Tensor, *, alpha: float = 0.0, eps: float = 1e-7
) -> torch.Tensor:
    """The negative log likelihood (B,) of each patient; see the top of this file.

    `logits` (B, n_bins) float, `bin` (B,) int in 0 … n_bins - 1, `event` (B,) 1 where the event happened, 0 where
    censored. `alpha` in 0 … 1 takes weight from the censored patients. Worked out in logarithms, so that float32 keeps
    its digits near 0 and 1; equal to the formula with probabilities.
    """
    floor = math.log(eps)
    log_survival = functional.logsigmoid(-logits).cumsum(1)  # (B, n_bins) log S_k
    y = bin.long().unsqueeze(1)
    log_hazard_y = functional.logsigmoid(logits).gather(1, y).squeeze(1).clamp(min=floor)
    log_survival_y = log_survival.gather(1, y).squeeze(1).clamp(min=floor)
    before = functional.pad(log_survival, (1, 0))  # (B, n_bins + 1): log S_-1 = 0 first
    log_survival_before = before.gather(1, y).squeeze(1).clamp(min=floor)
    happened = event.to(logits.dtype)
    of_event = -happened * (log_survival_before + log_hazard_y)
    of_censored = -(1 - happened) * log_survival_y
    return (1 - alpha) * (of_censored + of_event) + alpha * of_event


def cox_loss(risk: torch.Tensor, months: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    """Cox's negative log partial likelihood of a batch, as terms (B,) whose mean is the likelihood per event.

    `risk` (B,) log hazard ratio, `months` (B,), `event` (B,) 1 where the event happened. Term i is
    `event_i (log Σ_{j: months_j ≥ months_i} exp(risk_j) - risk_i) × B / events`, so `terms.mean()` is the sum over the
    events divided by their number; tied times as Breslow has them (each event against all that are at risk at its
    time). All zero (with a gradient of zero) in a batch without events. A batch of one patient is zero too:
    this loss compares the patients of a batch, so it needs large ones.
    """
    happened = event.to(risk.dtype)
    at_risk = months.unsqueeze(0) >= months.unsqueeze(1)  # (B, B): row i, who is at risk at months_i
    all_at_risk = risk.unsqueeze(0).masked_fill(~at_risk, -math.inf).logsumexp(1)  # (B,)
    return happened * (all_at_risk - risk) * (len(risk) / happened.sum().clamp(min=1))


def survival_curve(logits: torch.Tensor) -> torch.Tensor:
    """S (N, n_bins), the probability of no event up to the end of each bin, falling; `logits` (N, n_bins)."""
    return functional.logsigmoid(-logits).cumsum(1).exp()


def risk(logits: torch.Tensor) -> torch.Tensor:
    """-Σ_k S_k (N,), in -n_bins … 0, higher for an earlier event; `logits` (N, n_bins)."""
    return -survival_curve(logits).sum(1)
