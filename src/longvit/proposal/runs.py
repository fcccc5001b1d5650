"""Runs of a first training: the folds where there are enough patients, else one split, each checked as training does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.folds import Fold, assign, folds_of_column, has_fold_column
from longvit.data.new_folds import make_folds
from longvit.errors import InputError
from longvit.finetuning.crossval import replace_splits
from longvit.finetuning.prepare_cohort import EVALUATED, prepare_cohort
from longvit.finetuning.settings import FinetuneSettings
from longvit.tasks.task import Task, task_class

FEWEST_PATIENTS = 10
"""Patients below which no folds are proposed."""
FOLDS = (5, 4, 3)


@dataclass(frozen=True)
class Runs:
    """Trainings of a proposal: one, or one per fold."""

    folds: str | None
    """Value of `--folds`; None: one split."""
    why: str
    task: Task
    """Task of the first run."""
    rows: tuple[SlideRow, ...]
    """Training slides of the first run."""
    train: tuple[int, ...]
    """Number of training slides of each run."""
    evaluated: tuple[int, ...]
    """Number of slides of each run in val and test."""


def plan_runs(cohort: Cohort, settings: FinetuneSettings) -> Runs:
    """Runs that `longvit train` accepts for this cohort; raises the `InputError` of `train` where it accepts none."""
    patients = len({row.case_id for row in cohort.rows})
    if any(row.split for row in cohort.rows):
        return _one_split(cohort, settings, "the table has a column split; --folds 5 makes folds instead")
    if has_fold_column(cohort):
        return _of_folds(cohort, settings, folds_of_column(cohort), "column", "the folds of the table")
    single = None
    try:
        single = _one_split(cohort, settings, "")
    except InputError as error:
        refused = error
    if patients < FEWEST_PATIENTS:
        why = f"{patients} patients are too few for folds (from {FEWEST_PATIENTS} on)"
    else:
        strata = task_class(settings.task).strata(cohort, settings)
        for k in FOLDS:
            if _fewest_of_a_class(cohort) < k:
                continue
            try:
                folds = make_folds(cohort, k, seed=settings.seed, strata=strata)
                return _of_folds(
                    cohort,
                    settings,
                    folds,
                    str(k),
                    f"{patients} patients: each is tested once, so that the metric rests on all of them",
                )
            except InputError:  # fewer folds may do
                continue
        why = "a class has too few patients for folds" if cohort.classes else "the labels are too few for folds"
    if single is None:
        raise refused
    return replace(single, why=why)


def _one_split(cohort: Cohort, settings: FinetuneSettings, why: str) -> Runs:
    prepared, task = prepare_cohort(cohort, settings)
    task.check_training(prepared.split("train"), "")
    rows = prepared.split("train")
    return Runs(None, why, task, rows, (len(rows),), (_evaluated(prepared),))


def _of_folds(cohort: Cohort, settings: FinetuneSettings, folds: Sequence[Fold], name: str, why: str) -> Runs:
    tasks, train, evaluated = [], [], []
    for fold in folds:
        prepared, task = prepare_cohort(assign(replace_splits(cohort), fold), settings)
        task.check_training(prepared.split("train"), "")
        tasks.append(task)
        train.append(prepared.split("train"))
        evaluated.append(_evaluated(prepared))
    return Runs(name, why, tasks[0], train[0], tuple(map(len, train)), tuple(evaluated))


def _evaluated(cohort: Cohort) -> int:
    return sum(len(cohort.split(split)) for split in EVALUATED)


def _fewest_of_a_class(cohort: Cohort) -> int:
    """Patients of the rarest class; all patients where the cohort has no classes."""
    patients = {label: {row.case_id for row in cohort.rows if row.label == label} for label in cohort.classes}
    return min(map(len, patients.values()), default=len({row.case_id for row in cohort.rows}))
