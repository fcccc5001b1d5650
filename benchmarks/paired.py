"""Paired bootstrap of AUCs: gaps between two systems on the same test cases, over folds and seeds.

A round is one fold and seed with the scores of both systems. Each resample draws the cases of every test set with
replacement, the same ones in all rounds of that test set, and then draws the rounds. So the interval covers the choice
of test cases, and that of sources and seeds as far as their few rounds represent it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score


class Round(NamedTuple):
    """Scores of two systems on one test set; higher for label 1."""

    test_set: str
    labels: NDArray[np.int64]
    """(N,) 0 or 1."""
    cases: Sequence[str]
    """Patient or source of each image, resampled as a whole."""
    ours: NDArray[np.float64]
    other: NDArray[np.float64]


class Gap(NamedTuple):
    """Mean gap over the rounds, with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def weighted_aucs(
    labels: NDArray[np.int64], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUC (B,) of scores (N,) for each row of weights (B, N); ties count one half, NaN without both labels."""
    positive, negative = labels == 1, labels == 0
    above = scores[positive][:, None] - scores[negative][None, :]
    wins = (above > 0) + 0.5 * (above == 0)
    up, down = weights[:, positive], weights[:, negative]
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = ((up @ wins) * down).sum(1) / (up.sum(1) * down.sum(1))
    return result


def case_weights(cases: Sequence[str], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Weights (1 + resamples, N) of images: all ones, then the number of times that the image's case is drawn."""
    names, case_of = np.unique(np.asarray(cases), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.concatenate([np.ones((1, len(case_of))), drawn[:, case_of]])


def gap(rounds: Sequence[Round], resamples: int = 1000, seed: int = 0) -> Gap:
    """Gap of the AUC, ours minus the other's; NaN without a round."""
    if not rounds:
        return Gap(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float64]] = {}
    for r in rounds:
        if r.test_set not in weights:
            weights[r.test_set] = case_weights(r.cases, resamples, rng)
    differences = np.stack(
        [
            weighted_aucs(r.labels, r.ours, weights[r.test_set]) - weighted_aucs(r.labels, r.other, weights[r.test_set])
            for r in rounds
        ]
    )
    drawn = rng.integers(len(rounds), size=(resamples, len(rounds)))
    means = differences[drawn.T, np.arange(1, resamples + 1)].mean(0)  # NaN where a test set has one label only
    low, high = np.nanquantile(means, [0.025, 0.975])
    return Gap(float(differences[:, 0].mean()), float(low), float(high))


def scored(test_set: str, labels: ArrayLike, scores: ArrayLike, cases: Sequence[str] = ()) -> dict[str, Any]:
    """Columns of a trial's row: the AUC, and all that a paired interval needs, in few characters.

    `ranks`: of the scores (an AUC depends on nothing else). `cases`: number of each image's case, where given.
    """
    labels = np.asarray(labels)
    columns = {
        "auc": round(float(roc_auc_score(labels, scores)), 4),
        "test_set": test_set,
        "labels": "".join(map(str, labels.tolist())),
        "ranks": rankdata(scores, method="dense").astype(int).tolist(),
    }
    return columns | ({"cases": np.unique(np.asarray(cases), return_inverse=True)[1].tolist()} if len(cases) else {})


def rounds_of(ours: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[Round]:
    """Rounds of two systems from the rows of their trials (`scored`), paired by test set and seed."""
    by_round = {(row["test_set"], row["seed"]): row for row in others}
    rounds = []
    for row in ours:
        if other := by_round.get((row["test_set"], row["seed"])):
            labels = np.array([int(label) for label in row["labels"]])
            cases = [str(case) for case in row.get("cases", range(len(labels)))]
            pair = (np.array(r["ranks"], dtype=np.float64) for r in (row, other))
            rounds.append(Round(row["test_set"], labels, cases, *pair))
    return rounds
