"""Figures over all folds of a cross-validation, from their kept logits: how far the model is ahead of its controls, and
what the folds say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from longvit.data.cohort import Cohort
from longvit.finetuning.outputs import read_logits
from longvit.tasks.settings import FinetuneSettings
from longvit.tasks.task import Predictions, Task


class Round:
    """The evaluated predictions of one fold: the model's and the controls'."""

    def __init__(self, bound: tuple[Cohort, Task], folder: Path, evaluated: str) -> None:
        cohort, self.task = bound
        self.model = read_logits(folder / "outputs.csv", cohort)["model"][evaluated]
        controls = folder / "controls.csv"
        found = read_logits(controls, cohort) if controls.exists() else {}
        self.controls = {name: of[evaluated] for name, of in found.items()}


def gaps(rounds: Sequence[Round], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Control -> how far the model is ahead of it: the mean of the folds, and its 95 % interval.

    Each resample draws every fold's patients anew, the same ones for model and control. NaN without a resample in
    which the figure is defined in every fold.
    """
    rng = np.random.default_rng(seed)
    controls = list(rounds[0].controls)
    draws: dict[str, list[float]] = {c: [] for c in controls}
    values: dict[str, float] = {}
    places = [_places(r.model) for r in rounds]
    for n in range(resamples + 1):
        differences: dict[str, list[float]] = {c: [] for c in controls}
        for r, of_patient in zip(rounds, places, strict=True):
            if n == 0:
                index, copies = np.arange(len(r.model.rows)), None
            else:
                drawn = rng.integers(len(of_patient), size=len(of_patient))
                index = np.concatenate([of_patient[k] for k in drawn])
                copies = np.repeat(np.arange(len(drawn)), [len(of_patient[k]) for k in drawn])
            ours = r.task.main_metric(_drawn(r.model, index, copies))
            for c in controls:
                differences[c].append(ours - r.task.main_metric(_drawn(r.controls[c], index, copies)))
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


def _places(p: Predictions) -> list[np.ndarray]:
    """The places of each patient's slides."""
    of: dict[str, list[int]] = {}
    for i, case in enumerate(p.patients):
        of.setdefault(case, []).append(i)
    return [np.array(places) for places in of.values()]


def _drawn(p: Predictions, index: np.ndarray, copies: np.ndarray | None) -> Predictions:
    """The slides at `index`; a patient drawn twice counts as two patients (named by the number of the draw)."""
    rows = [p.rows[i] for i in index]
    if copies is not None:
        rows = [replace(row, case_id=f"{row.case_id}#{k}") for row, k in zip(rows, copies.tolist(), strict=True)]
    return Predictions(tuple(rows), p.logits[index], math.nan)


def pooled(rounds: Sequence[Round], settings: FinetuneSettings) -> dict[str, dict[str, float]]:
    """Figure -> value, low, high over the slides of all folds together (one that was tested twice counts twice)."""
    task = rounds[0].task
    together = Predictions(
        tuple(row for r in rounds for row in r.model.rows), np.concatenate([r.model.logits for r in rounds]), math.nan
    )
    intervals = task.intervals(together, resamples=settings.bootstrap, seed=settings.seed)
    values = task.metrics(together)
    return {name: {"value": values[name], "low": of.low, "high": of.high} for name, of in intervals.items()}
