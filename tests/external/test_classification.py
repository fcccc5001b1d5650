"""External validation of a class model: every metric equals that of scikit-learn on the files written."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
    roc_curve,
)
from tests.external.cohorts import TRAIN, longvit, write_cohort

PREDICT = ("--device", "cpu", "--threads", "1", "--bootstrap", "30")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohorts a and b, a fine-tuning `one`, and its external validation `out`."""
    folder = tmp_path_factory.mktemp("external")
    a, b = write_cohort(folder / "a", "a", seed=1), write_cohort(folder / "b", "b", seed=2)
    assert longvit("train", a, "--out", folder / "one", *TRAIN)[0] == 0
    options = ("--subgroup", "sex", "--prevalence", "0.1", "--recalibrate-on", "site=north")
    code, text, _ = longvit("predict", folder / "one", b, "--out", folder / "out", *options, *PREDICT)
    assert code == 0, text
    assert "slides: AUC of the model" in text
    return folder


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "external" / "metrics.json").read_text())


def table(out: Path, name: str, system: str) -> pd.DataFrame:
    rows = pd.read_csv(out / "external" / name)
    return rows[rows["system"] == system]


def outputs_of(run: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and p(stained) of a split of A, from outputs.csv and slides.csv."""
    outputs = pd.read_csv(run / "outputs.csv")
    outputs = outputs[outputs["split"] == split].merge(pd.read_csv(run / "slides.csv"), on="slide_id")
    z = outputs[["output_0", "output_1"]].to_numpy()
    return (outputs["label"] == "stained").to_numpy().astype(int), softmax(z, axis=1)[:, 1]


@pytest.mark.parametrize("level", ["slides", "patients"])
@pytest.mark.parametrize("system", ["model", "mean_colour", "random_encoder"])
def test_metrics_equal_those_of_scikit_learn(runs: Path, level: str, system: str) -> None:
    entries = metrics_of(runs / "out")["levels"][level]
    rows = table(runs / "out", "predictions.csv" if level == "slides" else "patients.csv", system)
    assert len(rows) == entries["cases"] == (24 if level == "slides" else 12)
    y, p = (rows["label"] == "stained").to_numpy().astype(int), rows["prob_stained"].to_numpy()
    expected = {
        "auc": roc_auc_score(y, p),
        "auc_delong": roc_auc_score(y, p),
        "average_precision": average_precision_score(y, p),
        "balanced_accuracy": balanced_accuracy_score(y, p > 0.5),
        "accuracy": (y == (p > 0.5)).mean(),
        "f1": f1_score(y, p > 0.5),
    }
    found = {name: entries["systems"][system][name]["value"] for name in expected}
    assert found == pytest.approx(expected, abs=1e-12)
    if system == "model":
        assert entries["calibration"]["brier"]["value"] == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    else:
        main = table(runs / "out", "predictions.csv" if level == "slides" else "patients.csv", "model")
        gap = roc_auc_score(y, main["prob_stained"]) - expected["auc"]
        assert entries["differences"][system]["auc"]["value"] == pytest.approx(gap, abs=1e-12)


def test_a_patient_has_the_mean_of_its_slides(runs: Path) -> None:
    slides, patients = (table(runs / "out", name, "model") for name in ("predictions.csv", "patients.csv"))
    means = slides.groupby("case_id")["prob_stained"].mean()
    np.testing.assert_allclose(patients["prob_stained"], means[patients["case_id"]], rtol=0, atol=1e-15)


def test_the_threshold_is_chosen_on_a_and_applied_to_b(runs: Path) -> None:
    threshold = metrics_of(runs / "out")["levels"]["slides"]["threshold"]
    y_a, p_a = outputs_of(runs / "one", "val")
    fpr, tpr, thresholds = roc_curve(y_a, p_a, drop_intermediate=False)
    assert threshold["chosen_on"] == "val"
    assert threshold["value"] == pytest.approx(thresholds[(tpr - fpr).round(12).argmax()], abs=1e-12)
    rows = table(runs / "out", "predictions.csv", "model")
    y, called = rows["label"] == "stained", rows["prob_stained"] >= threshold["value"]
    sensitivity, specificity = called[y].mean(), (~called[~y]).mean()
    point = threshold["at_prevalence_of_b"]
    assert point["sensitivity"]["value"] == pytest.approx(sensitivity, abs=1e-12)
    assert point["specificity"]["value"] == pytest.approx(specificity, abs=1e-12)
    ppv = sensitivity * 0.1 / (sensitivity * 0.1 + (1 - specificity) * 0.9)
    assert threshold["at_stated_prevalence"]["ppv"]["value"] == pytest.approx(ppv, abs=1e-12)


def test_the_drop_is_b_minus_the_reported_split_of_a(runs: Path) -> None:
    drop = metrics_of(runs / "out")["levels"]["slides"]["drop"]
    y, p = outputs_of(runs / "one", "test")
    rows = table(runs / "out", "predictions.csv", "model")
    b = roc_auc_score(rows["label"] == "stained", rows["prob_stained"])
    auc = drop["metrics"]["auc"]
    assert (drop["split_of_a"], drop["cases_of_a"]) == ("test", len(y))
    assert auc["a"] == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert auc["difference"]["value"] == pytest.approx(b - roc_auc_score(y, p), abs=1e-12)
    assert auc["difference"]["low"] <= auc["difference"]["high"]


def test_groups_are_the_rows_with_that_value(runs: Path) -> None:
    groups = metrics_of(runs / "out")["groups"]
    rows = table(runs / "out", "predictions.csv", "model")
    sex = pd.read_csv(runs / "b" / "b.csv").set_index("slide_id")["sex"]
    assert set(groups) == {"site", "sex"}
    for column, of in {"site": rows["site"], "sex": rows["slide_id"].map(sex)}.items():
        for value, entry in groups[column].items():
            part = rows[(of == value).to_numpy()]
            auc = roc_auc_score(part["label"] == "stained", part["prob_stained"])
            assert entry["slides"] == len(part)
            assert entry["metrics"]["auc"]["value"] == pytest.approx(auc, abs=1e-12)


def test_recalibration_is_fitted_on_one_part_and_evaluated_on_other_patients(runs: Path) -> None:
    entry = metrics_of(runs / "out")["recalibration"]
    rows = table(runs / "out", "predictions.csv", "model")
    rest = rows[rows["site"] == "south"]
    assert entry["fitted_on_slides"] + entry["evaluated_on_slides"] == len(rows)
    auc = roc_auc_score(rest["label"] == "stained", rest["prob_stained"])
    assert entry["before"]["auc"]["value"] == pytest.approx(auc, abs=1e-12)


def test_longvit_evaluate_reads_the_predictions(runs: Path) -> None:
    auc = metrics_of(runs / "out")["levels"]["slides"]["systems"]["model"]["auc"]["value"]
    code, text, _ = longvit("evaluate", runs / "out" / "external" / "predictions.csv", "--bootstrap", "0", "--json")
    assert code == 0
    (group,) = [group for group in json.loads(text)["groups"] if group["system"] == "model"]
    assert group["figures"]["auc"]["mean"] == pytest.approx(auc, abs=1e-12)


def test_a_column_that_is_not_there_is_refused_before_a_slide_is_read(runs: Path, tmp_path: Path) -> None:
    command = ("predict", runs / "one", runs / "b" / "b.csv", "--out", tmp_path / "out", "--subgroup", "scanner")
    code, _, error = longvit(*command, *PREDICT)
    assert code == 2
    assert "no column 'scanner'; it has case_id, slide_id" in error
    assert not (tmp_path / "out").exists()


def test_the_page_and_the_reporting_table_are_whole(runs: Path) -> None:
    external = runs / "out" / "external"
    page = (external / "index.html").read_text()
    for text in ("A&#39;s threshold on B", "From cohort A to cohort B", "control: mean colour", "TRIPOD+AI", "By sex"):
        assert text in page, text
    text = re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    assert not re.search(r"\bnan\b|\bNone\b", text)
    rows = [line for line in (external / "reporting.md").read_text().splitlines() if line.startswith("| TRIPOD")]
    assert len(rows) >= 27
    assert any("to be filled in" in row for row in rows)


def test_a_model_card_has_the_metrics_of_the_run(runs: Path) -> None:
    card = (runs / "one" / "MODEL_CARD.md").read_text()
    metrics = json.loads((runs / "one" / "metrics.json").read_text())
    assert f"| model | test | {metrics['splits']['test']['auc']:.3f} |" in card
    assert "north, south" in card
    optimism = metrics["epoch_optimism"]
    history = pd.read_csv(runs / "one" / "history.csv")["test_auc"]
    assert optimism["value"] == pytest.approx(history.max() - history.iloc[-1], abs=1e-8)
    assert "optimism of choosing the epoch" in (runs / "one" / "index.html").read_text()


def test_a_copied_file_is_refused_and_dropped_on_request(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "b", tmp_path / "b")
    shutil.copy(runs / "a" / "a00.png", tmp_path / "b" / "b05.png")
    command = ("predict", runs / "one", tmp_path / "b" / "b.csv", "--out", tmp_path / "out", *PREDICT)
    code, _, error = longvit(*command)
    assert code == 2
    assert "1 file (b05 = a00)" in error
    assert not (tmp_path / "out" / "external").exists()
    code, text, _ = longvit(*command, "--overlap", "drop")
    assert code == 0
    assert "1 slides of patients of the run left out" in text
    metrics = metrics_of(tmp_path / "out")
    assert metrics["overlap"]["dropped"] == ["b05"]
    assert metrics["cohort_b"]["slides"] == 23


def test_the_run_itself_is_refused_as_cohort_b(runs: Path, tmp_path: Path) -> None:
    code, _, error = longvit("predict", runs / "one", runs / "a" / "a.csv", "--out", tmp_path / "out", *PREDICT)
    assert code == 2
    assert "12 patients (aP0" in error
    assert "24 files" in error


def test_without_labels_the_slides_are_predicted_as_by_the_model_folder(runs: Path, tmp_path: Path) -> None:
    slides = runs / "b" / "unlabelled.csv"
    slides.write_text("slide_id\nb00\nb03\n")
    for name, model in (("run", runs / "one"), ("model", runs / "one" / "model")):
        assert longvit("predict", model, slides, "--out", tmp_path / name, "--device", "cpu", "--threads", "1")[0] == 0
    assert not (tmp_path / "run" / "external").exists()
    for model in (runs / "one", runs / "one" / "model"):
        code, _, error = longvit("predict", model, slides, "--out", tmp_path / "x", "--overlap", "drop")
        assert code == 2
        assert "--overlap: for an external validation" in error
    assert (tmp_path / "run" / "predictions.csv").read_text() == (tmp_path / "model" / "predictions.csv").read_text()


def test_a_label_of_another_spelling_is_refused_and_an_unreadable_slide_is_a_row(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "b", tmp_path / "b")
    path = tmp_path / "b" / "b.csv"
    text = path.read_text()
    path.write_text(text.replace("b00,pale", "b00,Pale"))
    command = ("predict", runs / "one", path, "--out", tmp_path / "out", *PREDICT)
    code, _, error = longvit(*command)
    assert code == 2
    assert "label 'Pale' is not a class of the run (pale, stained); 'pale' differs from it in spelling only" in error
    path.write_text(text.replace("b00,pale", "b00,"))
    (tmp_path / "b" / "b01.png").write_bytes(b"no image")
    (tmp_path / "b" / "b02.png").unlink()
    code, _, _ = longvit(*command)
    assert code == 1
    with (tmp_path / "out" / "problems.csv").open() as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["b01", "b02"]
    metrics = metrics_of(tmp_path / "out")
    assert metrics["cohort_b"]["slides"] == 21
    assert any("1 of 24 slides have no label" in note for note in metrics["notes"])


def test_a_run_of_an_older_version_says_what_was_not_checked(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "old", ignore=shutil.ignore_patterns("canvases"))
    for name in ("slides.csv", "control_features.safetensors"):
        (tmp_path / "old" / name).unlink()
    code, _, _ = longvit("predict", tmp_path / "old", runs / "b" / "b.csv", "--out", tmp_path / "out", *PREDICT)
    assert code == 0
    metrics = metrics_of(tmp_path / "out")
    assert any("training slides and file contents were not checked" in note for note in metrics["notes"])
    assert any("controls are not computed" in note for note in metrics["notes"])
    assert "threshold" not in metrics["levels"]["slides"]
    code, _, error = longvit("predict", tmp_path / "old", runs / "a" / "a.csv", "--out", tmp_path / "out", *PREDICT)
    assert code == 2
    assert "patients" in error
