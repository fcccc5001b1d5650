"""Folds: read as published, matched to a cohort without a guess, refused where a patient is on two sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.folds import (
    Fold,
    assign,
    fold_of_splits,
    folds_of_column,
    match,
    read_folds,
    require_split,
    write_folds,
)
from longvit.errors import InputError


def cohort_of(*rows: str, **facts: str) -> Cohort:
    """Rows as `case slide label [split]`."""
    slides = []
    for text in rows:
        case, slide, label, split, *_ = (*text.split(), None)
        slides.append(SlideRow(str(case), str(slide), str(label), Path(f"{slide}.svs"), split=split))
    return Cohort(tuple(slides), tuple(sorted({row.label for row in slides})), facts.get("source", "cohort.csv"))


# p1 has two slides
FOUR = cohort_of("p1 p1.a x", "p1 p1.b x", "p2 p2.a y", "p3 p3.a x", "p4 p4.a y")


def table(folder: Path, text: str, name: str = "splits_0.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def refusal(cohort: Cohort, fold: Fold, **settings: bool) -> str:
    with pytest.raises(InputError) as caught:
        assign(cohort, fold, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_published_tables_are_read_ragged_with_an_index_and_extensions(tmp_path: Path) -> None:
    table(tmp_path, ",train,val,test\n0,p1.a.svs,p2.a,p3.a\n1,p1.b.svs,,\n2,p4.a.svs,,nan\n")
    (fold,) = read_folds(tmp_path)
    assert fold == Fold("0", ("p1.a.svs", "p1.b.svs", "p4.a.svs"), ("p2.a",), ("p3.a",))
    assert [row.split for row in assign(FOUR, fold).rows] == ["train", "train", "val", "test", "train"]


def test_ten_folds_come_in_the_order_of_their_numbers_and_without_their_companions(tmp_path: Path) -> None:
    for n in range(11):
        table(tmp_path, f",train,val\n0,a{n},b{n}\n", f"splits_{n}.csv")
        table(tmp_path, ",train,val\na,True,False\n", f"splits_{n}_bool.csv")
        table(tmp_path, ",train,val\nx,1,2\n", f"splits_{n}_descriptor.csv")
    folds = read_folds(tmp_path)
    assert [fold.name for fold in folds] == [str(n) for n in range(11)]
    assert folds[10].train == ("a10",)
    assert folds[0].test == ()


def test_a_fold_that_got_lost_is_missed(tmp_path: Path) -> None:
    for n in (0, 1, 3):
        table(tmp_path, ",train,val\n0,a,b\n", f"splits_{n}.csv")
    with pytest.raises(InputError, match="fold 2 is missing between 0 and 3"):
        read_folds(tmp_path)
    assert [f.name for f in read_folds([tmp_path / "splits_3.csv", tmp_path / "splits_1.csv"])] == ["3", "1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",train,val\np1.a,True,False\np2.a,False,True\n", "column train holds true and false; give the table of ids"),
        ("slide_id,label\na,x\n", r"it needs the columns train and val or test \(it has slide_id, label\)"),
        (",train,val\n0,a,\n1,b,\n", "column val is empty; fill it in or remove it"),
        (",train,val\n0,a,b\n1,a.svs,\n", "line 3: a.svs is already in train on line 2"),
        (",train,val,validation\n0,a,b,c\n", "two columns for val"),
    ],
)
def test_a_table_that_is_no_fold_says_why(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_folds(table(tmp_path, text))


def test_an_empty_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"searched for splits_0\.csv"):
        read_folds(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_folds(tmp_path / "nowhere")


def test_written_folds_read_back_the_same(tmp_path: Path) -> None:
    folds = (Fold("0", ("a", "b", "c"), ("d",), ("e", "f")), Fold("1", ("a",), ("b", "c")))
    write_folds(tmp_path / "folds", folds)
    assert read_folds(tmp_path / "folds") == folds


def test_five_new_folds_do_not_mix_with_ten_old_ones(tmp_path: Path) -> None:
    write_folds(tmp_path, [Fold(str(n), ("a",), ("b",)) for n in range(3)])
    with pytest.raises(InputError, match=r"holds splits_2\.csv of other folds"):
        write_folds(tmp_path, [Fold(str(n), ("c",), ("d",)) for n in range(2)])
    assert read_folds(tmp_path)[0].train == ("a",)  # nothing was touched


# --- matching ---------------------------------------------------------------------------------------------------------


def test_case_ids_take_every_slide_of_the_case() -> None:
    found = match(FOUR, Fold("0", ("p1", "p2"), ("p3", "p4")))
    assert found.rows == {"train": (0, 1, 2), "val": (3, 4), "test": ()}


def test_slide_and_case_ids_mixed_in_one_column_are_refused() -> None:
    text = refusal(FOUR, Fold("7", ("p1.a", "p2"), ("p3.a",)))
    assert text == (
        "fold 7, train: slide ids (p1.a, 1 in total) and case ids (p2, 1 in total) in one column; write one kind"
    )
    # each column for itself may hold its own kind
    assert assign(FOUR, Fold("7", ("p1", "p2"), ("p3.a", "p4.a"))).summary().endswith("train 3, val 2")


def test_an_id_that_is_a_slide_and_another_slides_patient_is_refused() -> None:
    twofold = cohort_of("q a x", "a b y", "c c x", "d d y")
    assert "a is a slide and a case of cohort.csv, and they differ" in refusal(twofold, Fold("0", ("a", "c"), ("d",)))
    # without a column case_id both are the same row, and there is no doubt
    alone = cohort_of("a a x", "b b y", "c c x")
    assert [row.split for row in assign(alone, Fold("0", ("a", "b"), ("c",))).rows] == ["train", "train", "val"]


def test_folds_of_another_cohort_are_refused_with_both_ids() -> None:
    text = refusal(FOUR, Fold("0", ("TCGA-1",), ("TCGA-2",)))
    assert "none of its ids is in cohort.csv (it has TCGA-1; the cohort has slide p1.a, case p1)" in text


def test_ids_without_a_label_and_slides_without_a_split_are_counted_and_named() -> None:
    fold = Fold("0", ("p1.a", "p2.a", "u1", "u2"), ("p3.a", "u3"), ("u4",))
    assert assign(FOUR, fold).notes == (
        "fold 0: 4 of 7 ids (train 2, val 1, test 1) have no row with a label in cohort.csv and drop out: "
        "u1, u2, u3, … and 1 more",
        "cohort.csv: 2 slides are not in fold 0: p1.b, p4.a",
        "fold 0: no slide of class y in val",
    )
    assert match(FOUR, fold).unknown == {"train": ("u1", "u2"), "val": ("u3",), "test": ("u4",)}
    assert [row.split for row in assign(FOUR, fold).rows] == ["train", None, "train", "val", None]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_patient_on_two_sides_is_refused_unless_it_is_allowed() -> None:
    fold = Fold("3", ("p1.a", "p2.a"), ("p3.a",), ("p1.b", "p4.a"))
    assert refusal(FOUR, fold) == (
        "fold 3: patient p1 is in train and in test; use patient-disjoint folds, or allow the leak"
    )
    assert [r.split for r in assign(FOUR, fold, allow_leak=True).rows] == ["train", "test", "train", "val", "test"]


def test_a_slide_in_two_splits_is_refused_even_where_leaks_are_allowed() -> None:
    fold = Fold("3", ("p1.a", "p2.a", "p3.a"), ("p1.a.svs", "p3.a"))
    assert refusal(FOUR, fold, allow_leak=True) == (
        "fold 3: slide p1.a is in train and in val, and 1 more; list it once"
    )
    assert "is in train and in val" in refusal(FOUR, Fold("3", ("p1", "p2"), ("p1", "p3")), allow_leak=True)


def test_folds_that_contradict_the_split_column_are_refused() -> None:
    stated = cohort_of("p1 a x train", "p2 b y train", "p3 c x test")
    text = refusal(stated, Fold("0", ("a", "c"), (), ("b",)))
    assert text == (
        "cohort.csv: slide c is in test, but fold 0 has it in train; leave out the column split, or the folds"
    )
    assert assign(stated, Fold("0", ("a", "b"), (), ("c",))).split("test") == stated.rows[2:]


def test_a_class_without_training_slides_is_refused_and_without_test_slides_noted() -> None:
    assert "no slide of class 'y' in train, it cannot be learned" in refusal(FOUR, Fold("0", ("p1",), (), ("p2",)))
    assert "no slide of cohort.csv is in train" in refusal(FOUR, Fold("0", ("u",), (), ("p2",)))
    assert "fold 0: no slide of class x in test" in assign(FOUR, Fold("0", ("p1", "p2"), (), ("p4",))).notes


def test_a_fold_without_validation_slides_says_what_needs_them() -> None:
    split = assign(FOUR, Fold("0", ("p1", "p2"), (), ("p3", "p4")))
    assert len(require_split(split, "test", "to evaluate")) == 2
    with pytest.raises(InputError) as caught:
        require_split(split, "val", "to choose the best epoch")
    assert str(caught.value) == (
        "cohort.csv: no validation slides, which are needed to choose the best epoch; "
        "add some to the split column or to the folds"
    )


# --- columns of the CSV -----------------------------------------------------------------------------------------------


def test_the_fold_column_gives_each_value_once_as_test() -> None:
    rows = tuple(SlideRow(f"p{i}", f"s{i}", "xy"[i % 2], Path("s"), fold=str((10, 9, 2)[i // 2])) for i in range(6))
    folds = folds_of_column(Cohort(rows, ("x", "y")))
    assert [fold.name for fold in folds] == ["2", "9", "10"]
    assert folds[0] == Fold("2", ("s0", "s1", "s2", "s3"), (), ("s4", "s5"))
    with pytest.raises(InputError, match="column fold has 1 values"):
        folds_of_column(Cohort(rows[:2], ("x", "y")))


def test_the_split_column_is_one_fold() -> None:
    stated = cohort_of("p1 a x train", "p2 b y val", "p3 c x test", "p4 d y train")
    assert fold_of_splits(stated) == Fold("split", ("a", "d"), ("b",), ("c",))
