"""Summary of a comparison: mean ± SD over folds, intervals, differences, published rows and costs of all systems."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from longvit.comparison.bag_cohort import BagCohort
from longvit.comparison.intervals import (
    Round,
    Spread,
    Sure,
    drawn_means,
    interval,
    mean_of_folds,
    only_common,
    spread_of,
)
from longvit.comparison.longvit_run import NAME as LONGVIT
from longvit.comparison.longvit_run import LongvitRun
from longvit.comparison.patient_level import PatientLevel, patient_levels
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.system_spec import SystemSpec
from longvit.comparison.trial import FoldSplit
from longvit.errors import InputError
from longvit.finetuning.crossval import DDOF
from longvit.finetuning.paper_tables import COHORTS, METRICS, SYSTEMS, PublishedRow, published_rows
from longvit.finetuning.results import leaks, read_logits
from longvit.json_file import without_nan
from longvit.tasks.task import Task, task_class
from longvit.training.resource_usage import Cost

_LABELS = {
    LONGVIT: "LongViT",
    "mean_pooling": "mean pooling",
    "transmil": "TransMIL",
    "longnet": "LongNet on tiles",
    "feather": "FEATHER",
    "patch_sampling": "random patches, end to end",
    **SYSTEMS,
}


@dataclass(frozen=True)
class TrialSummary:
    """Result of one system on one fold."""

    fold: str
    value: float | None
    """Main metric after the last epoch."""
    best_val: float | None
    """Main metric at the epoch selected on val."""
    error: str | None = None
    """Reason of a failed trial."""
    seconds: float | None = None
    metrics: Mapping[str, Any] | None = None
    """The other metrics, with the loss."""

    def to_json(self) -> dict[str, Any]:
        """Entry of `cells` in benchmark.json."""
        metrics = {} if self.metrics is None else {"figures": dict(self.metrics)}
        return {
            "fold": self.fold,
            "value": self.value,
            "best_val": self.best_val,
            **metrics,
            "seconds": self.seconds,
            "error": self.error,
        }


@dataclass(frozen=True)
class FoldSummary:
    """Bags and leaks of one fold."""

    fold: str
    bags: Mapping[str, int]
    """Split -> number of bags."""
    leaks: Mapping[str, int]
    """Pair of splits -> patients in both."""


@dataclass(frozen=True)
class SystemSummary:
    """Row of one system."""

    system: str
    label: str
    inputs: str
    spread: Spread
    """Over the finished folds."""
    interval: Sure
    """Mean with its 95 % interval, resampled by patient within every fold."""
    best_val: Spread
    """At the epoch selected on val; None without val."""
    gap: Sure | None
    """LongViT minus the system on their common patients; None without LongViT."""
    published: Spread | None
    parameters: int | None
    cost: Cost
    """Mean time of a fold (fit, training, evaluation; None where interrupted), highest memory of the folds."""
    trials: tuple[TrialSummary, ...]
    patients: PatientLevel | None = None
    """Per patient; None where each has one bag."""
    run: str | None = None
    """Folder of the cross-validation, for LongViT."""

    def to_json(self) -> dict[str, Any]:
        """Entry of `systems` in benchmark.json."""
        row = {
            "system": self.system,
            "words": self.label,
            "inputs": self.inputs,
            **asdict(self.spread),
            "low": self.interval.low,
            "high": self.interval.high,
            "best_val": asdict(self.best_val),
            "gap": None if self.gap is None else asdict(self.gap),
            "published": None if self.published is None else asdict(self.published),
            "parameters": self.parameters,
            **self.cost,
            "patients": None if self.patients is None else self.patients.to_json(),
            "cells": [trial.to_json() for trial in self.trials],
        }
        return row if self.run is None else {**row, "run": self.run}


@dataclass(frozen=True)
class ComparisonSummary:
    """Content of benchmark.json."""

    task: str
    metric: str
    metric_label: str
    chance: float
    paper_cell: str | None
    """Column of the paper's tables, for example table1/brca."""
    ddof: int
    evaluated: str
    folds: tuple[FoldSummary, ...]
    systems: tuple[SystemSummary, ...]
    published: tuple[PublishedRow, ...]
    """Rows of the paper's column for systems that were not run."""
    per_patient: bool
    bags: int
    tiles: int
    width: int
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    problems: int
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The summary as benchmark.json stores it; NaN becomes null."""
        stored_names = {"metric": "figure", "metric_label": "figure_words", "paper_cell": "cell"}
        values = {stored_names.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}
        values["folds"] = [asdict(fold) for fold in self.folds]
        values["systems"] = [system.to_json() for system in self.systems]
        values["published"] = [
            {"words": SYSTEMS[row.system], "inputs": row.inputs, "mean": row.mean, "sd": row.sd}
            for row in self.published
        ]
        plain: dict[str, Any] = without_nan(values)
        return plain


def summarise(
    bag_cohort: BagCohort,
    folds: Sequence[FoldSplit],
    specs: Sequence[SystemSpec],
    settings: ComparisonSettings,
    folder: Path,
    done: Mapping[tuple[str, str], Mapping[str, Any]],
    failed: Mapping[tuple[str, str], str],
    longvit: LongvitRun | None,
) -> ComparisonSummary:
    """Summarises all trials. `done`, `failed`: (system, fold) -> metrics of a trial, or its error."""
    kind = task_class(settings.task)
    tasks = [split.task if longvit is None else longvit.tasks[split.fold.name] for split in folds]
    rounds = _predictions(folds, specs, folder, done, longvit)
    draws = drawn_means(rounds, tasks, resamples=settings.bootstrap, seed=settings.seed)
    published = published_column(settings.cell, kind.metric)
    ddof = DDOF.get(settings.task, 1)
    per_patient = patient_levels(
        rounds, tasks, [split.fold.name for split in folds],
        ddof=ddof, resamples=settings.bootstrap, seed=settings.seed,
    )  # fmt: skip
    systems = []
    for spec in specs:
        keys = [(spec.name, split.fold.name) for split in folds]
        trials = tuple(_trial(key, done.get(key), kind.metric, failed.get(key, "not computed")) for key in keys)
        costs = [done[key]["training"] for key in keys if key in done]
        spread = spread_of([trial.value for trial in trials], ddof)
        systems.append(
            SystemSummary(
                system=spec.name,
                label=_label(spec.name),
                inputs=spec.inputs,
                spread=spread,
                interval=_interval(spread, draws.get(spec.name)),
                best_val=spread_of([trial.best_val for trial in trials], ddof),
                gap=None if longvit is None else _gap(rounds, tasks, spec.name, draws, settings),
                published=_published_spread(published, spec),
                parameters=costs[0]["parameters"] if costs else None,
                cost=_cost(costs),
                trials=trials,
                patients=per_patient.get(spec.name),
            )
        )
    if longvit is not None:
        systems.append(_longvit_system(folds, tasks, longvit, draws, ddof, per_patient.get(LONGVIT)))
    compared = {(system.label, system.inputs) for system in systems}
    notes = [*bag_cohort.notes, *(note for split in folds for note in split.cohort.notes)]
    return ComparisonSummary(
        task=settings.task,
        metric=kind.metric,
        metric_label=kind.metric_label,
        chance=kind.chance,
        paper_cell=settings.cell,
        ddof=ddof,
        evaluated="test" if all(split.evaluated == "test" for split in folds) else "val",
        folds=tuple(_fold(split) for split in folds),
        systems=tuple(systems),
        published=tuple(row for row in published if (SYSTEMS[row.system], row.inputs) not in compared),
        per_patient=bag_cohort.per_patient,
        bags=len({row.slide_id for split in folds for row in split.cohort.rows if row.split is not None}),
        tiles=sum(bag_cohort.tiles_of.values()),
        width=bag_cohort.width,
        settings=json.loads(json.dumps(asdict(settings))),
        notes=tuple(dict.fromkeys(notes)),
        problems=len(bag_cohort.problems),
        versions=_versions(),
    )


def published_column(paper_cell: str | None, metric: str) -> tuple[PublishedRow, ...]:
    """Rows of a column of the paper's tables, for example table1/brca; `InputError` for an unknown column."""
    if paper_cell is None:
        return ()
    parts = paper_cell.split("/")
    number = {"table1": 1, "table2": 2}.get(parts[0])
    if number is None or len(parts) < 2 or parts[1] not in COHORTS[number] or METRICS[number] != metric:
        known = [f"table{n}/{cohort}" for n, cohorts in COHORTS.items() for cohort in cohorts if METRICS[n] == metric]
        raise InputError(f"cell {paper_cell!r}: choose {', '.join(known)}; or leave it out")
    return tuple(row for row in published_rows(number) if row.cohort == parts[1])


