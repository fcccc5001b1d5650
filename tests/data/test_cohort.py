"""Manifests: tolerant in what they look like, strict in what they mean."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.splits import split_by_patient
from longvit.errors import InputError

SHARED = Path(__file__).parents[2].parent / "shared"


def write(folder: Path, text: str, *slides: str, encoding: str = "utf-8") -> Path:
    """A cohort.csv, with an empty file per slide (nothing is opened while the cohort is read)."""
    for slide in slides:
        (folder / slide).parent.mkdir(parents=True, exist_ok=True)
        (folder / slide).touch()
    path = folder / "cohort.csv"
    path.write_bytes(text.encode(encoding))
    return path


def error(path: Path, **settings: Any) -> str:
    text = refused(path, **settings)
    assert text.startswith(str(path)) or "slide" in text
    return text.removeprefix(str(path))


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_cohort(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """BOM, semicolons, spaces, capitals, blank lines, ids with and without extension, labels as 1.0."""
    text = "Case ID; Slide-ID ;Label;MPP;Split\r\n p1 ;a.SVS;1.0;0.25;Training\r\n\r\np2; TCGA.b ;0.0;;tune\r\n;;;;\r\n"
    path = write(tmp_path, text, "a.svs", "TCGA.b.ome.tif", encoding="utf-8-sig")
    cohort = read_cohort(path)
    assert cohort.rows == (
        SlideRow("p1", "a", "1", tmp_path / "a.svs", 0.25, "train"),
        SlideRow("p2", "TCGA.b", "0", tmp_path / "TCGA.b.ome.tif", None, "val"),
    )
    assert cohort.classes == ("0", "1")
    assert cohort.class_index(cohort.rows[0]) == 1
    assert cohort.notes == ()


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,label\na,10\nb,9\nc,9\n", "a.svs", "b.svs", "c.svs")
    assert read_cohort(path).classes == ("9", "10")


def test_without_case_id_every_slide_is_a_patient_and_it_is_said(tmp_path: Path) -> None:
    cohort = read_cohort(write(tmp_path, "slide_id,label\na,x\nb,y\n", "a.svs", "b.svs"))
    assert [row.case_id for row in cohort.rows] == ["a", "b"]
    assert "no column 'case_id': every slide counts as a separate patient" in cohort.notes[0]


def test_path_alone_is_enough_and_is_relative_to_the_csv(tmp_path: Path) -> None:
    cohort = read_cohort(
        write(tmp_path, "path,label\nscans/a.b.svs,x\nscans/c.jpg,y\n", "scans/a.b.svs", "scans/c.jpg")
    )
    assert [(row.slide_id, row.path) for row in cohort.rows] == [
        ("a.b", tmp_path / "scans/a.b.svs"),
        ("c", tmp_path / "scans/c.jpg"),
    ]


def test_slides_are_found_in_slides_dir_one_folder_down_and_as_dicom(tmp_path: Path) -> None:
    slides = tmp_path / "elsewhere"
    path = write(tmp_path, "slide_id,label\na,x\nb,y\n")
    write(slides, "", "0a1b/a.svs", "b/1.dcm", "b/2.dcm")
    assert [r.path for r in read_cohort(path, slides_dir=slides).rows] == [slides / "0a1b/a.svs", slides / "b"]


def test_two_files_of_one_id_ask_for_a_path(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,label\na,x\nb,y\n", "a.svs", "a.tif", "b.svs")
    assert "2 files match this slide id" in error(path)
    write(tmp_path, "slide_id,label\na.tif,x\nb,y\n")  # with its extension the id is clear
    assert read_cohort(path).rows[0].path.name == "a.tif"


def test_thumbnails_do_not_hide_the_slides(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,label\na,x\nb,y\n", "a.svs", "b.svs", "thumbnails/a.jpg", "thumbnails/b.jpg")
    assert [row.path.name for row in read_cohort(path).rows] == ["a.svs", "b.svs"]
    write(tmp_path / "slides", "", "a.ndpi", "b.ndpi")
    assert [r.path.name for r in read_cohort(path, slides_dir=tmp_path / "slides").rows] == ["a.ndpi", "b.ndpi"]


def test_no_label_column_names_those_there_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,lable\na,x\nb,y\n", "a.svs", "b.svs")
    assert error(path) == ": no column 'label' (it has slide_id, lable); did you mean --label-column lable?"
    assert read_cohort(path, label_column="Lable").classes == ("x", "y")
    genes = ",".join(f"gene{i}" for i in range(3000))
    path = write(tmp_path, f"slide_id,{genes}\na\nb\n")
    assert "gene18, … and 2981 more)" in error(path)
    assert len(error(path)) < 300


def test_unknown_slide_says_where_it_was_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,label,path\na,x,a.svs\nb,y,scans/b.svs\nc,y,c.svs\n", "a.svs")
    assert error(path) == (
        f", line 3: no slide b (searched for {tmp_path / 'scans/b.svs'}); 1 more of 3 slides lack a file too; "
        "give --slides-dir, or a column path"
    )
    path = write(tmp_path, "slide_id,label\na,x\nb,y\n")
    assert error(path).startswith(f", line 3: no slide b (searched for b.svs, .tif, … in {tmp_path})")


def test_one_class_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,label\na,x\nb,x\n", "a.svs", "b.svs")
    assert "every row has the label 'x'; at least two classes" in error(path)


def test_patient_in_two_splits_is_named_with_the_splits(tmp_path: Path) -> None:
    path = write(
        tmp_path, "case_id,slide_id,label,split\np1,a,x,train\np1,b,x,test\np2,c,y,train\n", "a.svs", "b.svs", "c.svs"
    )
    assert error(path) == ": patient p1 is in two splits (test, train); put each in one"


def test_patient_in_two_folds_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "case_id,slide_id,label,fold\np1,a,x,0\np1,b,y,1\n", "a.svs", "b.svs")
    assert "patient p1 is in two folds (0, 1)" in error(path)


def test_a_slide_listed_twice_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,label\na.svs,x\nb,y\na,y\n", "a.svs", "b.svs")
    assert error(path) == ", line 4: slide a is already on line 2; keep one row"
    path = write(tmp_path, "slide_id,path,label\na,a.svs,x\nb,./a.svs,y\n")
    assert "is already the file of line 2" in error(path)


@pytest.mark.parametrize("text", ["", "\n\n", "slide_id,label\n", "slide_id,label\n\n ,\n"])
def test_an_empty_csv_says_what_it_needs(tmp_path: Path, text: str) -> None:
    assert "it needs a line with column names" in error(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide_id,label\na,x\nb,\n", ", line 3: no label; fill it in"),
        ("slide_id,label\na,x\nb\n", ", line 3: no label; fill it in"),
        ("slide_id,label\na,0.3\nb,1\n", ", line 2: label is 0.3: a measurement, not a class"),
        ("slide_id,label,split\na,x,train\nb,y,holdout\n", "line 3: split is 'holdout'; it must be train, val or test"),
        ("slide_id,label,split\na,x,train\nb,y,\n", "line 3: no split, while 1 other rows have one"),
        ("slide_id,label,mpp\na,x,0.5\nb,y,fine\n", "line 3: mpp is 'fine'; it must be a positive number"),
        ("slide_id,label,mpp\na,x,0.5\nb,y,-1\n", "line 3: mpp is '-1'"),
        ("slide_id,label,label\na,x,y\n", "two columns are called 'label'"),
        ("name,label\na,x\nb,y\n", "no column 'slide_id' or 'path' (it has name, label)"),
        ("slide_id,label\na,x,y\n", "line 2: 3 cells for 2 columns"),
        ("slide_id,label\na,1\nb,2\nc,3\n", "label is different in all 3 rows"),
    ],
)
def test_what_would_make_a_result_wrong_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in error(write(tmp_path, text, "a.svs", "b.svs", "c.svs"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_bytes(b"PK\x03\x04\x00\xff")
    assert "not a text file; save the table as CSV" in error(path)
    path.write_bytes("slide_id,label\nä,x".encode("latin-1"))
    assert "not UTF-8" in error(path)
    path.unlink()
    assert "cannot be read: No such file" in error(path)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_cohort(path, slides_dir=tmp_path / "nowhere")


# --- what tasks and checks ask for ------------------------------------------------------------------------------------


def test_a_task_finds_its_own_columns_in_the_cells(tmp_path: Path) -> None:
    path = write(
        tmp_path, ",Case ID,slide_id,Survival Months,event\n0,p1,a.svs, 12.5 ,1\n1,p2,b.svs,3\n", "a.svs", "b.svs"
    )
    a, b = read_cohort(path, label_column=None).rows
    assert (a.label, a.case_id, a.extra_columns["survival_months"], a.extra_columns["event"]) == ("", "p1", "12.5", "1")
    assert "event" not in b.extra_columns
    assert a == SlideRow("p1", "a", "", tmp_path / "a.svs")  # cells play no part in who is who
    assert read_cohort(path, label_column=None).classes == ()
    assert read_cohort(path, label_column=None).summary() == "2 slides of 2 patients"


def test_kept_classes_come_in_the_order_given_and_the_others_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,label\na,IDC\nb,PD\nc,ILC\nd,PD\ne,\n", "a.svs", "c.svs")
    cohort = read_cohort(path, keep=["ILC", "IDC"])  # the files of classes that are left out need not be there
    assert cohort.classes == ("ILC", "IDC")
    assert [row.slide_id for row in cohort.rows] == ["a", "c"]
    assert f"{path}: 3 of 5 rows are of other classes and left out ((no label) 1, PD 2)" in cohort.notes
    assert "no row has the label 'IDCC' (it has (no label), IDC, ILC, PD)" in error(path, keep=["IDC", "IDCC"])
    assert "name at least two, each once" in refused(path, keep=["IDC"])
    path = write(tmp_path, "slide_id,label\na,1.0\nb,2\nc,0.0\n")
    assert read_cohort(path, keep=["1", "0.0"]).classes == ("1", "0")


def test_a_manifest_can_be_checked_before_slides_and_labels_are_there(tmp_path: Path) -> None:
    text = "case_id,slide_id,label,split\np1,a,x,train\np1,b,y,test\np2,c,,train\np3,d,x,test\n"
    path = write(tmp_path, text, "a.svs")
    assert "no label; fill it in" in error(path, need_files=False)
    assert "patient p1 is in two splits" in error(path, need_files=False, need_labels=False)
    cohort = read_cohort(path, need_files=False, need_labels=False, allow_leak=True)
    assert [(row.slide_id, row.path.exists()) for row in cohort.rows] == [("a", True), ("b", False), ("d", False)]
    assert f"{path}: 1 of 4 rows have no label and drop out: c" in cohort.notes
    with pytest.raises(InputError, match="patient p1 is in two splits"):
        cohort.with_splits([row.split for row in cohort.rows])
    assert cohort.with_splits([row.split for row in cohort.rows], allow_leak=True) == cohort


def test_a_zipped_table_is_read_and_a_broken_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:  # pandas names the member after the archive, folders and all
        archive.writestr("../labels.csv.zip", "slide_id,label\na,x\nb,y\n")
    assert read_cohort(path, need_files=False).summary() == "2 slides of 2 patients; x 1, y 1"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("one.csv", "slide_id,label\na,x\nb,y\nc,y\n")
    assert len(read_cohort(path, need_files=False).rows) == 3
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("two.csv", "slide_id,label\na,x\n")
    assert "2 CSV files in it; it must hold one" in error(path)
    path.write_bytes(path.read_bytes()[:40])
    assert "not a readable zip file" in error(path)


def cohort_of(patients: dict[str, list[str]]) -> Cohort:
    """Patient -> labels of its slides."""
    rows = tuple(
        SlideRow(case, f"{case}_{i}", label, Path(f"{case}_{i}.svs"))
        for case, labels in patients.items()
        for i, label in enumerate(labels)
    )
    return Cohort(rows, tuple(sorted({row.label for row in rows})))


def test_splits_keep_patients_together_and_classes_in_proportion() -> None:
    many = {f"p{i}": ["x" if i % 3 else "y"] * (1 + i % 4) for i in range(90)}
    cohort = split_by_patient(cohort_of(many), (0.6, 0.2, 0.2), seed=4)
    split_of = {row.case_id: {r.split for r in cohort.rows if r.case_id == row.case_id} for row in cohort.rows}
    assert all(len(splits) == 1 for splits in split_of.values())
    counts = Counter((many[case][0], *splits) for case, splits in split_of.items())
    assert counts == {
        ("x", "train"): 36, ("x", "val"): 12, ("x", "test"): 12,
        ("y", "train"): 18, ("y", "val"): 6, ("y", "test"): 6,
    }  # fmt: skip


def test_splits_are_a_function_of_the_seed_not_of_the_row_order() -> None:
    many = {f"p{i}": ["x" if i % 2 else "y"] for i in range(40)}
    a = split_by_patient(cohort_of(many), seed=1)
    b = split_by_patient(cohort_of(dict(reversed(many.items()))), seed=1)
    c = split_by_patient(cohort_of(many), seed=2)
    of = [{row.case_id: row.split for row in cohort.rows} for cohort in (a, b, c)]
    assert of[0] == of[1] != of[2]
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()


def test_a_small_class_reaches_train_and_test_first() -> None:
    few = {f"p{i}": ["x"] for i in range(10)} | {"q0": ["y"], "q1": ["y", "y", "x"]}
    cohort = split_by_patient(cohort_of(few), (0.8, 0.1, 0.1))
    assert {row.split for row in cohort.rows if row.case_id in ("q0", "q1")} == {"train", "test"}
    assert any("no patient of class 'y' in val" in note for note in cohort.notes)
    with pytest.raises(InputError, match="class 'y' has 1 patient; training and testing need at least 2"):
        split_by_patient(cohort_of({f"p{i}": ["x"] for i in range(10)} | {"q0": ["y"]}))


def test_fractions_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(InputError, match="must sum to 1"):
        split_by_patient(cohort_of({"a": ["x"], "b": ["y"]}), (0.5, 0.1, 0.1))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared beside the project")
def test_the_colon_cohort_has_its_338_fields_of_302_patients() -> None:
    cohort = read_cohort(SHARED / "slides" / "colon" / "cohort.csv")
    assert cohort.summary() == "338 slides of 302 patients; adenocarcinoma 149, healthy 189"
    assert {row.fold for row in cohort.rows} == set("01234")
