"""Metrics over all folds of a cross-validation, from stored logits: gaps to the controls, and pooled metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from longvit.data.cohort import Cohort
from longvit.finetuning.results import read_logits
from longvit.finetuning.settings import FinetuneSettings
from longvit.tasks.task import Predictions, Task


class Round:
    """Evaluated predictions of one fold: those of the model and of the controls."""

    def __init__(self, prepared: tuple[Cohort, Task], folder: Path, evaluated: str) -> None:
        cohort, self.task = prepared
        self.model = read_logits(folder / "outputs.csv", cohort)["model"][evaluated]
        controls = folder / "controls.csv"
        predictions = read_logits(controls, cohort) if controls.exists() else {}
        self.controls = {name: by_split[evaluated] for name, by_split in predictions.items()}


def gaps(rounds: Sequence[Round], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Control -> gap of the main metric, model minus control: the mean of the folds, and its 95 % interval.

    Each resample draws patients with replacement in every fold, the same ones for model and control. NaN without a
    resample in which the metric is defined in every fold.
    """
    rng = np.random.default_rng(seed)
    controls = list(rounds[0].controls)
    draws: dict[str, list[float]] = {c: [] for c in controls}
    values: dict[str, float] = {}
    patients = [_slides_by_patient(r.model) for r in rounds]
    for n in range(resamples + 1):
        differences: dict[str, list[float]] = {c: [] for c in controls}
        for r, slides in zip(rounds, patients, strict=True):
            if n == 0:
                index, copies = np.arange(len(r.model.rows)), None
            else:
                drawn = rng.integers(len(slides), size=len(slides))
                index = np.concatenate([slides[k] for k in drawn])
                copies = np.repeat(np.arange(len(drawn)), [len(slides[k]) for k in drawn])
            model = r.task.main_metric(_resampled(r.model, index, copies))
            for c in controls:
                differences[c].append(model - r.task.main_metric(_resampled(r.controls[c], index, copies)))
        for c in controls:
            mean = float(np.mean(differences[c]))
            if n == 0:
                values[c] = mean
            elif math.isfinite(mean):
                draws[c].append(mean)
    result = {}
    for c in controls:
        low, high = np.quantile(draws[c], [0.025, 0.975]) if draws[c] else (math.nan, math.nan)
        result[c] = {"value": values[c], "low": float(low), "high": float(high)}
    return result


def _slides_by_patient(p: Predictions) -> list[np.ndarray]:
    """Indices of each patient's slides."""
    slides: dict[str, list[int]] = {}
    for i, case in enumerate(p.patients):
        slides.setdefault(case, []).append(i)
    return [np.array(indices) for indices in slides.values()]


def _resampled(p: Predictions, index: np.ndarray, copies: np.ndarray | None) -> Predictions:
    """Predictions of the slides at `index`; a patient drawn twice counts as two, named by the number of the draw."""
    rows = [p.rows[i] for i in index]
    if copies is not None:
        rows = [replace(row, case_id=f"{row.case_id}#{k}") for row, k in zip(rows, copies.tolist(), strict=True)]
    return Predictions(tuple(rows), p.logits[index], math.nan)


def pooled(rounds: Sequence[Round], settings: FinetuneSettings) -> dict[str, dict[str, float]]:
    """Metric -> value, low, high over the slides of all folds pooled (a slide tested twice counts twice)."""
    task = rounds[0].task
    together = Predictions(
        tuple(row for r in rounds for row in r.model.rows),
        np.concatenate([task.rescaled(r.model.logits, r.task) for r in rounds]),
        math.nan,
    )
    intervals = task.intervals(together, resamples=settings.bootstrap, seed=settings.seed)
    values = task.metrics(together)
    return {
        name: {"value": values[name], "low": interval.low, "high": interval.high}
        for name, interval in intervals.items()
    }
