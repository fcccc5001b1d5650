"""Synthetic slides as files: readable, with their truth, reproducible, and without a patient on two sides."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.conftest import shared

import longvit
from longvit.errors import InputError
from longvit.synthetic import (
    Field,
    SyntheticSettings,
    drawn_fields,
    heat_map_auc,
    make_slides,
    patch_truth,
    read_fields,
    read_truth,
)
from longvit.synthetic.slides import make_groups

SMALL = SyntheticSettings(task="border", side_px=192, square_px=32, block_px=64, pairs=4, patients=1)


def plain_fields(patients: int = 4) -> tuple[Field, ...]:
    """Dark tumour, light healthy tissue, so that a square shows what it is."""
    return tuple(
        Field(f"f{i}{kind}", f"P{i}", f"S{i // 2}", None, kind, np.full((40, 40, 3), 60 if kind else 200, np.uint8))
        for i in range(patients)
        for kind in (False, True)
    )


def rows_of(cohort_csv: Path) -> list[dict[str, str]]:
    with cohort_csv.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", ["share", "any", "border", "arrangement"])
def test_the_truth_is_what_is_in_the_slide(task: str, tmp_path: Path) -> None:
    settings = replace(SMALL, task=task, side_px=256, mpp=0.75)
    cohort = longvit.read_cohort(make_slides(plain_fields(), tmp_path, settings))
    assert len(cohort.rows) == 8
    for row in cohort.rows:
        with longvit.open_slide(row.path) as slide:
            assert slide.size_px == (256, 256)
            assert slide.require_mpp().mean == pytest.approx(0.75, rel=1e-3)
            pixels = slide.read_region(0, 0, 0, 256, 256)
        squares = pixels.reshape(8, 32, 8, 32, 3).mean((1, 3, 4))
        truth = read_truth(tmp_path / row.extra_columns["truth"])
        if truth.any():
            assert squares[truth].max() < squares[~truth].min()
        assert np.array_equal(read_truth(tmp_path / row.extra_columns["truth"], 4, 16), truth[1::2].repeat(2, axis=1))


@pytest.mark.parametrize("task", ["share", "border"])
def test_a_patient_is_in_one_case_and_one_fold(task: str, tmp_path: Path) -> None:
    fields = drawn_fields(patients=12, fields=1, side_px=32)
    rows = rows_of(make_slides(fields, tmp_path, replace(SMALL, task=task, pairs=12, patients=2)))
    cases, folds, sources = defaultdict(set), defaultdict(set), defaultdict(set)
    source_of = {field.patient: field.source for field in fields}
    for row in rows:
        for patient in row["patients"].split(";"):
            cases[patient].add(row["case_id"])
            folds[patient].add(row["fold"])
            sources[row["slide_id"]].add(source_of[patient])
    assert {len(found) for found in (*cases.values(), *folds.values())} == {1}
    assert len({row["fold"] for row in rows}) == 4
    if task == "share":
        assert {len(found) for found in sources.values()} == {1}
    for key in ("site", "fold", "case_id", "patients"):  # as many slides of both classes
        counts = defaultdict(list)
        for row in rows:
            counts[row[key]].append(row["label"])
        assert all(labels.count("inside") + labels.count("below") == len(labels) / 2 for labels in counts.values())


def test_folds_of_the_fields_are_kept() -> None:
    fields = [replace(field, fold="abc"[int(field.patient[1:]) % 3]) for field in plain_fields(6)]
    for group in make_groups(fields, SMALL):
        assert {field.fold for field in (*group.healthy, *group.tumour)} == {group.fold}


def test_tissues_of_different_patients_meet_in_a_group_and_no_group_lacks_one() -> None:
    fields = [field for field in plain_fields(9) if field.is_tumour == (int(field.patient[1:]) < 3)]
    groups = make_groups(fields, SMALL)
    assert len(groups) == 3
    assert all(group.tumour and group.healthy for group in groups)
    with pytest.raises(InputError, match="no source has fields of both tissues"):
        make_groups([replace(field, source=str(field.is_tumour)) for field in fields], replace(SMALL, task="share"))


def test_the_same_call_gives_the_same_files_and_resumes(tmp_path: Path) -> None:
    fields = plain_fields()
    made = [make_slides(fields, tmp_path / name, SMALL).parent for name in ("a", "b")]
    files = [{p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")} for folder in made]
    assert files[0] == files[1]
    removed = sorted((made[0] / "slides").glob("*.tif"))[3]
    removed.unlink()
    (made[0] / "cohort.csv").unlink()
    kept = sorted((made[0] / "slides").glob("*.tif"))[0]
    before = kept.stat().st_mtime_ns
    make_slides(fields, made[0], SMALL)
    assert kept.stat().st_mtime_ns == before
    assert removed.read_bytes() == files[1][removed.relative_to(made[0])]
    with pytest.raises(InputError, match="holds slides with seed 0, not 1"):
        make_slides(fields, made[0], replace(SMALL, seed=1))
    with pytest.raises(InputError, match="holds slides with fields"):
        make_slides(fields[::-1], made[0], SMALL)


def test_the_auc_of_a_heat_map_is_that_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    heat, truth = rng.integers(0, 5, (8, 9)).astype(np.float32), rng.random((8, 9)) < 0.3
    assert heat_map_auc(heat, truth) == pytest.approx(roc_auc_score(truth.ravel(), heat.ravel()))
    assert np.isnan(heat_map_auc(heat, np.zeros((8, 9), bool)))
    with pytest.raises(InputError, match="a heat map of"):
        heat_map_auc(heat, truth[:4])


def test_patches_that_count_depend_on_the_class() -> None:
    mask = np.eye(4, dtype=bool)
    for task, label, expected in [
        ("share", "above", mask), ("share", "below", ~mask), ("any", "some", mask), ("border", "inside", mask),
    ]:  # fmt: skip
        found = patch_truth(task, label, mask)
        assert found is not None
        assert np.array_equal(found, expected)
    assert patch_truth("any", "none", mask) is None
    assert patch_truth("arrangement", "apart", mask) is None
    with pytest.raises(InputError, match="no class 'many'"):
        patch_truth("share", "many", mask)


def test_unusable_fields_are_one_line(tmp_path: Path) -> None:
    fields = plain_fields()
    with pytest.raises(InputError, match="40 × 40 px, smaller than a square"):
        make_slides(fields, tmp_path, replace(SMALL, square_px=64, side_px=192))
    with pytest.raises(InputError, match="no field of tumour"):
        make_slides(fields[::2], tmp_path, SMALL)
    with pytest.raises(InputError, match="P0 has fields of two folds or sources"):
        make_slides([fields[0], replace(fields[1], source="other"), *fields[2:]], tmp_path, SMALL)
    with pytest.raises(InputError, match="all slides are of fold 0"):
        make_slides(fields, tmp_path, replace(SMALL, patients=4))
    table = tmp_path / "fields.csv"
    table.write_text("case_id,label,path\nP1,tumour,missing.png\n")
    with pytest.raises(InputError, match=r"missing\.png"):
        read_fields(table, "tumour")
    with pytest.raises(InputError, match="no column magnification; it has case_id, label, path"):
        read_fields(table, "tumour", only={"magnification": "400"})
    (tmp_path / "mask.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="no mask of a synthetic slide"):
        read_truth(tmp_path / "mask.png")


@pytest.mark.shared
def test_real_fields_are_read_by_source_and_fold() -> None:
    fields = read_fields(
        shared("slides/oral-scc") / "cohort.csv", "OSCC", only={"site": "stain08", "magnification": "400"}, reduced=2
    )
    assert {(field.source, field.fold) for field in fields} == {("stain08", "3")}
    assert {field.pixels.shape for field in fields} == {(112, 112, 3)}
    assert sum(field.is_tumour for field in fields) == 20
