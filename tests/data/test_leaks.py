"""`longvit cohort check` and `split`: every leak, copy and slide that drops out is counted and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import shared

from longvit.cli import main
from longvit.data.cohort import SPLITS, Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import Fold, assign, match, read_folds
from longvit.data.leakage import CohortReport, check
from longvit.data.new_folds import make_folds, patient_disjoint
from longvit.errors import InputError

Captured = pytest.CaptureFixture[str]


def study(folder: Path, text: str, slides: Sequence[str] = (), copies: Sequence[tuple[str, str]] = ()) -> Path:
    """A manifest, a small picture for each name in `slides`, and copies of those."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(slides):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    for one, other in copies:
        shutil.copy(folder / f"{one}.png", folder / f"{other}.png")
    path = folder / "cohort.csv"
    path.write_text(text)
    return path


def read_all(path: Path) -> Cohort:
    return read_cohort(path, need_files=False, need_labels=False, allow_leak=True)


MANIFEST = "case_id,slide_id,label\np1,a,x\np1,b,x\np2,c,y\np3,d,x\np4,e,y\np5,f,\n"


def test_each_kind_of_leak_is_found_by_itself(tmp_path: Path) -> None:
    cohort = read_all(study(tmp_path, MANIFEST, ["a", "b", "c", "d"], [("c", "e")]))
    patient = Fold("patient", ("a", "c"), ("d",), ("b", "e.svs", "f"))
    slide = Fold("slide", ("a", "b", "c"), ("d",), ("d", "e"))
    copy = Fold("copy", ("a", "b", "c"), ("d",), ("e",))
    clean = Fold("clean", ("p1", "p2", "p4"), ("p3",))
    report = check(cohort, [patient, slide, copy, clean])
    assert [fold.shared_patients for fold in report.folds] == [
        {"train+test": ("p1",)},
        {"val+test": ("p3",)},
        {},
        {},
    ]
    assert [fold.shared_slides for fold in report.folds] == [{}, {"val+test": ("d",)}, {}, {}]
    assert [fold.copies for fold in report.folds] == [{"train+test": ("c = e",)}] * 3 + [{}]
    assert report.copies == (("c", "e"),)
    assert [fold.name for fold in report.leaking()] == ["patient", "slide", "copy"]


def test_what_drops_out_is_counted_and_named(tmp_path: Path) -> None:
    path = study(tmp_path, MANIFEST, ["a", "b"])
    (tmp_path / "c.png").write_bytes(b"no picture")
    report = check(read_all(path), [Fold("0", ("a", "c", "u"), ("d",), ("f",))])
    assert report.notes == (f"{path}: 1 of 6 rows have no label and drop out: f",)
    assert report.missing_files == ("d", "e")
    assert list(report.unreadable) == ["c"]
    (fold,) = report.folds
    assert fold.listed == {"train": 3, "val": 1, "test": 1}
    assert fold.used == {"train": 2, "val": 1, "test": 0}
    assert fold.labels == {"train": {"x": 1, "y": 1}, "val": {"x": 1, "y": 0}, "test": {"x": 0, "y": 0}}
    assert fold.unlabelled == {"train": ("u",), "test": ("f",)}
    assert fold.unused == ("b", "e")
    assert (report.slides, report.patients, report.labels, report.patients_of) == (
        5, 4, {"x": 3, "y": 2}, {"x": 2, "y": 2},
    )  # fmt: skip
    assert not report.leaking()


# --- the commands -----------------------------------------------------------------------------------------------------


