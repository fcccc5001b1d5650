"""Runs that training would refuse must not be proposed."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvit.data.cohort import Cohort, SlideRow
from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.proposal.runs import Run, plan_runs


def cohort(labels: str, **columns: object) -> Cohort:
    """A patient and a slide for each letter of `labels`."""
    rows = [
        SlideRow(f"P{i:02d}", f"s{i:02d}", label, Path(f"s{i:02d}.tif"), **columns) for i, label in enumerate(labels)
    ]  # type: ignore[arg-type]
    return Cohort(tuple(rows), tuple(sorted(set(labels))))


@pytest.mark.parametrize(
    ("labels", "folds"),
    [
        ("ab" * 10, "5"),
        ("a" * 20 + "b" * 4, "4"),
        ("a" * 20 + "b" * 3, "3"),
        ("a" * 20 + "b" * 2, None),
        ("aabb", None),
    ],
)
def test_folds_where_every_class_has_enough_patients(labels: str, folds: str | None) -> None:
    runs = plan_runs(cohort(labels), FinetuneSettings())
    assert runs.folds == folds
    assert len(runs.of_folds) == int(folds or 0)
    assert len(runs.proposed) == int(folds or 1)
    for run in (runs.single, *runs.of_folds):
        assert run.train > 0
        assert run.evaluated > 0
        assert run.train + run.evaluated == len(labels)
    assert runs.fewest_train == min(run.train for run in (runs.single, *runs.of_folds))


def test_a_split_of_the_table_is_kept() -> None:
    parts = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    given = cohort("ab" * 10).with_splits(parts)
    runs = plan_runs(given, FinetuneSettings())
    assert (runs.folds, runs.proposed) == (None, (Run(12, 8),))
    assert [row.split for row in runs.rows] == ["train"] * 12


def test_folds_of_the_table_are_kept() -> None:
    given = cohort("ab" * 10)
    rows = [SlideRow(r.case_id, r.slide_id, r.label, r.path, fold=str(i % 4 // 2)) for i, r in enumerate(given.rows)]
    assert plan_runs(Cohort(tuple(rows), given.classes), FinetuneSettings()).folds == "column"


def test_three_patients_of_two_classes_are_refused_as_training_does() -> None:
    with pytest.raises(InputError, match="class 'b' has 1 patient; training and testing need at least 2"):
        plan_runs(cohort("aab"), FinetuneSettings())
