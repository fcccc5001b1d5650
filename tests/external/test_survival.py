"""External validation of a survival model: every metric equals that of scikit-survival on the files written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.external.cohorts import TRAIN, longvit, write_cohort

from longvit.data.cohort import SlideRow
from longvit.external.back import cohort_of_run
from longvit.external.source_run import Member, SourceRun
from longvit.finetuning.run_slides import RunSlides
from longvit.finetuning.settings import FinetuneSettings
from longvit.tasks.survival import read_outcome

sksurv_metrics = pytest.importorskip("sksurv.metrics")

PREDICT = ("--device", "cpu", "--threads", "1", "--bootstrap", "20")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation of a fine-tuning on cohort a (30 slides) on cohort b (60 slides of 30 patients)."""
    folder = tmp_path_factory.mktemp("survival")
    a, b = write_cohort(folder / "a", "a", seed=5, n=30), write_cohort(folder / "b", "b", seed=6, n=60)
    code, _, error = longvit("train", a, "--out", folder / "run", "--task", "survival", *TRAIN)
    assert code == 0, error
    command = ("predict", folder / "run", b, "--out", folder / "out", "--subgroup", "sex", *PREDICT)
    code, text, error = longvit(*command)
    assert code == 0, error
    assert "c-index of the model" in text
    return folder / "out"


@pytest.mark.slow
def test_metrics_equal_those_of_scikit_survival(out: Path) -> None:
    from sksurv.metrics import (
        brier_score,
        concordance_index_censored,
        concordance_index_ipcw,
        cumulative_dynamic_auc,
        integrated_brier_score,
    )
    from sksurv.util import Surv

    metrics = json.loads((out / "external" / "metrics.json").read_text())
    rows = pd.read_csv(out / "external" / "patients.csv")
    rows = rows[rows["system"] == "model"]
    months, event, risk = (rows[name].to_numpy() for name in ("survival_months", "event", "risk"))
    y = Surv.from_arrays(event.astype(bool), months)
    times = np.array(metrics["times"])
    curves = rows[[name for name in rows.columns if name.startswith("survival_") and name != "survival_months"]]
    found = {name: entry["value"] for name, entry in metrics["systems"]["model"].items()}
    at, mean = cumulative_dynamic_auc(y, y, risk, times)
    expected = {
        "c_index": concordance_index_censored(event.astype(bool), months, risk)[0],
        "uno_c_index": concordance_index_ipcw(y, y, risk, tau=np.quantile(months, 0.8))[0],
        "time_auc": mean,
        "integrated_brier": integrated_brier_score(y, y, curves.to_numpy(), times),
        **{f"auc_at_{time:.4g}_months": value for time, value in zip(times, at, strict=True)},
        **{
            f"brier_at_{time:.4g}_months": value
            for time, value in zip(times, brier_score(y, y, curves.to_numpy(), times)[1], strict=True)
        },
    }
    assert len(rows) == metrics["patients"] == 30
    assert found == pytest.approx(expected, abs=1e-12)
    part = rows[rows["case_id"].isin(_women(out))]
    c = concordance_index_censored(part["event"].astype(bool), part["survival_months"], part["risk"])[0]
    assert metrics["groups"]["sex"]["f"]["metrics"]["c_index"]["value"] == pytest.approx(c, abs=1e-12)


@pytest.mark.slow
def test_the_cut_is_the_median_risk_of_the_tuning_patients_of_a(out: Path) -> None:
    metrics = json.loads((out / "external" / "metrics.json").read_text())
    predictions = pd.read_csv(out.parent / "run" / "predictions.csv")
    tuning = predictions[predictions["split"] == "val"].groupby("case_id")["risk"].mean()
    cut = metrics["cut"]
    assert cut["chosen_on"] == "val"
    assert cut["risk"] == pytest.approx(tuning.median(), abs=1e-6)
    rows = pd.read_csv(out / "external" / "patients.csv")
    rows = rows[rows["system"] == "model"]
    assert cut["groups"]["higher risk"]["patients"] == int((rows["risk"] > cut["risk"]).sum())
    test = predictions[predictions["split"] == "test"]
    assert metrics["drop"]["cases_of_a"] == test["case_id"].nunique()
    assert (out / "external" / "pictures" / "kaplan_meier.png").exists()
    assert "From cohort A to cohort B" in (out / "external" / "index.html").read_text()


@pytest.mark.slow
def test_calibration_compares_the_mean_prediction_with_kaplan_meier(out: Path) -> None:
    from sksurv.nonparametric import kaplan_meier_estimator

    metrics = json.loads((out / "external" / "metrics.json").read_text())
    rows = pd.read_csv(out / "external" / "patients.csv")
    rows = rows[rows["system"] == "model"]
    columns = [name for name in rows.columns if name.startswith("survival_") and name != "survival_months"]
    for entry, column in zip(metrics["calibration"], columns, strict=True):
        time, alive = kaplan_meier_estimator(rows["event"].astype(bool), rows["survival_months"])
        observed = alive[np.searchsorted(time, entry["months"], side="right") - 1]
        ratio = (1 - observed) / (1 - rows[column].mean())
        assert entry["observed_to_expected"] == pytest.approx(ratio, abs=1e-12)
        assert sum(group["patients"] for group in entry["groups"]) == len(rows)


@pytest.mark.parametrize("columns", [{"event_column": "died"}, {"censorship_column": "alive"}, {}])
def test_the_slides_of_a_run_have_their_outcome_under_the_columns_of_its_settings(columns: dict[str, str]) -> None:
    cells = {"survival_months": "12.5", "event": "1"}
    row = SlideRow("P1", "s1", "", Path("s1.svs"), split="train", extra_columns=cells)
    settings = FinetuneSettings(task="survival", time_column="OS months", **columns)
    slides = RunSlides(Path("run/slides.csv"), (row,), {})
    run = SourceRun(Path("run"), (Member("model", Path("run"), settings, {"classes": ["0-end months"]}, slides),))
    (read,) = cohort_of_run(run).rows
    assert read_outcome(read, "slides.csv", settings) == (12.5, True)


def _women(out: Path) -> set[str]:
    table = pd.read_csv(out.parent / "b" / "b.csv").drop_duplicates("case_id")  # a patient has its first slide's cell
    return set(table[table["sex"] == "f"]["case_id"])
