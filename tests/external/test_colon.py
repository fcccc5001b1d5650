"""The colon fields split by source: A to B and back with one command, and every metric that of scikit-learn."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score
from tests.conftest import shared
from tests.external.cohorts import TRAIN, longvit

SITES_OF_A = ("a0", "a1", "a3", "h0", "h1", "h3")


def write_halves(folder: Path) -> tuple[Path, Path]:
    """a.csv and b.csv: the fields of the sites of A, and the others."""
    table = shared("slides/colon/cohort.csv")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ["case_id", "slide_id", "label", "site", "path"]
    for name, is_wanted in (("a", True), ("b", False)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            for row in rows:
                if (row["site"] in SITES_OF_A) is is_wanted:
                    writer.writerow(row | {"path": str(table.parent / row["path"])})
    return folder / "a.csv", folder / "b.csv"


@pytest.mark.slow
@pytest.mark.shared
def test_both_directions_with_one_command_and_metrics_of_scikit_learn(tmp_path: Path) -> None:
    a, b = write_halves(tmp_path)
    cache = ("--cache-dir", tmp_path / "canvases", "--device", "cpu", "--threads", "1")
    assert longvit("train", a, "--out", tmp_path / "run", *TRAIN, *cache[:2])[0] == 0
    command = ("predict", tmp_path / "run", b, "--out", tmp_path / "out", "--back", "--bootstrap", "50", *cache)
    code, text, error = longvit(*command)
    assert code == 0, error
    assert "A to B" in text
    assert "B to A" in text
    for out, slides, patients in ((tmp_path / "out", 135, 120), (tmp_path / "out" / "back", 203, 182)):
        metrics = json.loads((out / "external" / "metrics.json").read_text())
        assert not metrics["overlap"]["patients"]
        for level, n in (("slides", slides), ("patients", patients)):
            name = "predictions.csv" if level == "slides" else "patients.csv"
            rows = pd.read_csv(out / "external" / name)
            for system, part in rows.groupby("system"):
                y, p = (part["label"] == "healthy").to_numpy().astype(int), part["prob_healthy"].to_numpy()
                assert len(part) == n
                expected = {
                    "auc": roc_auc_score(y, p),
                    "average_precision": average_precision_score(y, p),
                    "balanced_accuracy": balanced_accuracy_score(y, p > 0.5),
                    "f1": f1_score(y, p > 0.5),
                }
                entries = metrics["levels"][level]
                found = {key: entries["systems"][system][key]["value"] for key in expected}
                assert found == pytest.approx(expected, abs=1e-12)
                if system == "model":
                    assert entries["calibration"]["brier"]["value"] == pytest.approx(brier_score_loss(y, p), abs=1e-12)
        assert set(metrics["groups"]["site"]) >= {"a2", "h2"} or set(metrics["groups"]["site"]) == set(SITES_OF_A)
