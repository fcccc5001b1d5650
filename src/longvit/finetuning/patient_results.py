"""Results per patient: patients.csv, and the metrics of the patients beside those of the slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longvit.files import write_csv
from longvit.tasks.patients import PatientPredictions, by_patient
from longvit.tasks.task import Aggregate, Predictions, Task

PATIENTS_CSV = "patients.csv"


def write_patients(path: Path, task: Task, patients: Mapping[str, PatientPredictions]) -> None:
    """Writes a row per patient: case_id, split, slides (their number), the label, then the task's columns."""
    header = ["case_id", "split", "slides", *task.label_columns(), *task.prediction_columns(task.output_names)]
    table = [
        [row.case_id, split, str(n), *task.label_cells(row), *task.prediction_cells(logits, task.output_names)]
        for split, found in patients.items()
        for row, logits, n in zip(found.predictions.rows, found.predictions.logits, found.slides, strict=True)
    ]
    write_csv(path, header, table)


def patients_of_splits(
    task: Task, predictions: Mapping[str, Predictions], how: Aggregate
) -> dict[str, PatientPredictions]:
    """Split -> predictions of its patients."""
    return {split: by_patient(task, p, how) for split, p in predictions.items()}


def patient_metrics(
    task: Task, patients: Mapping[str, PatientPredictions], how: Aggregate, *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Split -> aggregate, patients, left_out (patients with different labels), the metrics and their intervals."""
    return {
        split: {
            "aggregate": how,
            "patients": len(found.predictions.rows),
            "left_out": list(found.left_out),
            **task.metrics(found.predictions),
            **{
                f"{name}_interval": [interval.low, interval.high]
                for name, interval in task.intervals(found.predictions, resamples=resamples, seed=seed).items()
            },
        }
        for split, found in patients.items()
    }
