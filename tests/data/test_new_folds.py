"""New folds keep patients and sites on one side; published folds made patient-disjoint keep their sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from longvit.data.cohort import SPLITS, Cohort, SlideRow
from longvit.data.folds import Fold, assign, match
from longvit.data.new_folds import make_folds, patient_disjoint
from longvit.errors import InputError


def many(patients: int = 60, sites: int = 11) -> Cohort:
    """Every third patient has class y; 1 to 3 slides each; every site sees both classes."""
    rows = tuple(
        SlideRow(f"p{i}", f"p{i}.{j}", "xxy"[i % 3], Path("none"), site=f"site{i % sites}")
        for i in range(patients)
        for j in range(1 + i % 2 + i % 7 // 6)
    )
    return Cohort(rows, ("x", "y"), "many.csv")


def sides(cohort: Cohort, fold: Fold, of: str) -> dict[str, set[str]]:
    split = assign(cohort, fold, allow_leak=True)
    return {name: {str(getattr(row, of)) for row in split.split(name)} for name in SPLITS}


@pytest.mark.parametrize("by_site", [False, True])
def test_every_slide_is_tested_once_and_no_group_is_on_two_sides(by_site: bool) -> None:
    cohort = many()
    folds = make_folds(cohort, 4, seed=3, by_site=by_site)
    tested = [slide for fold in folds for slide in fold.test]
    assert sorted(tested) == sorted(row.slide_id for row in cohort.rows)
    for fold in folds:
        assert len(fold.train) + len(fold.val) + len(fold.test) == len(cohort.rows)
        for of in ("case_id", "site") if by_site else ("case_id",):
            groups = sides(cohort, fold, of)
            assert sum(map(len, groups.values())) == len(set.union(*groups.values())), of
        assert not (assign(cohort, fold).notes), "every class is in every split"


def test_classes_stand_in_proportion_in_train_val_and_test() -> None:
    cohort = many(300)
    share = Counter(row.label for row in cohort.rows)["y"] / len(cohort.rows)
    for fold in make_folds(cohort, 5):
        split = assign(cohort, fold)
        for name, size in zip(SPLITS, (0.72, 0.08, 0.2), strict=True):
            rows = split.split(name)
            assert len(rows) == pytest.approx(size * len(cohort.rows), rel=0.15)
            assert Counter(row.label for row in rows)["y"] / len(rows) == pytest.approx(share, abs=0.03)


def test_strata_of_time_and_event_are_kept_where_there_is_no_label() -> None:
    rows = tuple(replace(row, label="") for row in many(200).rows)
    cohort = Cohort(rows, ())
    strata = {row.slide_id: f"bin {int(row.case_id[1:]) % 4}" for row in rows}
    for fold in make_folds(cohort, 5, strata=[strata[row.slide_id] for row in rows]):
        counts = Counter(strata[slide] for slide in fold.test)
        every = Counter(strata.values())
        assert len(counts) == 4
        assert all(abs(counts[s] - every[s] / 5) <= 3 for s in every)  # a patient has up to 3 slides


def test_folds_are_a_function_of_the_seed_not_of_the_row_order() -> None:
    cohort = many()
    backwards = replace(cohort, rows=cohort.rows[::-1])
    assert make_folds(cohort, 3, seed=1) == make_folds(backwards, 3, seed=1) != make_folds(cohort, 3, seed=2)


def test_a_patient_seen_at_two_sites_joins_them() -> None:
    cohort = many()
    moved = [replace(r, site="site1") if r.slide_id == "p0.0" else r for r in cohort.rows]
    moved += [SlideRow("p0", "p0.9", "x", Path("none"), site="site0")]
    cohort = replace(cohort, rows=tuple(moved))
    for fold in make_folds(cohort, 3, by_site=True):
        groups = sides(cohort, fold, "case_id")
        assert sum(map(len, groups.values())) == len(set.union(*groups.values()))


def test_val_can_be_left_out() -> None:
    assert all(fold.val == () for fold in make_folds(many(), 3, val_fraction=0))


def few(labels: str, **facts: str) -> Cohort:
    rows = tuple(SlideRow(f"p{i}", f"s{i}", label, Path("none"), **facts) for i, label in enumerate(labels))
    return Cohort(rows, tuple(sorted(set(labels))), "few.csv")


@pytest.mark.parametrize(
    ("cohort", "settings", "words"),
    [
        (few("xyxy"), {"k": 1}, "1 folds: at least 2"),
        (few("xyxy"), {"k": 5}, "few.csv: 4 patients for 5 folds; choose fewer"),
        (few("xyxy"), {"k": 2, "val_fraction": 0.5}, "val fraction 0.5"),
        (few("xyxy"), {"k": 2, "by_site": True}, r"slide s0 has no site \(4 in total\); fill in the column site"),
        (few("xyxy", site="a"), {"k": 2, "by_site": True}, "1 sites for 2 folds"),
        (
            few("xxxxxxxxy"),
            {"k": 3, "val_fraction": 0},
            "class 'y' is in test only|every slide in test is of class 'x'",
        ),
        (few("xxxxxxxxyy"), {"k": 4, "val_fraction": 0}, "every slide in test is of class 'x'"),
        (few("xxxyyy"), {"k": 3}, ""),
        (few("xxyy"), {"k": 2}, "too few patients for a val part that leaves every class in train"),
    ],
)
def test_too_few_patients_are_refused_in_words(cohort: Cohort, settings: dict[str, float], words: str) -> None:
    if not words:
        assert all(fold.val for fold in make_folds(cohort, **settings))  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=words) as caught:
        make_folds(cohort, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --- published folds, patient by patient ------------------------------------------------------------------------------


def test_a_disjoint_fold_moves_only_the_shared_patients_and_keeps_the_sizes() -> None:
    cohort = many()
    ids = [row.slide_id for row in cohort.rows]
    fold = Fold("0", tuple(ids[::2]), tuple(ids[1::4]), (*ids[3::4], "unlabelled.svs"))
    before = match(cohort, fold)
    assert before.shared_cases(), "the fold should leak"
    (disjoint,) = patient_disjoint([fold], cohort)
    after = match(cohort, disjoint)
    assert after.shared_cases() == {}
    assert sorted(i for s in SPLITS for i in disjoint.ids(s)) == sorted(i for s in SPLITS for i in fold.ids(s))
    for split in SPLITS:
        assert abs(len(after.rows[split]) - len(before.rows[split])) <= 3
    shared = {case for cases in before.shared_cases().values() for case in cases}
    for split in SPLITS:
        came = set(disjoint.ids(split)) - set(fold.ids(split))
        assert {slide.split(".")[0] for slide in came} <= shared
    assert "unlabelled.svs" in disjoint.test
    assert patient_disjoint([fold], cohort) == (disjoint,)


def test_folds_of_case_ids_and_slides_listed_twice_become_disjoint_too() -> None:
    cohort = few("xyxyxy")
    (disjoint,) = patient_disjoint([Fold("0", ("p0", "p1", "p2", "p3"), ("p2", "p4"), ("p3", "p5"))], cohort)
    assert sorted((*disjoint.train, *disjoint.val, *disjoint.test)) == [f"p{i}" for i in range(6)]
    assert assign(cohort, disjoint)


def test_folds_without_a_leak_stay_as_they_are() -> None:
    fold = Fold("4", ("s3", "s0"), ("s1",), ("s2",))
    assert patient_disjoint([fold], few("xyxy")) == (fold,)
