"""Runs of a first training: one split, and folds where there are enough patients, each checked as training does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
class Run:
    """Number of slides of one training."""

    train: int
    evaluated: int
    """Slides in val and test."""


@dataclass(frozen=True)
class Runs:
    """Trainings of a proposal: one, and one per fold."""

    single: Run
    """Training on one split."""
    folds: str | None
    """Value of `--folds`; None: none are proposed."""
    why: str
    """Reason for the folds, or for none."""
    of_folds: tuple[Run, ...]
    """Trainings of the cross-validation; empty where none is proposed."""
    task: Task
    rows: tuple[SlideRow, ...]
    """Training slides of the single run."""

    @property
    def fewest_train(self) -> int:
        """Fewest training slides of a run."""
        return min(run.train for run in (self.single, *self.of_folds))

    @property
    def proposed(self) -> tuple[Run, ...]:
        """Trainings of the command that is proposed: the folds where there are some."""
        return self.of_folds or (self.single,)


def plan_runs(cohort: Cohort, settings: FinetuneSettings) -> Runs:
    """Runs that `longvit train` accepts for this cohort; raises the `InputError` of `train` where it accepts none."""
    prepared, task = _prepared(cohort, settings)
    folds, why, of_folds = _folds(cohort, settings)
    return Runs(_run(prepared), folds, why, of_folds, task, prepared.split("train"))


def _folds(cohort: Cohort, settings: FinetuneSettings) -> tuple[str | None, str, tuple[Run, ...]]:
    """Value of `--folds` or None, its reason, and the runs."""
    patients = len({row.case_id for row in cohort.rows})
    if any(row.split for row in cohort.rows):
        return None, "the table has a column split", ()
    if has_fold_column(cohort):
        return "column", "the table has folds", _runs(cohort, settings, folds_of_column(cohort))
    if patients < FEWEST_PATIENTS:
        return None, f"{patients} patients are too few for folds, {FEWEST_PATIENTS} or more are needed", ()
    strata = task_class(settings.task).strata(cohort, settings)
    for k in FOLDS:
        if _fewest_of_a_class(cohort) < k:
            continue
        try:
            runs = _runs(cohort, settings, make_folds(cohort, k, seed=settings.seed, strata=strata))
        except InputError:  # fewer folds may do
            continue
        return str(k), f"each of the {patients} patients is tested once, so that the metric rests on all", runs
    rest = "a class has too few patients" if cohort.classes else "the labels are too few"
    return None, f"{rest} for folds", ()


def _runs(cohort: Cohort, settings: FinetuneSettings, folds: Sequence[Fold]) -> tuple[Run, ...]:
    cohorts = (assign(replace_splits(cohort), fold) for fold in folds)
    return tuple(_run(_prepared(assigned, settings)[0]) for assigned in cohorts)


def _prepared(cohort: Cohort, settings: FinetuneSettings) -> tuple[Cohort, Task]:
    """The cohort and its task, checked as `longvit train` does."""
    prepared, task = prepare_cohort(cohort, settings)
    task.check_training(prepared.split("train"), "")
    return prepared, task


def _run(cohort: Cohort) -> Run:
    return Run(len(cohort.split("train")), sum(len(cohort.split(split)) for split in EVALUATED))


def _fewest_of_a_class(cohort: Cohort) -> int:
    """Patients of the rarest class; all patients where the cohort has no classes."""
    patients = {label: {row.case_id for row in cohort.rows if row.label == label} for label in cohort.classes}
    return min(map(len, patients.values()), default=len({row.case_id for row in cohort.rows}))
