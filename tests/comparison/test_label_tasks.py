"""Systems of the comparison on numbers, grades and several labels: every metric is that of the files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, r2_score, roc_auc_score
from tests.comparison.made import QUICK, WIDTH, write_features

from longvit.comparison.compare import compare
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import folds_of_column
from longvit.viewer.comparison_items import load_comparison
from longvit.viewer.slide_places import SlidePlaces

SYSTEMS = ("mean_pooling", "mil", "clam_sb", "ds_mil")
COLUMNS = {"regression": ("age",), "multilabel": ("MSI", "KRAS"), "ordinal": ("label",)}


def write_study(folder: Path, n: int = 24) -> None:
    """Bags whose first feature rises with the grade, two slides of each patient; a third of MSI and KRAS is missing."""
    lines = ["case_id,slide_id,fold,age,label,MSI,KRAS"]
    for i in range(n):
        grade = i // 2 % 3
        features = np.random.default_rng(i).normal(size=(8, WIDTH))
        features[:, 0] += 3 * grade
        write_features(folder / "features", f"s{i:02d}", features)
        msi, kras = ("" if (i + c) % 3 == 0 else str(int(grade > c)) for c in range(2))
        lines.append(f"P{i // 2},s{i:02d},{i // 2 // 3 % 2},{40 + 10 * grade + i % 2},{grade},{msi},{kras}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")


def reference(folder: Path, task: str, system: str, fold: str) -> float:
    """Main metric of outputs.csv, by scikit-learn."""
    with (folder / "cohort.csv").open() as file:
        cells = {row["slide_id"]: row for row in csv.DictReader(file)}
    with (folder / "out" / system / f"fold_{fold}" / "outputs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    outputs = np.array([[float(v) for k, v in row.items() if k.startswith("output_")] for row in rows])
    truth = [cells[row["slide_id"]] for row in rows]
    if task == "regression":
        train = [float(c["age"]) for c in cells.values() if c["fold"] != fold]
        return float(r2_score([float(c["age"]) for c in truth], outputs[:, 0] * np.std(train) + np.mean(train)))
    if task == "ordinal":
        reach = 1 / (1 + np.exp(-outputs))
        p = np.stack([1 - reach[:, 0], reach[:, 0] * (1 - reach[:, 1]), reach[:, 0] * reach[:, 1]], 1)
        return float(cohen_kappa_score([int(c["label"]) for c in truth], p.argmax(1), weights="quadratic"))
    areas = []
    for c, name in enumerate(("MSI", "KRAS")):
        there = [i for i, cell in enumerate(truth) if cell[name]]
        areas.append(roc_auc_score([int(truth[i][name]) for i in there], outputs[there, c]))
    return float(np.mean(areas))


@pytest.mark.parametrize("task", COLUMNS)
def test_systems_train_on_the_task_and_the_table_has_the_metric_of_scikit_learn(task: str, tmp_path: Path) -> None:
    write_study(tmp_path)
    cohort = read_cohort(tmp_path / "cohort.csv", label_column="label" if task == "ordinal" else None, need_files=False)
    settings = replace(QUICK, task=task, label_columns=COLUMNS[task], systems=SYSTEMS, set=(), epochs=4)
    summary = compare(
        cohort, tmp_path / "out", folds_of_column(cohort),
        settings, features=tmp_path / "features",
    ).summary  # fmt: skip
    assert not summary["per_patient"]
    for row in summary["systems"]:
        assert not any(trial["error"] for trial in row["cells"]), row["cells"]
        for trial in row["cells"]:
            wanted = reference(tmp_path, task, row["system"], trial["fold"])
            assert trial["value"] == pytest.approx(wanted, abs=1e-9)
    items = load_comparison(tmp_path / "out", SlidePlaces()).items
    assert len(items) == 24
    assert all(len(item.predictions) == len(SYSTEMS) for item in items)
    if task == "multilabel":
        assert set(items[0].predictions[0].probabilities) == {"MSI", "KRAS"}