def _predictions(
    folds: Sequence[FoldSplit],
    specs: Sequence[SystemSpec],
    folder: Path,
    done: Mapping[tuple[str, str], Mapping[str, Any]],
    longvit: LongvitRun | None,
) -> list[Round]:
    """Predictions of the evaluated bags for each fold, by system."""
    rounds: list[Round] = []
    for split in folds:
        predictions = {}
        for spec in specs:
            if (spec.name, split.fold.name) in done:
                path = folder / spec.name / f"fold_{split.fold.name}" / "outputs.csv"
                predictions[spec.name] = read_logits(path, split.cohort)["model"][split.evaluated]
        if longvit is not None:
            predictions[LONGVIT] = longvit.predictions[split.fold.name]
        rounds.append(predictions)
    return rounds


def _longvit_system(
    folds: Sequence[FoldSplit],
    tasks: Sequence[Task],
    longvit: LongvitRun,
    draws: Mapping[str, np.ndarray],
    ddof: int,
    patients: PatientLevel | None,
) -> SystemSummary:
    names = [split.fold.name for split in folds]
    trials = tuple(
        TrialSummary(name, task.main_metric(longvit.predictions[name]), longvit.best_val.get(name))
        for name, task in zip(names, tasks, strict=True)
    )
    spread = spread_of([trial.value for trial in trials], ddof)
    return SystemSummary(
        system=LONGVIT,
        label=_label(LONGVIT),
        inputs="image",
        spread=spread,
        interval=_interval(spread, draws.get(LONGVIT)),
        best_val=spread_of(list(longvit.best_val.values()), ddof),
        gap=None,
        published=None,
        parameters=longvit.parameters,
        cost=_cost(longvit.costs),
        trials=trials,
        patients=patients,
        run=str(longvit.folder),
    )


