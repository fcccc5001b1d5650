"""Intervals of means and of differences, against a bootstrap written out with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from longvit.comparison.intervals import drawn_means, interval, mean_of_folds, only_common
from longvit.data.cohort import Cohort, SlideRow
from longvit.tasks.settings import FinetuneSettings
from longvit.tasks.subtyping import Subtyping
from longvit.tasks.survival import Survival
from longvit.tasks.task import Predictions

RESAMPLES, SEED = 60, 4


def rows(n: int, first: int = 0) -> tuple[SlideRow, ...]:
    """Two slides of each patient, patients of class a and b in turn."""
    return tuple(
        SlideRow(f"P{i // 2}", f"s{i}", "ab"[i // 2 % 2], Path(f"s{i}.svs"), split="test")
        for i in range(first, first + n)
    )


def predictions(of: tuple[SlideRow, ...], seed: int, help_: float) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(of), 2))
    logits[:, 1] += [help_ * (row.label == "b") for row in of]
    return Predictions(of, logits, 0.0)


def auc(p: Predictions, keep: list[int]) -> float:
    labels = [p.rows[i].label == "b" for i in keep]
    if len(set(labels)) < 2:
        return np.nan
    return float(roc_auc_score(labels, [p.logits[i, 1] - p.logits[i, 0] for i in keep]))


@pytest.fixture
def folds() -> tuple[list[dict[str, Predictions]], list[Subtyping]]:
    parts = [rows(20), rows(24, 20)]
    task = [Subtyping(Cohort(part, ("a", "b")), FinetuneSettings()) for part in parts]
    return [{"one": predictions(p, i, 2.0), "two": predictions(p, 9 + i, 1.0)} for i, p in enumerate(parts)], task


def test_intervals_are_those_of_patients_drawn_anew_in_every_fold(
    folds: tuple[list[dict[str, Predictions]], list[Subtyping]],
) -> None:
    rounds, tasks = folds
    draws = drawn_means(rounds, tasks, resamples=RESAMPLES, seed=SEED)
    rng = np.random.default_rng(SEED)
    expected: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(RESAMPLES):
        values: dict[str, list[float]] = {"one": [], "two": []}
        for of in rounds:
            patients = list(dict.fromkeys(of["one"].patients))
            drawn = rng.integers(len(patients), size=len(patients))
            keep = [i for k in drawn for i, case in enumerate(of["one"].patients) if case == patients[k]]
            for name in values:
                values[name].append(auc(of[name], keep))
        for name, fold_split in values.items():
            expected[name].append(float(np.mean(fold_split)))
    for name, of in expected.items():
        np.testing.assert_allclose(draws[name], of, atol=1e-12)
    value = mean_of_folds(rounds, tasks, "one")
    assert value == pytest.approx(np.mean([auc(of["one"], list(range(len(of["one"].rows)))) for of in rounds]))
    sure = interval(value, draws["one"])
    assert (sure.low, sure.high) == pytest.approx(tuple(np.quantile(expected["one"], [0.025, 0.975])))


def test_a_difference_is_taken_on_the_patients_that_both_have(
    folds: tuple[list[dict[str, Predictions]], list[Subtyping]],
) -> None:
    rounds, _ = folds
    of = rounds[0]["two"]
    rounds[0]["two"] = Predictions(of.rows[4:], of.logits[4:], 0.0)
    del rounds[1]["two"]
    common = only_common(rounds, "one", "two")
    assert common[1] == {}
    assert [len(common[0][name].rows) for name in ("one", "two")] == [16, 16]
    assert common[0]["one"].names == common[0]["two"].names


def test_a_patient_drawn_twice_counts_as_two_in_the_c_index() -> None:
    rng = np.random.default_rng(0)
    months, event, risk = rng.uniform(1, 50, 12), rng.uniform(size=12) < 0.7, rng.normal(size=12)
    of = tuple(
        SlideRow(
            f"P{i}",
            f"s{i}",
            "",
            Path(f"s{i}.svs"),
            split="train",
            extra_columns={"survival_months": repr(m), "event": e},
        )
        for i, (m, e) in enumerate(zip(months.tolist(), np.where(event, "1", "0").tolist(), strict=True))
    )
    task = Survival(Cohort(of, ()), FinetuneSettings(task="survival", survival_loss="cox"))
    draws = drawn_means([{"one": Predictions(of, risk[:, None], 0.0)}], [task], resamples=20, seed=SEED)["one"]
    rng = np.random.default_rng(SEED)
    for value in draws:
        drawn = rng.integers(12, size=12)
        assert value == pytest.approx(naive_c_index(months[drawn], event[drawn], risk[drawn]), abs=1e-12)


def naive_c_index(months: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Pair by pair: i had the event, and j was followed for longer (or as long, without the event)."""
    right, pairs = 0.0, 0
    for i in np.flatnonzero(event):
        for j in range(len(months)):
            if months[j] > months[i] or (months[j] == months[i] and not event[j]):
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / pairs
