"""External validation of a cross-validation: every fold's model, their ensemble, and the drop of the folds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from tests.external.cohorts import TRAIN, longvit, write_cohort

PREDICT = ("--device", "cpu", "--threads", "1", "--bootstrap", "20")


@pytest.mark.slow
def test_the_ensemble_is_the_mean_of_the_folds_and_the_drop_that_of_their_mean(tmp_path: Path) -> None:
    a, b = write_cohort(tmp_path / "a", "a", seed=3, n=28), write_cohort(tmp_path / "b", "b", seed=4, n=16)
    cv = tmp_path / "cv"
    assert longvit("train", a, "--out", cv, "--folds", "2", *TRAIN)[0] == 0
    code, text, error = longvit("predict", cv, b, "--out", tmp_path / "out", *PREDICT)
    assert code == 0, error
    assert "AUC of the ensemble" in text
    rows = pd.read_csv(tmp_path / "out" / "external" / "predictions.csv")
    p = {name: part["prob_stained"].to_numpy() for name, part in rows.groupby("system", sort=False)}
    assert list(p) == ["ensemble", "fold 0", "fold 1", "mean_colour", "random_encoder"]
    np.testing.assert_allclose(p["ensemble"], (p["fold 0"] + p["fold 1"]) / 2, rtol=0, atol=1e-15)
    y = (rows[rows["system"] == "ensemble"]["label"] == "stained").to_numpy()
    metrics = json.loads((tmp_path / "out" / "external" / "metrics.json").read_text())
    assert metrics["cohort_a"]["slides"] == 28
    entries = metrics["levels"]["slides"]
    assert {name: of["auc"]["value"] for name, of in entries["systems"].items()} == pytest.approx(
        {name: roc_auc_score(y, of) for name, of in p.items()}, abs=1e-12
    )
    of_a = []
    for fold in ("fold_0", "fold_1"):
        outputs = pd.read_csv(cv / fold / "outputs.csv")
        table = outputs[outputs["split"] == "test"].merge(pd.read_csv(cv / fold / "slides.csv"), on="slide_id")
        z = softmax(table[["output_0", "output_1"]].to_numpy(), axis=1)[:, 1]
        of_a.append(roc_auc_score(table["label"] == "stained", z))
    auc = entries["drop"]["metrics"]["auc"]
    of_b = np.mean([roc_auc_score(y, p[name]) for name in ("fold 0", "fold 1")])
    assert auc["a"] == pytest.approx(np.mean(of_a), abs=1e-12)
    assert auc["difference"]["value"] == pytest.approx(of_b - np.mean(of_a), abs=1e-12)
    optimism = json.loads((cv / "crossval.json").read_text())["epoch_optimism"]
    assert optimism["mean"] >= 0
    assert "optimism of choosing the epoch" in (cv / "index.html").read_text()
    code, _, error = longvit("predict", cv, b.parent, "--out", tmp_path / "x", *PREDICT)
    assert code == 2
    assert "give the model of a fold" in error


@pytest.mark.slow
def test_back_trains_as_many_folds_on_b_and_validates_them_on_all_slides_of_a(tmp_path: Path) -> None:
    a, b = write_cohort(tmp_path / "a", "a", seed=3), write_cohort(tmp_path / "b", "b", seed=4, n=28)
    cv, out = tmp_path / "cv", tmp_path / "out"
    assert longvit("train", a, "--out", cv, "--folds", "2", "--no-controls", *TRAIN)[0] == 0
    code, text, error = longvit("predict", cv, b, "--out", out, "--back", *PREDICT)
    assert code == 0, error
    assert text.count("AUC of the ensemble") == 4  # slides and patients, in both directions
    back = out / "back"
    summary = json.loads((back / "run" / "crossval.json").read_text())
    assert [fold["fold"] for fold in summary["folds"]] == ["0", "1"]
    assert (back / "run" / "index.html").exists()
    tested = {name: set(pd.read_csv(back / "run" / f"fold_{name}" / "slides.csv")["slide_id"]) for name in "01"}
    assert tested["0"] == tested["1"] == set(pd.read_csv(b)["slide_id"])
    rows = pd.read_csv(back / "external" / "predictions.csv")
    assert list(dict.fromkeys(rows["system"])) == ["ensemble", "fold 0", "fold 1"]
    of_a = rows[rows["system"] == "ensemble"].merge(pd.read_csv(a), on="slide_id")
    assert len(of_a) == 24
    assert (of_a["label_x"] == of_a["label_y"]).all()
    assert json.loads((back / "external" / "metrics.json").read_text())["cohort_a"]["slides"] == 28
    model = (back / "run" / "fold_0" / "model" / "model.safetensors").read_bytes()
    assert longvit("predict", cv, b, "--out", out, "--back", *PREDICT)[0] == 0  # nothing is trained again
    assert (back / "run" / "fold_0" / "model" / "model.safetensors").read_bytes() == model