def test_check_fails_on_a_leak_unless_it_is_allowed(tmp_path: Path, capsys: Captured) -> None:
    rows = "p1,a,x,train\np1,b,x,test\np2,c,y,train\np3,d,y,test\n"
    path = study(tmp_path, f"case_id,slide_id,label,split\n{rows}", "abcd")
    assert main(["cohort", "check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "fold split: patients in train+test: p1" in out
    assert "1 of 1 folds leak" in err
    assert len(err.splitlines()) == 1
    assert main(["cohort", "check", str(path), "--allow-leak"]) == 0
    path.write_text(path.read_text().replace("p1,b", "p9,b"))
    capsys.readouterr()
    assert main(["cohort", "check", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folds"][0]["used"] == {"train": 2, "test": 2}
    assert facts["folds"][0]["leaks"] == 0


def test_check_reads_the_fold_column_and_a_manifest_without_any(tmp_path: Path, capsys: Captured) -> None:
    path = study(tmp_path, "case_id,slide_id,label,fold\np1,a,x,0\np1,b,x,1\np2,c,y,0\np3,d,y,1\n")
    assert main(["cohort", "check", str(path)]) == 1
    assert "fold 1: patients in train+test: p1" in capsys.readouterr().out
    path.write_text("case_id,slide_id,label\np1,a,x\np2,b,y\np3,c,y\n")
    assert main(["cohort", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "3 slides of 3 patients; x 1 of 1; y 2 of 2" in out
    assert "no file: 3 of 3 slides: a, b, c" in out


def test_a_kept_class_that_is_not_there_names_those_that_are(tmp_path: Path, capsys: Captured) -> None:
    path = study(tmp_path, "slide_id,label\na,x\nb,y\nc,z\n")
    assert main(["cohort", "check", str(path), "--keep", "x", "w"]) == 2
    assert "no row has the label 'w' (it has x, y, z)" in capsys.readouterr().err
    assert main(["cohort", "check", str(path), "--keep", "z", "x"]) == 0
    assert "z 1 of 1; x 1 of 1\n" in capsys.readouterr().out


def test_two_manifests_that_disagree_are_refused_with_both_values(tmp_path: Path, capsys: Captured) -> None:
    one = study(tmp_path, "case_id,slide_id,label,split\np1,a,x,train\np2,b,y,test\np3,c,y,test\n")
    other = study(tmp_path / "other", "case_id,slide_id,label\np1,a.svs,x\np2,b,x\np4,c,y\np5,d,y\n")
    assert main(["cohort", "check", str(one), "--other", str(other)]) == 2
    assert capsys.readouterr().err == (
        f"longvit: slide b has the label y in {one}, but x in {other} (1 more); correct one of them\n"
    )
    other.write_text("case_id,slide_id,label\np1,a.svs,x\np2,b,y\np5,d,y\n")
    assert main(["cohort", "check", str(one), "--other", str(other)]) == 0
    assert "agrees on the 2 slides in both" in capsys.readouterr().err


def test_split_writes_folds_that_check_reads(tmp_path: Path, capsys: Captured) -> None:
    rows = "".join(f"p{i // 2},s{i},{'xy'[i // 2 % 2]},h{i // 2 % 7}\n" for i in range(80))
    path = study(tmp_path, f"case_id,slide_id,label,site\n{rows}")
    for out, more in (("patients", []), ("sites", ["--by-site"])):
        assert main(["cohort", "split", str(path), "--k", "3", "--out", str(tmp_path / out), *more]) == 0
        assert main(["cohort", "check", str(path), "--folds", str(tmp_path / out)]) == 0
        assert "evaluated: 80 different ids of 80 in all folds (each once)" in capsys.readouterr().out
        assert len(read_folds(tmp_path / out)) == 3


def test_survival_folds_are_stratified_by_time_and_event(tmp_path: Path, capsys: Captured) -> None:
    rows = "".join(f"p{i},s{i},{1 + i * 7 % 80},{int(i % 4 > 0)}\n" for i in range(80))
    path = study(tmp_path, f"case_id,slide_id,survival_months,censorship\n{rows}")
    command = ["--task", "survival", "--out", str(tmp_path / "folds"), "--k", "4", "--val-fraction", "0"]
    assert main(["cohort", "split", str(path), *command]) == 0
    cohort = read_cohort(path, label_column=None, need_files=False)
    assert cohort.rows[3].extra_columns["survival_months"] == "22"
    late = {f"s{i}" for i in range(80) if 1 + i * 7 % 80 > 40}
    for fold in read_folds(tmp_path / "folds"):
        assert 8 <= len(late & set(fold.test)) <= 12
        assert 4 <= sum(int(slide[1:]) % 4 == 0 for slide in fold.test) <= 6  # 20 events in 4 folds
    path.write_text(path.read_text().replace("p3,s3,22,1", "p3,s3,-2,1"))
    assert main(["cohort", "check", str(path), "--task", "survival"]) == 2
    assert "slide s3: survival_months is '-2'" in capsys.readouterr().err


# --- the published files ----------------------------------------------------------------------------------------------

# name: kept classes; slides of each; slides, patients; listed; used in fold 0; unlabelled of listed; test ids,
# different and drawn; patients in train and test, fold by fold. Counted before, by other code.
HIPT = {
    "brca": (
        ("IDC", "ILC"), (726, 149), (875, 837), (845, 98, 98), (715, 79, 81), 166, (675, 980),
        (8, 4, 5, 5, 6, 1, 10, 4, 7, 3),
    ),
    "lung": (
        ("LUAD", "LUSC"), (492, 466), (958, 862), (847, 93, 93), (785, 86, 87), 75, (618, 930),
        (7, 12, 7, 10, 4, 6, 7, 8, 9, 12),
    ),
    "kidney": (
        ("CCRCC", "PRCC", "CHRCC"), (498, 289, 118), (905, 866), (753, 89, 89), (730, 88, 87), 26, (588, 890),
        (4, 4, 3, 5, 2, 5, 6, 4, 2, 3),
    ),
}  # fmt: skip


def hipt(name: str) -> tuple[Cohort, tuple[Fold, ...]]:
    cohort = read_cohort(
        shared(f"data/hipt/labels/tcga_{name}_subset.csv.zip"),
        label_column="oncotree_code",
        keep=HIPT[name][0],
        need_files=False,
    )
    return cohort, read_folds(shared(f"data/hipt/splits/tcga_{name}"))


def report_of(name: str) -> CohortReport:
    return check(*hipt(name), contents=False)


@pytest.mark.shared
@pytest.mark.parametrize("name", HIPT)
def test_the_published_subtyping_folds_have_the_counts_of_their_protocol(name: str) -> None:
    report = report_of(name)
    classes, slides_of, size, listed, used, unlabelled, tested, leaks = HIPT[name]
    assert tuple(report.labels.items()) == tuple(zip(classes, slides_of, strict=True))
    assert (report.slides, report.patients) == size
    assert all(tuple(fold.listed.values()) == listed for fold in report.folds)
    assert tuple(report.folds[0].used.values()) == used
    assert [sum(map(len, fold.unlabelled.values())) for fold in report.folds] == [unlabelled] * 10
    assert len({i for fold in report.folds for ids in fold.unlabelled.values() for i in ids}) == unlabelled
    assert (report.different, report.drawn) == tested
    assert tuple(len(fold.shared_patients.get("train+test", ())) for fold in report.folds) == leaks
    assert all(fold.shared_patients["train+val"] for fold in report.folds)
    assert not any(fold.shared_slides or fold.unused for fold in report.folds)
    assert len(report.leaking()) == 10
    assert len(report.missing_files) == report.slides  # the tables come without slides


@pytest.mark.shared
def test_the_published_label_table_has_nine_codes_that_are_left_out() -> None:
    path = shared("data/hipt/labels/tcga_brca_subset.csv.zip")
    every = read_cohort(path, label_column="oncotree_code", need_files=False)
    assert every.summary().startswith("937 slides of 897 patients")
    assert len(every.classes) == 11
    assert hipt("brca")[0].notes == (
        f"{path}: 62 of 937 rows are of other classes and left out "
        "(ACBC 2, BRCA 5, BRCNOS 1, IMMC 12, MBC 11, MDLC 25, MPT 1, PD 3, SPC 2)",
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", HIPT)
def test_a_published_fold_is_refused_as_it_is_and_used_once_made_disjoint(name: str) -> None:
    cohort, folds = hipt(name)
    with pytest.raises(InputError, match=r"is in train and in val, and .* use patient-disjoint folds, or allow"):
        assign(cohort, folds[0])
    assert assign(cohort, folds[0], allow_leak=True).split("test")
    for published, disjoint in zip(folds, patient_disjoint(folds, cohort), strict=True):
        before, after = match(cohort, published), match(cohort, disjoint)
        assert max(abs(len(before.rows[s]) - len(after.rows[s])) for s in SPLITS) <= 3
        assert len(assign(cohort, disjoint).rows) == len(cohort.rows)
        moved = sum(len(set(disjoint.ids(s)) - set(published.ids(s))) for s in SPLITS)
        assert moved <= 40


# name: slides, patients, patients with the event; patients in train and val of each fold
MCAT = {
    "ucec": (539, 480, 75, [(384, 96)] * 5),
    "luad": (516, 453, 158, [(362, 91)] * 3 + [(363, 90)] * 2),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", MCAT)
def test_the_published_survival_folds_are_a_partition_without_leaks(name: str, capsys: Captured) -> None:
    slides, patients, events, sizes = MCAT[name]
    table = shared(f"data/mcat/clinical/tcga_{name}_all_clean.csv.zip")
    folds = shared(f"data/mcat/splits/tcga_{name}")
    assert main(["cohort", "check", str(table), "--task", "survival", "--folds", str(folds), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["slides"], facts["patients"], facts["patients_of"]["event"]) == (slides, patients, events)
    assert [tuple(fold["listed"].values()) for fold in facts["folds"]] == sizes
    assert all(sum(fold["used"].values()) == slides and not fold["unlabelled"] for fold in facts["folds"])
    assert facts["different"] == facts["drawn"] == patients
    assert not any(fold["leaks"] for fold in facts["folds"])


@pytest.mark.shared
def test_the_published_survival_folds_without_a_table_are_disjoint_too() -> None:
    folds = read_folds(shared("data/mcat/splits/tcga_brca"))
    assert (len(folds[0].train), len(folds[0].val)) == (764, 192)
    assert len({case for fold in folds for case in fold.val}) == sum(len(fold.val) for fold in folds) == 956
    assert not any(set(fold.train) & set(fold.val) for fold in folds)


@pytest.mark.shared
def test_new_folds_of_a_published_table_keep_its_hospitals_apart() -> None:
    cohort, _ = hipt("kidney")
    for fold in make_folds(cohort, 5, by_site=True):
        split = assign(cohort, fold)
        sites = [{row.site for row in split.split(name)} for name in SPLITS]
        assert all(len(s) > 1 for s in sites)
        assert len(set.union(*sites)) == sum(map(len, sites))
