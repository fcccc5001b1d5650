"""Run of cohort A, read from its folder: a fine-tuning, or a cross-validation with a model per fold.

RUN/metrics.json with RUN/model is a fine-tuning; RUN/crossval.json with RUN/fold_<name> is a cross-validation.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from longvit.config import check_keys, read_recipe, typed
from longvit.data.cohort import SlideRow
from longvit.errors import InputError
from longvit.finetuning.results import read_logits, read_result
from longvit.finetuning.run_slides import RunSlides, read_run_slides, settings_of_table, with_outcome
from longvit.finetuning.settings import FinetuneSettings
from longvit.json_file import read_json_object
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import Predictions, Task, task_class

TUNING, REPORTED = "tuning", "reported"


@dataclass(frozen=True)
class Member:
    """One model of a run: that of a fine-tuning, or of a fold."""

    name: str
    """Name in tables: `model`, or `fold 0`."""
    folder: Path
    """Folder of the fine-tuning."""
    settings: TaskSettings
    """Settings of the fine-tuning, or of the comparison."""
    metrics: Mapping[str, Any]
    """Content of metrics.json."""
    slides: RunSlides | None
    """Slides of cohort A; None for a run of an older version."""

    @property
    def finetune_settings(self) -> FinetuneSettings:
        """Settings of a fine-tuning."""
        assert isinstance(self.settings, FinetuneSettings)
        return self.settings

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(self.metrics["classes"])

    @property
    def label_classes(self) -> tuple[str, ...]:
        """Classes or grades of the label column; none where the task reads other columns."""
        kind = task_class(self.settings.task)
        return kind.classes_of(self.classes) if kind.has_classes else ()

    @property
    def reported_split(self) -> str:
        """Split whose metrics the run reports: test, or val without a test."""
        return "test" if "test" in self.metrics["splits"] else "val"

    @property
    def tuning_split(self) -> str:
        """Split on which thresholds are chosen: val, or test without a val."""
        return "val" if "val" in self.metrics["splits"] else "test"

    @cached_property
    def task(self) -> Task:
        """Task of cohort A, with all slides of the run. `InputError`: a run without slides.csv."""
        if self.slides is None:
            raise InputError(
                f"{self.folder}: no slides.csv, as in runs of older versions; give its `longvit train` command again "
                f"in a new folder"
            )
        kind = task_class(self.settings.task)
        cohort = self.slides.cohort(self.label_classes)
        if kind.per_patient:
            return kind(cohort, settings_of_table(self.settings))
        rows = tuple(with_outcome(row, self.settings) for row in cohort.rows)
        return kind(replace(cohort, rows=rows, is_ordered=True), self.settings)

    def predictions(self, split: str, system: str = "model") -> Predictions:
        """Predictions of a split of cohort A, of the model or of a control."""
        cohort = self.task.cohort
        table = read_logits(self.folder / ("outputs.csv" if system == "model" else "controls.csv"), cohort)
        try:
            return table[system][split]
        except KeyError as error:
            raise InputError(f"{self.folder}: no predictions of {system} for split {split}") from error


@dataclass(frozen=True)
class SourceRun:
    """Run of cohort A."""

    folder: Path
    members: tuple[Member, ...]

    @property
    def is_crossval(self) -> bool:
        """True for a cross-validation."""
        return (self.folder / "crossval.json").exists()

    @property
    def first(self) -> Member:
        """The first member, whose settings and task are those of all."""
        return self.members[0]

    @property
    def settings(self) -> TaskSettings:
        """Settings of the task."""
        return self.first.settings

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the first member."""
        return self.first.classes

    def rows(self) -> tuple[SlideRow, ...]:
        """Every slide of cohort A that is known, each once: from slides.csv, or from predictions.csv of an old run."""
        rows: dict[str, SlideRow] = {}
        for member in self.members:
            known = member.slides.rows if member.slides is not None else _evaluated_rows(member.folder)
            for row in known:
                rows.setdefault(row.slide_id, row)
        return tuple(rows.values())

    def content(self) -> dict[str, str]:
        """slide_id -> content hash, for the slides that have one."""
        return {k: v for member in self.members if member.slides is not None for k, v in member.slides.content.items()}

    def shortcut(self) -> str | None:
        """Sentence of the run on a likely shortcut; None without one, and for runs of older versions."""
        metrics = read_json_object(self.folder / "crossval.json") if self.is_crossval else self.first.metrics
        return str(metrics["shortcut"]) if metrics.get("shortcut") else None

    def unchecked(self) -> tuple[str, ...]:
        """Sentences on what cannot be compared, since the run does not store it."""
        old = [member.name for member in self.members if member.slides is None]
        if not old:
            return ()
        return (
            f"{self.folder}: a run of an older version, without slides.csv: only ids of its validation and test slides "
            f"were compared; training slides and file contents were not checked.",
        )


def is_run(folder: Path) -> bool:
    """True for the folder of a fine-tuning, a cross-validation (finished or not) or a finished comparison."""
    files = (folder / "run.json", folder / "benchmark.json")
    return any(path.is_file() for path in files) or any(folder.glob("fold_*/run.json"))


def read_source_run(folder: str | Path) -> SourceRun:
    """Reads a run. `InputError`: a run that is not finished, a damaged file."""
    folder = Path(folder)
    if (folder / "crossval.json").exists():
        try:
            names = [str(fold["fold"]) for fold in read_json_object(folder / "crossval.json")["folds"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / 'crossval.json'}: damaged; give its `longvit train` command again") from error
        return SourceRun(folder, tuple(_member(folder / f"fold_{name}", f"fold {name}") for name in names))
    if not (folder / "run.json").exists():
        raise InputError(f"{folder}: the folds are not finished (no crossval.json); give its command again")
    return SourceRun(folder, (_member(folder, "model"),))


def read_settings(path: Path) -> FinetuneSettings:
    """Settings of a run from its settings.yaml. `InputError`: no such file, or a damaged one."""
    values = {key: value for key, value in read_recipe(path).items() if value is not None}
    fields = FinetuneSettings.__dataclass_fields__
    check_keys(path, values, fields)
    texts = {name: Path(value) for name, value in values.items() if name in _PATHS and isinstance(value, str)}
    return FinetuneSettings(**typed(FinetuneSettings, values | texts, path))


_PATHS = ("weights", "cache_dir", "regions")


def _member(folder: Path, name: str) -> Member:
    result = read_result(folder)
    if result is None:
        raise InputError(f"{folder}: not finished (no metrics.json); give its `longvit train` command again")
    settings = read_settings(folder / "settings.yaml")
    return Member(name, folder, settings, result.metrics, read_run_slides(folder))


def _evaluated_rows(folder: Path) -> tuple[SlideRow, ...]:
    """Patients and slides of predictions.csv."""
    path = folder / "predictions.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        return tuple(SlideRow(line["case_id"], line["slide_id"], "", Path(line["slide_id"])) for line in lines)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}); give the command of the run again") from error