def _label(name: str) -> str:
    """Label of a system: `deep_sets+concat` -> Deep Sets (concat)."""
    system, _, fusion = name.partition("+")
    label = _LABELS.get(system, system.replace("_", " "))
    return f"{label} ({fusion})" if fusion else label


def _fold(split: FoldSplit) -> FoldSummary:
    bags = {name: len(split.cohort.split(name)) for name in ("train", "val", "test")}
    return FoldSummary(split.fold.name, bags, leaks(split.cohort.rows))


def _trial(key: tuple[str, str], metrics: Mapping[str, Any] | None, metric: str, error: str) -> TrialSummary:
    _, fold = key
    if metrics is None:
        return TrialSummary(fold, None, None, error)
    values, best = metrics["splits"][metrics["evaluated"]], metrics["best_val"]
    return TrialSummary(
        fold,
        values[metric],
        None if best is None else best.get(metrics["evaluated"], {}).get(metric),
        seconds=metrics["training"]["seconds"],
        metrics={name: value for name, value in values.items() if name not in ("bags", metric)},
    )


def _interval(spread: Spread, draws: np.ndarray | None) -> Sure:
    return Sure(spread.mean, None, None) if draws is None else interval(spread.mean, draws)


def _gap(
    rounds: Sequence[Round],
    tasks: Sequence[Task],
    name: str,
    draws: Mapping[str, np.ndarray],
    settings: ComparisonSettings,
) -> Sure:
    """LongViT minus the system, on the folds and patients that both have."""
    if name not in draws:
        return Sure(None, None, None)
    common = only_common(rounds, LONGVIT, name)
    if any(not _same_rows(pair, all_systems, name) for pair, all_systems in zip(common, rounds, strict=True)):
        kept = [(pair, task) for pair, task in zip(common, tasks, strict=True) if pair]
        common, tasks = [pair for pair, _ in kept], [task for _, task in kept]
        draws = drawn_means(common, tasks, resamples=settings.bootstrap, seed=settings.seed)
    longvit, system = (mean_of_folds(common, tasks, n) for n in (LONGVIT, name))
    value = None if longvit is None or system is None else longvit - system
    return interval(value, draws[LONGVIT] - draws[name]) if draws else Sure(value, None, None)


def _same_rows(pair: Round, all_systems: Round, name: str) -> bool:
    """True where no row of the two systems was left out of `pair`."""
    names = {LONGVIT, name}
    return set(pair) == names and all(len(pair[n].rows) == len(all_systems[n].rows) for n in names)


def _published_spread(rows: Sequence[PublishedRow], spec: SystemSpec) -> Spread | None:
    """Published row of a system with these inputs; those with genomic features are `concat`."""
    if spec.fusion == "bilinear":
        return None
    matches = (row for row in rows if row.system == spec.system and row.inputs == spec.inputs)
    return next((Spread(row.mean, row.sd) for row in matches), None)


def _cost(costs: Sequence[Mapping[str, Any]]) -> Cost:
    """Mean time of a fold and the highest memory."""
    memory = [cost["peak_memory_mib"] for cost in costs if cost["peak_memory_mib"] is not None]
    return {
        "seconds": _mean([cost["seconds"] for cost in costs]),
        "cpu_seconds": _mean([cost.get("cpu_seconds") for cost in costs]),
        "peak_memory_mib": max(memory, default=None),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    from longvit import __version__

    return {"longvit": __version__, "torch": metadata.version("torch"), "python": platform.python_version()}
