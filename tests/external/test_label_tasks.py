"""External validation of numbers, grades and several labels: every metric is that of scikit-learn or scipy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from tests.external.cohorts import SITES, TRAIN, longvit

from longvit.external.label_tasks import LabelCases, cases_at

GRADES = ("low", "mid", "top")
TASKS = {
    "regression": ("--label-columns", "age"),
    "ordinal": ("--label-column", "grade", "--keep", *GRADES),
    "multilabel": ("--label-columns", "MSI=high", "KRAS"),
}
MAIN = {"regression": "r2", "ordinal": "quadratic_kappa", "multilabel": "auc"}
PREDICT = ("--device", "cpu", "--threads", "1", "--bootstrap", "20")


def write_cohort(folder: Path, name: str, seed: int, *, n: int = 24, without: str = "") -> Path:
    """n images, darker with age; two of each patient; a third of the labels missing; `without`: a column left out."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        patient = i // 2
        rng = np.random.default_rng([seed, i])
        age = 30 + 4 * (patient * 5 % 12)
        pixels = rng.normal(220 - 2 * age + rng.normal(0, 20), 10, (64, 64, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{name}{i:02d}.png")
        msi, kras = ("" if (i + c) % 3 == 0 else str(int(age > 45 + 10 * c)) for c in range(2))
        rows.append(
            {
                "case_id": f"{name}P{patient}",
                "slide_id": f"{name}{i:02d}",
                "site": SITES[patient % 2],
                "age": age + 0.5,
                "grade": GRADES[min(2, (age - 30) // 16)],
                "MSI": {"0": "low", "1": "high"}.get(msi, msi),
                "KRAS": kras,
                "split": ("train", "test", "train", "val")[patient % 4],
            }
        )
    table = pd.DataFrame(rows).drop(columns=[without] if without else [])
    path = folder / f"{name}.csv"
    table.to_csv(path, index=False)
    return path


def expected(task: str, rows: pd.DataFrame) -> dict[str, float]:
    """Metrics of a table of labels and predictions."""
    if task == "regression":
        y, p = rows["value"], rows["predicted_value"]
        return {
            "r2": r2_score(y, p),
            "mae": mean_absolute_error(y, p),
            "rmse": root_mean_squared_error(y, p),
            "pearson": stats.pearsonr(y, p).statistic,
            "spearman": stats.spearmanr(y, p).statistic,
        }
    if task == "ordinal":
        p = rows[[f"prob_{grade}" for grade in GRADES]].to_numpy()
        y = rows["label"].map(GRADES.index).to_numpy()
        assert (rows["prediction"].map(GRADES.index) == p.argmax(1)).all()
        np.testing.assert_allclose(rows["expected_rank"], p @ [0, 1, 2], atol=1e-12)
        cuts = [roc_auc_score(y > k, p[:, k + 1 :].sum(1)) for k in range(2)]
        return {
            "quadratic_kappa": cohen_kappa_score(y, p.argmax(1), weights="quadratic"),
            "mae": np.abs(y - p.argmax(1)).mean(),
            "auc": float(np.mean(cuts)),
            "auc_above_low": cuts[0],
            "accuracy": accuracy_score(y, p.argmax(1)),
            "balanced_accuracy": balanced_accuracy_score(y, p.argmax(1)),
        }
    found = {}
    for name in ("MSI", "KRAS"):
        there = rows[rows[f"label_{name}"].notna()]
        y, p = there[f"label_{name}"].astype(int), there[f"probability_{name}"]
        found |= {f"auc_{name}": roc_auc_score(y, p), f"average_precision_{name}": average_precision_score(y, p)}
    return found | {"auc": (found["auc_MSI"] + found["auc_KRAS"]) / 2}


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "external" / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_both_directions_have_the_metrics_of_scikit_learn(task: str, tmp_path: Path) -> None:
    a, b = write_cohort(tmp_path / "a", "a", 3), write_cohort(tmp_path / "b", "b", 4)
    run, out = tmp_path / "run", tmp_path / "out"
    code, _, error = longvit("train", a, "--out", run, "--task", task, *TASKS[task], *TRAIN)
    assert code == 0, error
    label_column = ("--label-column", "grade") if task == "ordinal" else ()
    code, text, error = longvit("predict", run, b, "--out", out, "--back", *label_column, *PREDICT)
    assert code == 0, error
    assert text.count("slides: ") == 2
    for folder in (out, out / "back"):
        metrics = metrics_of(folder)
        page = (folder / "external" / "index.html").read_text()
        assert "From cohort A to cohort B" in page
        assert "By site" in page
        for level, name in (("slides", "predictions.csv"), ("patients", "patients.csv")):
            table = pd.read_csv(folder / "external" / name)
            entries = metrics["levels"][level]
            assert set(table["system"]) == {"model", "mean_colour", "random_encoder"}
            for system, rows in table.groupby("system"):
                assert len(rows) == entries["cases"] == (24 if level == "slides" else 12)
                wanted = expected(task, rows)
                found = {key: entries["systems"][system][key]["value"] for key in wanted}
                assert found == pytest.approx(wanted, abs=1e-12)
                entry = entries["systems"][system][MAIN[task]]
                assert entry["low"] <= entry["high"]
            difference = entries["differences"]["mean_colour"][MAIN[task]]["value"]
            systems = {name: of[MAIN[task]]["value"] for name, of in entries["systems"].items()}
            assert difference == pytest.approx(systems["model"] - systems["mean_colour"], abs=1e-12)
        site = metrics["groups"]["site"]["north"]
        rows = pd.read_csv(folder / "external" / "predictions.csv")
        rows = rows[(rows["system"] == "model") & (rows["site"] == "north")]
        wanted = {key: value for key, value in expected(task, rows).items() if key == MAIN[task]}
        assert {key: site["metrics"][key]["value"] for key in wanted} == pytest.approx(wanted, abs=1e-12)
    drop = metrics_of(out)["levels"]["slides"]["drop"]["metrics"][MAIN[task]]
    stored = json.loads((run / "metrics.json").read_text())["splits"]["test"][MAIN[task]]
    assert drop["a"] == pytest.approx(stored, abs=1e-9)
    assert drop["difference"]["value"] == pytest.approx(drop["b"] - drop["a"], abs=1e-12)
    if task == "multilabel":
        check_thresholds(run, out)
    if task == "ordinal":
        code, _, error = longvit("predict", run, b, "--out", out, "--label-column", "age", *PREDICT)
        assert code == 2
        assert "is not a class of the run (low, mid, top)" in error
    code, _, error = longvit("predict", run, b, "--out", out, "--prevalence", "0.1", *label_column, *PREDICT)
    assert code == 2
    assert "for two classes only" in error


def check_thresholds(run: Path, out: Path) -> None:
    """A's threshold of a label on B: Youden's on A's validation slides, and its sensitivity on B."""
    of_a = pd.read_csv(run / "predictions.csv")
    of_b = pd.read_csv(out / "external" / "predictions.csv")
    of_b = of_b[of_b["system"] == "model"]
    for name, entry in metrics_of(out)["levels"]["slides"]["thresholds"].items():
        val = of_a[(of_a["split"] == "val") & of_a[f"label_{name}"].notna()]
        assert entry["cases"] == len(val)
        y, p = val[f"label_{name}"].to_numpy(), val[f"probability_{name}"].to_numpy()
        if len(set(y)) < 2:
            assert entry["value"] is None
            continue
        best = max((p[y == 1] >= t).mean() + (p[y == 0] < t).mean() for t in p)
        at = (p[y == 1] >= entry["value"] - 1e-8).mean() + (p[y == 0] < entry["value"] - 1e-8).mean()
        assert at == pytest.approx(best)
        there = of_b[of_b[f"label_{name}"].notna()]
        positive = there[there[f"label_{name}"] == 1][f"probability_{name}"]
        sensitivity = entry["at_prevalence_of_b"]["sensitivity"]["value"]
        assert sensitivity == pytest.approx((positive >= entry["value"]).mean(), abs=1e-12)


@pytest.mark.slow
def test_folds_of_numbers_are_averaged_in_the_unit_of_the_column(tmp_path: Path) -> None:
    a, b = write_cohort(tmp_path / "a", "a", 3, without="split"), write_cohort(tmp_path / "b", "b", 4, n=12)
    cv, out = tmp_path / "cv", tmp_path / "out"
    command = ("train", a, "--out", cv, "--folds", "2", "--task", "regression", *TASKS["regression"], "--no-controls")
    assert longvit(*command, *TRAIN)[0] == 0
    assert longvit("predict", cv, b, "--out", out, *PREDICT)[0] == 0
    rows = pd.read_csv(out / "external" / "predictions.csv")
    p = {name: part["predicted_value"].to_numpy() for name, part in rows.groupby("system")}
    np.testing.assert_allclose(p["ensemble"], (p["fold 0"] + p["fold 1"]) / 2, rtol=0, atol=1e-12)
    for fold in "01":
        mean, sd = (float(x.split(" ")[1]) for x in _output_name(cv / f"fold_{fold}").split(": ")[1].split(", "))
        assert 30 < mean < 80
        assert 5 < sd < 30
        assert 0 < p[f"fold {fold}"].mean() < 150
    change = metrics_of(out)["levels"]["slides"]["drop"]["metrics"]["mae"]
    y = rows[rows["system"] == "ensemble"]["value"].to_numpy()
    of_b = [np.abs(p[f"fold {fold}"] - y).mean() for fold in "01"]
    assert change["b"] == pytest.approx(np.mean(of_b), abs=1e-12)


def _output_name(fold: Path) -> str:
    return str(json.loads((fold / "metrics.json").read_text())["classes"][0])


def test_a_label_that_one_slide_lacks_is_that_of_another_and_two_labels_are_left_out() -> None:
    labels = np.array([[1, np.nan], [np.nan, 0], [1, 0], [0, 0], [np.nan, np.nan]])
    p = np.arange(10.0).reshape(5, 2)
    cases = LabelCases(labels, ("a", "a", "b", "b", "c"), {"model": p}, np.ones(5, np.int64))
    patients = cases_at("patients", cases)
    assert patients.patients == ("a", "c")
    assert patients.mixed == 1
    np.testing.assert_array_equal(patients.labels, [[1, 0], [np.nan, np.nan]])
    np.testing.assert_array_equal(patients.predictions["model"], [[1, 2], [8, 9]])
    np.testing.assert_array_equal(patients.slides, [2, 1])


def test_label_columns_that_b_lacks_are_named_and_rows_without_a_number_left_out(tmp_path: Path) -> None:
    from longvit.external.labelled_cohort import has_labels, read_labelled
    from longvit.tasks.settings import TaskSettings

    several = TaskSettings(task="multilabel", label_columns=("MSI=high", "KRAS"))
    b = write_cohort(tmp_path / "b", "b", 4, n=6, without="KRAS")
    assert has_labels(b, several, "label")
    cohort = read_labelled(b, several, ())
    assert any("no column KRAS: this label is not judged" in note for note in cohort.notes)
    assert len(cohort.rows) == 4  # two of six have no MSI
    number = TaskSettings(task="regression", label_columns=("weight",))
    assert not has_labels(b, number, "label")
    table = pd.read_csv(b)
    table["weight"] = [1.5, None, 2, 3, 4, 5]
    table.to_csv(b, index=False)
    assert has_labels(b, number, "label")
    cohort = read_labelled(b, number, ())
    assert [row.slide_id for row in cohort.rows] == ["b00", "b02", "b03", "b04", "b05"]
