"""Patients with several slides in a comparison: metrics beside those of the slides, equal to scikit-learn's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import r2_score, roc_auc_score
from tests.comparison.made import QUICK
from tests.comparison.test_label_tasks import write_study

from longvit.comparison.compare import compare
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import folds_of_column

COLUMNS = {"subtyping": ("label",), "regression": ("age",), "multilabel": ("MSI", "KRAS")}


def of_patients(folder: Path, task: str, fold: str) -> float:
    """Main metric of the patients of a fold, from outputs.csv and cohort.csv."""
    cohort = pd.read_csv(folder / "cohort.csv", dtype={"fold": str})
    outputs = pd.read_csv(folder / "out" / "mil" / f"fold_{fold}" / "outputs.csv")
    rows = outputs[outputs["split"] == "test"].merge(cohort, on="slide_id")
    z = rows[[name for name in rows if name.startswith("output_")]].to_numpy()
    p = {"subtyping": softmax(z, axis=1), "regression": z, "multilabel": expit(z)}[task]
    mean = pd.DataFrame(p).groupby(rows["case_id"], sort=False).mean()
    first = rows.groupby("case_id", sort=False)
    if task == "subtyping":
        return float(roc_auc_score(first["label"].first(), mean.to_numpy(), multi_class="ovr"))
    if task == "regression":
        ages = rows["age"] - rows["age"] % 10  # both slides have the age of the patient
        train = cohort[cohort["fold"] != fold]["age"]
        train = train - train % 10
        truth = ages.groupby(rows["case_id"], sort=False).first()
        return float(r2_score(truth, mean[0] * np.std(train) + np.mean(train)))
    areas = []
    for c, name in enumerate(("MSI", "KRAS")):
        label = first[name].max()  # a label that one slide lacks is that of the other
        areas.append(roc_auc_score(label[label.notna()], mean[c][label.notna()]))
    return float(np.mean(areas))


@pytest.mark.parametrize("task", COLUMNS)
def test_patient_metrics_equal_those_of_scikit_learn(task: str, tmp_path: Path) -> None:
    write_study(tmp_path, n=36)
    if task == "regression":  # a patient has one age
        table = pd.read_csv(tmp_path / "cohort.csv", dtype=str)
        table["age"] = table["age"].astype(int) // 10 * 10
        table.to_csv(tmp_path / "cohort.csv", index=False)
    label = "label" if task == "subtyping" else None
    cohort = read_cohort(tmp_path / "cohort.csv", label_column=label, need_files=False)
    settings = replace(QUICK, task=task, label_columns=COLUMNS[task], systems=("mil",), set=(), epochs=4)
    folder = tmp_path / "out"
    compare(cohort, folder, folds_of_column(cohort), settings, features=tmp_path / "features")
    stored = json.loads((folder / "benchmark.json").read_text())
    (system,) = stored["systems"]
    patients = system["patients"]
    metric = stored["figure"]
    wanted = [of_patients(tmp_path, task, fold) for fold in ("0", "1")]
    assert [patients["folds"][fold][metric] for fold in ("0", "1")] == pytest.approx(wanted, abs=1e-12)
    assert patients["mean"] == pytest.approx(np.mean(wanted), abs=1e-12)
    assert patients["low"] <= patients["mean"] <= patients["high"]
    assert {of["patients"] for of in patients["folds"].values()} == {9}
    row = pd.read_csv(folder / "benchmark.csv").iloc[0]
    assert row["patients_mean"] == pytest.approx(patients["mean"], rel=1e-8)
    assert list(pd.read_csv(folder / "benchmark.csv"))[-5:] == [
        "errors", "patients_mean", "patients_sd", "patients_low", "patients_high",
    ]  # fmt: skip


def test_one_bag_per_patient_needs_no_second_row(tmp_path: Path) -> None:
    write_study(tmp_path, n=24)
    cohort = read_cohort(tmp_path / "cohort.csv", need_files=False)
    settings = replace(QUICK, systems=("mean_pooling",), set=(), epochs=1, bags="patient")
    folder = tmp_path / "out"
    compare(cohort, folder, folds_of_column(cohort), settings, features=tmp_path / "features")
    assert json.loads((folder / "benchmark.json").read_text())["systems"][0]["patients"] is None
    assert "patients" not in (folder / "benchmark.csv").read_text()
