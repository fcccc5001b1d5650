"""Patients: predictions aggregated from slides equal those aggregated by hand; no patient is on two sides of a fold."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.new_folds import make_folds
from longvit.finetuning.evaluate import evaluate
from longvit.finetuning.results import write_predictions
from longvit.tasks.multilabel import Multilabel, sigmoid
from longvit.tasks.ordinal import Ordinal, grade_probabilities
from longvit.tasks.patient_table import aggregated_cells, is_predicted
from longvit.tasks.patients import by_patient
from longvit.tasks.regression import Regression
from longvit.tasks.settings import TaskSettings
from longvit.tasks.subtyping import Subtyping, softmax
from longvit.tasks.survival import Survival, risk_of
from longvit.tasks.task import Aggregate, Predictions, Task

KINDS: tuple[type[Task], ...] = (Subtyping, Ordinal, Regression, Multilabel)


def random_cohort(rng: np.random.Generator, classes: int = 3) -> Cohort:
    """8 to 24 patients with 1 to 4 slides; the labels are those of the patient."""
    rows = []
    for patient in range(int(rng.integers(8, 25))):
        label = str(patient % classes)
        cells = {"age": f"{rng.normal(60, 10):.3f}", "msi": "01"[int(rng.integers(2))], "kras": "01"[patient % 2]}
        cells |= {"survival_months": f"{rng.uniform(1, 90):.3f}", "event": "01"[patient % 2]}
        for _ in range(int(rng.integers(1, 5))):
            slide = f"s{len(rows):03d}"
            rows.append(SlideRow(f"P{patient}", slide, label, Path(f"{slide}.svs"), split="train", extra_columns=cells))
    order = rng.permutation(len(rows))
    return Cohort(tuple(rows[i] for i in order), tuple(map(str, range(classes))), "cohort.csv")


def task_of(kind: type[Task], cohort: Cohort) -> Task:
    columns = {"regression": ("age",), "multilabel": ("msi", "kras")}.get(kind.name, ("label",))
    return kind(cohort, TaskSettings(task=kind.name, label_columns=columns))


def random_predictions(task: Task, rng: np.random.Generator) -> Predictions:
    logits = rng.normal(0, 1.5, (len(task.cohort.rows), len(task.output_names)))
    return Predictions(task.cohort.rows, logits, math.nan)


def by_hand(task: Task, p: Predictions, how: Aggregate) -> tuple[list[str], np.ndarray]:
    """Patients in order, and their prediction: probabilities, or numbers (P, 1)."""
    values = {
        "subtyping": softmax,
        "ordinal": grade_probabilities,
        "multilabel": sigmoid,
        "regression": lambda z: z * task.scale[1] + task.scale[0],  # type: ignore[attr-defined]
    }[task.name](p.logits)
    cases = list(dict.fromkeys(p.patients))
    table = []
    for case in cases:
        own = values[[i for i, name in enumerate(p.patients) if name == case]]
        if how == "mean":
            table.append(own.mean(0))
        elif task.name == "ordinal":
            table.append(own[(own * np.arange(own.shape[1])).sum(1).argmax()])
        elif task.name == "subtyping" and own.shape[1] == 2:
            table.append(own[own[:, 1].argmax()])
        elif task.name == "subtyping":
            highest = own.max(0) if len(own) > 1 else own[0]
            table.append(highest / highest.sum())
        else:
            table.append(own.max(0))
    return cases, np.stack(table)


def reference_metric(task: Task, rows: tuple[SlideRow, ...], values: np.ndarray) -> dict[str, float]:
    if task.name == "regression":
        truth = [float(row.extra_columns["age"]) for row in rows]
        return {
            "mae": reference.mean_absolute_error(truth, values[:, 0]),
            "r2": reference.r2_score(truth, values[:, 0]),
        }
    if task.name == "multilabel":
        found = {}
        for c, name in enumerate(("msi", "kras")):
            truth = np.array([int(row.extra_columns[name]) for row in rows])
            if len(set(truth)) == 2:
                found[f"auc_{name}"] = float(reference.roc_auc_score(truth, values[:, c]))
        return found
    labels = np.array([int(row.label) for row in rows])
    if task.name == "ordinal":
        return {
            "quadratic_kappa": reference.cohen_kappa_score(labels, values.argmax(1), weights="quadratic"),
            "mae": reference.mean_absolute_error(labels, values.argmax(1)),
        }
    if values.shape[1] == 2:
        return {"auc": float(reference.roc_auc_score(labels, values[:, 1]))}
    return {
        "auc": float(np.mean([reference.roc_auc_score(labels == c, values[:, c]) for c in range(3)])),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, values.argmax(1)),
    }


def test_metrics_of_1000_random_cohorts_are_those_of_scikit_learn_on_patients_aggregated_by_hand() -> None:
    for seed in range(125):  # 125 cohorts × 4 tasks × 2 aggregations
        rng = np.random.default_rng(seed)
        cohort = random_cohort(rng, classes=2 + seed % 2)
        for kind in KINDS:
            task = task_of(kind, cohort)
            predictions = random_predictions(task, rng)
            for how in ("mean", "max"):
                patients = by_patient(task, predictions, how)
                cases, values = by_hand(task, predictions, how)
                assert list(patients.predictions.patients) == cases
                assert sum(patients.slides) == len(cohort.rows)
                assert not patients.left_out
                found = task.metrics(patients.predictions)
                for name, wanted in reference_metric(task, patients.predictions.rows, values).items():
                    assert found[name] == pytest.approx(wanted, abs=1e-9), (seed, task.name, how, name)


def test_the_mean_of_survival_is_the_mean_risk_and_the_maximum_the_highest() -> None:
    rng = np.random.default_rng(0)
    task = task_of(Survival, random_cohort(rng))
    p = random_predictions(task, rng)
    risks = risk_of(p.logits)
    for how, of in (("mean", np.mean), ("max", np.max)):
        patients = by_patient(task, p, how).predictions  # type: ignore[arg-type]
        wanted = [of(risks[[i for i, name in enumerate(p.patients) if name == case]]) for case in patients.patients]
        assert risk_of(patients.logits) == pytest.approx(np.array(wanted), abs=1e-12)
    mean = by_patient(task, p, "mean").predictions
    assert task.metrics(mean)["c_index"] == pytest.approx(task.metrics(p)["c_index"], abs=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, Survival])
@pytest.mark.parametrize("how", ["mean", "max"])
def test_a_table_of_predictions_is_aggregated_like_the_logits(kind: type[Task], how: Aggregate) -> None:
    rng = np.random.default_rng(1)
    for classes in (2, 3):
        task = task_of(kind, random_cohort(rng, classes))
        logits = rng.normal(0, 2, (3, len(task.output_names)))
        columns = task.prediction_columns(task.output_names)
        slides = [dict(zip(columns, task.prediction_cells(z, task.output_names), strict=True)) for z in logits]
        cells = aggregated_cells([{n: float(v) for n, v in s.items() if is_predicted(n)} for s in slides], how)
        wanted = dict(zip(columns, task.prediction_cells(task.aggregated(logits, how), task.output_names), strict=True))
        assert cells.keys() == wanted.keys() - {"prediction"}
        for name, value in cells.items():
            assert value == pytest.approx(float(wanted[name]), abs=1e-7), name


def test_patients_whose_slides_have_different_labels_are_left_out_and_named() -> None:
    rng = np.random.default_rng(2)
    rows = tuple(SlideRow(case, f"s{i}", label, Path("s.svs")) for i, (case, label) in enumerate(
        [("A", "0"), ("A", "1"), ("B", "1"), ("B", "1"), ("C", "0")]))  # fmt: skip
    task = task_of(Subtyping, Cohort(rows, ("0", "1")))
    patients = by_patient(task, random_predictions(task, rng), "mean")
    assert patients.left_out == ("A",)
    assert patients.predictions.patients == ("B", "C")


def test_a_label_that_one_slide_lacks_is_that_of_the_patients_other_slide() -> None:
    cells = [{"msi": "1", "kras": ""}, {"msi": "", "kras": "0"}, {"msi": "1", "kras": "1"}, {"msi": "0", "kras": ""}]
    rows = tuple(SlideRow("AABB"[i], f"s{i}", "", Path("s.svs"), extra_columns=cell) for i, cell in enumerate(cells))
    task = Multilabel(Cohort(rows, ()), TaskSettings(task="multilabel", label_columns=("msi", "kras")))
    patients = by_patient(task, random_predictions(task, np.random.default_rng(0)), "mean")
    assert task.label_cells(patients.predictions.rows[0]) == ("1", "0")
    assert patients.left_out == ("B",)  # msi is 1 and 0


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_finds_the_metrics_per_patient_of_the_run(kind: type[Task], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    task = task_of(kind, random_cohort(rng))
    predictions = random_predictions(task, rng)
    write_predictions(tmp_path / "predictions.csv", task, {"test": predictions})
    for how in ("mean", "max"):
        group = evaluate(tmp_path / "predictions.csv", resamples=20, aggregate=how).groups[0]  # type: ignore[arg-type]
        assert group.by_patient is not None
        wanted = task.metrics(by_patient(task, predictions, how).predictions)  # type: ignore[arg-type]
        assert group.by_patient.rows == len(set(predictions.patients))
        for name, metric in group.by_patient.metrics.items():
            assert metric.mean == pytest.approx(wanted[name], abs=1e-6, nan_ok=True), name
            assert metric.interval is not None


def test_new_folds_never_split_a_patient() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cohort = random_cohort(rng, classes=2)
        case_of = {row.slide_id: row.case_id for row in cohort.rows}
        for kind in KINDS:
            columns = {"regression": ("age",), "multilabel": ("msi", "kras")}.get(kind.name, ("label",))
            if not kind.has_classes:
                cohort = replace(cohort, classes=())
            strata = kind.strata(cohort, TaskSettings(task=kind.name, label_columns=columns))
            for fold in make_folds(cohort, 2, seed=seed, strata=strata, val_fraction=0.0):
                train, test = ({case_of[slide] for slide in part} for part in (fold.train, fold.test))
                assert not train & test
                assert len(fold.train) + len(fold.test) == len(cohort.rows)
