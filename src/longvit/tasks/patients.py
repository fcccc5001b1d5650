"""Predictions of patients, aggregated from those of their slides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.tasks.task import Aggregate, Predictions, Task


@dataclass(frozen=True)
class PatientPredictions:
    """Predictions with one row per patient (`Task.patient_row`), and the logits of all its slides together."""

    predictions: Predictions
    slides: tuple[int, ...]
    """Number of slides of each patient."""
    left_out: tuple[str, ...]
    """Patients whose slides have different labels."""


def by_patient(task: Task, predictions: Predictions, how: Aggregate) -> PatientPredictions:
    """Predictions of the patients, in the order of their first slides; `Task.aggregated` says what `how` means."""
    slides_of: dict[str, list[int]] = {}
    for i, case in enumerate(predictions.patients):
        slides_of.setdefault(case, []).append(i)
    rows: list[SlideRow] = []
    logits: list[np.ndarray] = []
    counts: list[int] = []
    left_out: list[str] = []
    for case, slides in slides_of.items():
        row = task.patient_row([predictions.rows[i] for i in slides])
        if row is None:
            left_out.append(case)
            continue
        rows.append(row)
        logits.append(aggregated(task, predictions.logits[slides], how))
        counts.append(len(slides))
    table = np.stack(logits) if logits else np.zeros((0, predictions.logits.shape[1]))
    return PatientPredictions(Predictions(tuple(rows), table, math.nan), tuple(counts), tuple(left_out))


def aggregated(task: Task | type[Task], logits: np.ndarray | Sequence[np.ndarray], how: Aggregate) -> np.ndarray:
    """Logits (W,) of a patient from those of its slides (n, W); those of a single slide are unchanged."""
    table = np.asarray(logits, dtype=np.float64)
    return table[0] if len(table) == 1 else task.aggregated(table, how)
