"""Regression, ordinal and multilabel from the table to the report: training, resume, prediction, evaluation, viewer."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longvit.cli import main
from longvit.data.cohort_table import read_cohort
from longvit.finetuning.evaluate import evaluate
from longvit.finetuning.prepare_cohort import prepare_cohort
from longvit.finetuning.settings import FinetuneSettings
from longvit.viewer.prediction_table import read_predictions

TASKS = {
    "regression": ["--label-columns", "age"],
    "ordinal": ["--label-column", "isup"],
    "multilabel": ["--label-columns", "MSI=high", "KRAS"],
}
COLUMNS = {
    "regression": ["value", "predicted_value"],
    "ordinal": ["label", "prob_0", "prob_1", "prob_2", "prediction", "expected_rank"],
    "multilabel": ["label_MSI", "label_KRAS", "probability_MSI", "probability_KRAS"],
}
MAIN = {"regression": "r2", "ordinal": "quadratic_kappa", "multilabel": "auc"}
_MODEL = "--model longvit_tiny_patch32 --side-px 64 --epochs 2 --lr 1e-3 --batch-size 4 --bootstrap 20"
_QUIET = "--checkpoint-minutes 0 --device cpu --threads 1 --num-workers 0"
QUICK = f"{_MODEL} {_QUIET}".split()


def write_cohort(folder: Path, n: int = 24) -> Path:
    """n images, darker with age; two of each patient; a third of the labels of several columns is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["case_id,slide_id,split,age,isup,MSI,KRAS"]
    for i in range(n):
        patient = i // 2
        pixels = np.random.default_rng(i).normal(220 - 12 * patient, 10, (64, 64, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"s{i:02d}.png")
        split = ("train", "test", "train")[patient % 3]
        msi, kras = ("" if (i + c) % 3 == 0 else "01"[patient // (1 + c) % 2] for c in range(2))
        msi = {"0": "low", "1": "high"}.get(msi, msi)
        lines.append(f"P{patient},s{i:02d},{split},{30 + 4 * patient}.5,{patient * 3 // 12},{msi},{kras}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_resumes_to_the_same_bits_predicts_and_is_shown(task: str, tmp_path: Path) -> None:
    cohort, run = write_cohort(tmp_path / "slides"), tmp_path / "run"
    command = ["train", str(cohort), "--task", task, *TASKS[task], "--out", str(run), *QUICK]
    assert main(command) == 0
    names = (
        "predictions.csv",
        "patients.csv",
        "outputs.csv",
        "controls.csv",
        "model/model.safetensors",
        "model/config.json",
    )
    whole = [(run / name).read_bytes() for name in names]
    assert "Patch contributions" in (run / "index.html").read_text()
    assert list(run.glob("contributions_*.png"))
    rows = rows_of(run / "predictions.csv")
    assert list(rows[0]) == ["case_id", "slide_id", "split", *COLUMNS[task]]
    metrics = json.loads((run / "metrics.json").read_text())["splits"]["test"]
    assert f"{MAIN[task]}_interval" in metrics

    patients = rows_of(run / "patients.csv")
    assert list(patients[0]) == ["case_id", "split", "slides", *COLUMNS[task]]
    assert {row["slides"] for row in patients} == {"2"}
    by_patient = json.loads((run / "metrics.json").read_text())["patients"]["test"]
    assert by_patient["aggregate"] == "mean"
    assert by_patient["patients"] == len(patients) == 4

    # an interrupted run ends with the same bits
    steps = sorted((run / "checkpoints").glob("*.json"))
    for path in (run / "checkpoints").glob(f"{steps[-1].stem}.*"):
        path.unlink()
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    assert main(command) == 0
    assert [(run / name).read_bytes() for name in names] == whole

    # `evaluate` recognises the table and finds the metrics of the run
    evaluation = evaluate(run / "predictions.csv", resamples=0)
    assert evaluation.layout == task
    for name, metric in evaluation.groups[0].metrics.items():
        assert metric.mean == pytest.approx(metrics[name], abs=1e-6), name

    # the model folder alone predicts the same
    out = tmp_path / "predicted"
    heat = ["--heatmaps", "geojson"] + (["--heatmap-of", "KRAS"] if task == "multilabel" else [])
    slide = str(tmp_path / "slides" / "s02.png")
    assert main(["predict", str(run / "model"), slide, "--out", str(out), "--device", "cpu", *heat]) == 0
    again = rows_of(out / "predictions.csv")[0]
    (before,) = (row for row in rows if row["slide_id"] == "s02")
    predicted = [name for name in COLUMNS[task] if name in again and name != "prediction"]
    assert predicted
    for name in predicted:
        assert float(again[name]) == pytest.approx(float(before[name]), rel=1e-4, abs=1e-5)
    record = json.loads((out / "slides" / "s02.json").read_text())
    title = {"regression": "age", "multilabel": "KRAS"}.get(task, "above")
    assert title in json.dumps(record["heatmaps"])

    # the viewer lists the worst error, and the report has the task's plots
    shown = read_predictions(run / "predictions.csv")
    assert all(row.prediction.error is not None for row in shown)
    if task == "regression":
        assert shown[0].prediction.error == pytest.approx(
            abs(float(rows[0]["value"]) - float(rows[0]["predicted_value"])), rel=1e-6
        )
    page = (run / "index.html").read_text()
    assert {"regression": "R²", "ordinal": "quadratic-weighted kappa", "multilabel": "KRAS"}[task] in page
    assert (run / "pictures" / {"regression": "scatter.png", "ordinal": "confusion.png"}.get(task, "roc.png")).exists()


@pytest.mark.slow
def test_folds_of_a_regression_are_pooled_in_the_unit_of_the_label(tmp_path: Path) -> None:
    """Each fold standardises by its own training slides: logits of two folds cannot be pooled as they are."""
    cohort, out = write_cohort(tmp_path / "slides"), tmp_path / "cv"
    settings = [*QUICK, "--no-controls"]
    command = ["train", str(cohort), "--task", "regression", "--label-columns", "age", "--folds", "2", *settings]
    assert main([*command, "--out", str(out)]) == 0
    summary = json.loads((out / "crossval.json").read_text())
    rows = [row for row in rows_of(out / "predictions.csv") if row["split"] == "test"]
    error = [abs(float(row["value"]) - float(row["predicted_value"])) for row in rows]
    assert summary["pooled"]["mae"]["value"] == pytest.approx(np.mean(error), rel=1e-6)
    tested = {(row["case_id"], row["fold"]) for row in rows}
    assert len(tested) == len({case for case, _ in tested}) == 12  # no patient is tested in two folds


def test_a_label_column_that_the_task_does_not_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = write_cohort(tmp_path / "slides", n=2)
    command = ["train", str(cohort), "--task", "regression", "--label-column", "age", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert (
        "--label-column age: --task regression reads no class; name it with --label-columns" in capsys.readouterr().err
    )


def test_cohort_split_makes_folds_of_numbers_and_of_several_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = write_cohort(tmp_path / "slides")
    for task, columns in (("regression", ["age"]), ("multilabel", ["MSI=high", "KRAS"])):
        out = tmp_path / task
        options = ["--task", task, "--label-columns", *columns]
        assert main(["cohort", "split", str(cohort), "--k", "3", "--out", str(out), *options]) == 0
        assert main(["cohort", "check", str(cohort), "--folds", str(out), *options]) == 0
    assert "no leak" not in capsys.readouterr().err


def test_patients_whose_slides_lack_different_labels_can_be_split(tmp_path: Path) -> None:
    """Each slide has a stratum of its own there, and most strata are those of no patient."""
    lines = ["case_id,slide_id,path,MSI,KRAS"]
    for i in range(24):
        msi, kras = ("" if (i + c) % 3 == 0 else "01"[i // 2 // (1 + c) % 2] for c in range(2))
        lines.append(f"P{i // 2},s{i},s{i}.png,{msi},{kras}")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    cohort = read_cohort(tmp_path / "cohort.csv", label_column=None, need_files=False)
    split, _ = prepare_cohort(cohort, FinetuneSettings(task="multilabel", label_columns=("MSI", "KRAS")))
    sides = {row.case_id: {other.split for other in split.rows if other.case_id == row.case_id} for row in split.rows}
    assert all(len(found) == 1 for found in sides.values())
    assert {row.split for row in split.rows} == {"train", "val", "test"}
