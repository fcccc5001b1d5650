"""A cohort made ready for a task: rows selected, patients split, answers checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from longvit.data.cohort import Cohort
from longvit.errors import InputError
from longvit.tasks.settings import FinetuneSettings
from longvit.tasks.task import Task, task_class

EVALUATED = ("val", "test")


def prepare_cohort(cohort: Cohort, settings: FinetuneSettings) -> tuple[Cohort, Task]:
    """The cohort with a split in every row (by patient and stratum, where the CSV has none), and its task.

    `InputError`: an answer that is missing or makes no sense, no training rows, none to evaluate.
    """
    kind = task_class(settings.task)
    cohort = kind.select(cohort, settings)
    if all(row.split is None for row in cohort.rows):
        cohort = split_by_stratum(cohort, settings)
    if not cohort.split("train"):
        raise InputError(f"{cohort.source}: no slide of split train")
    if not any(cohort.split(split) for split in EVALUATED):
        raise InputError(f"{cohort.source}: no slide of split val or test; nothing could be evaluated")
    return cohort, kind(cohort, settings)


def split_by_stratum(cohort: Cohort, settings: FinetuneSettings) -> Cohort:
    """train, val and test by patient, each with its share of every stratum of the task."""
    from longvit.data.splits import split_by_patient

    kind = task_class(settings.task)
    strata = kind.strata(cohort, settings)
    rows = tuple(replace(row, label=of) for row, of in zip(cohort.rows, strata, strict=True))
    split = split_by_patient(
        replace(cohort, rows=rows, classes=cohort.classes or tuple(sorted(set(strata)))), settings.split, settings.seed
    )
    return replace(cohort.with_splits([row.split for row in split.rows]), notes=split.notes)


def labels_digest(cohort: Cohort, task: Task) -> str:
    """A hash of every slide's answer: a run goes on only with the same."""
    cells = sorted([row.slide_id, *task.label_cells(row)] for row in cohort.rows)
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]
