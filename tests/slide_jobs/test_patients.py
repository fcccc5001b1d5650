"""Patients of predicted and embedded slides: one row each, identity as in cohort tables."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from longvit.cli import main
from longvit.errors import InputError
from longvit.slide_jobs.embed import FOLDER
from longvit.slide_jobs.patients import patients_of_sources, write_patient_embeddings, write_patient_predictions


def write_csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["case_id,slide_id", *rows]) + "\n")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predicted(slide_id: str, **cells: Any) -> dict[str, Any]:
    return {"slide_id": slide_id, "prediction": {name: str(value) for name, value in cells.items()}}


def test_slides_of_a_patient_become_one_row(tmp_path: Path) -> None:
    case_of = patients_of_sources([write_csv(tmp_path / "cohort.csv", "P1,a.svs", "P1,b", ",c")])
    assert case_of == {"a": "P1", "b": "P1", "c": "c"}
    records = [
        predicted("a", prob_no=0.9, prob_yes=0.1, prediction="no"),
        predicted("b", prob_no=0.2, prob_yes=0.8, prediction="yes"),
        predicted("c", prob_no=0.6, prob_yes=0.4, prediction="no"),
    ]
    write_patient_predictions(tmp_path, records, case_of, "mean")
    assert rows_of(tmp_path / "patients.csv") == [
        {"case_id": "P1", "slides": "2", "prob_no": "0.55", "prob_yes": "0.45", "prediction": "no"},
        {"case_id": "c", "slides": "1", "prob_no": "0.6", "prob_yes": "0.4", "prediction": "no"},
    ]
    write_patient_predictions(tmp_path, records, case_of, "max")
    assert rows_of(tmp_path / "patients.csv")[0] == {
        "case_id": "P1", "slides": "2", "prob_no": "0.2", "prob_yes": "0.8", "prediction": "yes",
    }  # fmt: skip


def test_without_patients_there_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("slide_id\na\n")
    assert patients_of_sources([tmp_path / "list.csv", tmp_path]) == {}
    assert write_patient_predictions(tmp_path, [predicted("a", risk=1)], {}, "mean") is None
    assert not (tmp_path / "patients.csv").exists()


def test_the_embedding_of_a_patient_is_the_mean_of_those_of_its_slides(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    (tmp_path / FOLDER).mkdir()
    records = []
    for name, vector in zip("abc", vectors, strict=True):
        with h5py.File(tmp_path / FOLDER / f"{name}.h5", "w") as file:
            file["features"] = vector
        records.append({"slide_id": name, "features": {"file": f"{name}.h5"}})
    write_patient_embeddings(tmp_path, records, {"a": "P1", "c": "P1", "b": "P2"}, 5)
    first, second = rows_of(tmp_path / "patient_embeddings.csv")
    assert (first["case_id"], first["slides"], second["case_id"]) == ("P1", "2", "P2")
    found = np.array([float(first[f"f{i}"]) for i in range(5)])
    assert found == pytest.approx(vectors[[0, 2]].astype(np.float64).mean(0), rel=1e-6)


def test_two_spellings_of_a_patient_and_two_patients_of_a_slide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="differ in spelling only"):
        patients_of_sources([write_csv(tmp_path / "a.csv", "P1,a", "p1,b")])
    with pytest.raises(InputError, match="slide a is of patient P2, and of patient P1 elsewhere"):
        patients_of_sources([write_csv(tmp_path / "b.csv", "P1,a"), write_csv(tmp_path / "c.csv", "P2,a")])


def test_embeddings_by_patient_need_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["embed", "longvit-tiny-stem", str(tmp_path), "--by", "patient", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "--by patient: give a CSV with the columns slide_id (or path) and case_id" in capsys.readouterr().err
