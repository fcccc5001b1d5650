"""Preparation of a cohort for a task: rows selected, patients split, labels checked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from longvit.data.cohort import Cohort
from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.tasks.label_cells import merged_strata
from longvit.tasks.task import Task, task_class

EVALUATED = ("val", "test")
_FEWEST = 2
"""Patients of a stratum that can be split."""


def prepare_cohort(cohort: Cohort, settings: FinetuneSettings) -> tuple[Cohort, Task]:
    """Cohort with a split in every row (by patient and stratum, where the CSV has none), and its task.

    `InputError`: a label that is missing or invalid, no training rows, no rows to evaluate.
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
    """Splits a cohort by patient into train, val and test, stratified by the task's strata."""
    from longvit.data.splits import split_by_patient

    kind = task_class(settings.task)
    strata = kind.strata(cohort, settings)
    if not cohort.classes:
        strata = _of_patients(strata, [row.case_id for row in cohort.rows])
    rows = tuple(replace(row, label=stratum) for row, stratum in zip(cohort.rows, strata, strict=True))
    split = split_by_patient(
        replace(cohort, rows=rows, classes=cohort.classes or tuple(sorted(set(strata)))), settings.split, settings.seed
    )
    return replace(cohort.with_splits([row.split for row in split.rows]), notes=split.notes)


def _of_patients(strata: Sequence[str], patients: Sequence[str]) -> list[str]:
    """Stratum of each slide's patient: that of most of its slides, as they may lack different labels; rare ones merge.

    Without a rare one the strata are unchanged.
    """
    counts: dict[str, Counter[str]] = {}
    for stratum, patient in zip(strata, patients, strict=True):
        counts.setdefault(patient, Counter())[stratum] += 1
    stratum_of = {patient: max(sorted(count), key=count.__getitem__) for patient, count in counts.items()}
    sizes = Counter(stratum_of.values())
    if all(sizes[stratum] >= _FEWEST for stratum in strata):
        return list(strata)
    return merged_strata([stratum_of[patient] for patient in patients], patients)


def labels_digest(cohort: Cohort, task: Task) -> str:
    """Hash of every slide's label: a run resumes only with the same."""
    cells = sorted([row.slide_id, *task.label_cells(row)] for row in cohort.rows)
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]
