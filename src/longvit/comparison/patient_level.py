"""Patient level of a comparison whose bags are slides: metrics of the patients beside those of the slides.

A patient has the mean of the predictions of its evaluated slides, as in every run (`tasks.patients`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longvit.comparison.intervals import Round, Spread, Sure, drawn_means, interval, spread_of
from longvit.tasks.patients import PatientPredictions, by_patient
from longvit.tasks.task import Task


@dataclass(frozen=True)
class PatientLevel:
    """Main metric of one system per patient, over its finished folds."""

    spread: Spread
    interval: Sure
    """Mean with its 95 % interval, resampled by patient within every fold."""
    folds: Mapping[str, Mapping[str, Any]]
    """Fold -> `patients` (their number), `left_out` (patients whose slides have different labels), and all metrics."""

    def to_json(self) -> dict[str, Any]:
        """Entry `patients` of a system in benchmark.json."""
        return {
            "aggregate": "mean",
            **asdict(self.spread),
            "low": self.interval.low,
            "high": self.interval.high,
            "folds": {fold: dict(values) for fold, values in self.folds.items()},
        }


def patient_levels(
    rounds: Sequence[Round], tasks: Sequence[Task], folds: Sequence[str], *, ddof: int, resamples: int, seed: int
) -> dict[str, PatientLevel]:
    """System -> its patient level; empty where every patient has one evaluated bag, or the task is of patients.

    `folds`: names of the folds, in the order of `rounds`.
    """
    several = any(len(set(p.patients)) < len(p.rows) for fold in rounds for p in fold.values())
    if not several or any(task.per_patient for task in tasks):
        return {}
    found: list[dict[str, PatientPredictions]] = [
        {name: by_patient(task, p, "mean") for name, p in fold.items()}
        for fold, task in zip(rounds, tasks, strict=True)
    ]
    draws = drawn_means(
        [{name: p.predictions for name, p in fold.items()} for fold in found], tasks, resamples=resamples, seed=seed
    )
    levels = {}
    for name in draws:
        of_folds: dict[str, dict[str, Any]] = {
            fold: {
                "patients": len(p.predictions.rows),
                "left_out": list(p.left_out),
                **task.metrics(p.predictions),
            }
            for fold, by_system, task in zip(folds, found, tasks, strict=True)
            if (p := by_system.get(name)) is not None
        }
        spread = spread_of([values[tasks[0].metric] for values in of_folds.values()], ddof)
        levels[name] = PatientLevel(spread, interval(spread.mean, draws[name]), of_folds)
    return levels
