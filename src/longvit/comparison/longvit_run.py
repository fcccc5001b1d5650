"""LongViT in a comparison: predictions of a finished `longvit train --folds` on the same folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longvit.comparison.settings import ComparisonSettings
from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, assign, match, read_folds
from longvit.errors import InputError
from longvit.finetuning.crossval import replace_splits
from longvit.finetuning.results import read_logits
from longvit.json_file import read_json_object
from longvit.tasks.patients import by_patient
from longvit.tasks.task import Predictions, Task, task_class
from longvit.training.resource_usage import Cost, read_cost

NAME = "longvit"


@dataclass(frozen=True)
class LongvitRun:
    """Cross-validation of LongViT."""

    folder: Path
    predictions: Mapping[str, Predictions]
    """Fold -> predictions of its evaluated slides, last epoch; of patients where bags are those of patients."""
    best_val: Mapping[str, float | None]
    """Fold -> main metric at the epoch selected on val."""
    parameters: int | None
    costs: tuple[Cost, ...]
    """Cost of each fold's training; unknown where it was interrupted, or costs.json is missing."""
    tasks: Mapping[str, Task]
    """Fold -> task with the labels of all slides of the CSV, also of slides without features."""


def read_longvit_run(
    folder: str | Path, cohort: Cohort, folds: Sequence[Fold], settings: ComparisonSettings
) -> LongvitRun:
    """Reads the folder of a cross-validation; `cohort` has all slides of the CSV.

    Raises `InputError`: no finished cross-validation, another task, a missing or different fold.
    """
    folder, kind = Path(folder), task_class(settings.task)
    try:
        summary = read_json_object(folder / "crossval.json")
        evaluated, run_task = summary["evaluated"], summary["task"]
        best_epochs = {str(f["fold"]): f["best_val"] for f in summary["folds"]}
    except OSError as error:
        raise InputError(
            f"{folder}: no finished cross-validation (crossval.json); give the folder of `longvit train --folds`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'crossval.json'}: damaged; run the cross-validation again") from error
    if run_task != settings.task:
        raise InputError(f"{folder}: a cross-validation of {run_task}, this is {settings.task}")
    run_folds = {fold.name: fold for fold in read_folds(folder / "folds")}
    predictions, tasks, parameters, costs = {}, {}, None, []
    for fold in folds:
        if (other := run_folds.get(fold.name)) is None or _sides(cohort, fold) != _sides(cohort, other):
            what = "has no fold" if other is None else "has other slides in fold"
            raise InputError(
                f"{folder}: {what} {fold.name}: LongViT and the systems must have the same folds; give --folds "
                f"{folder / 'folds'}"
            )
        assigned = assign(replace_splits(cohort), fold, allow_leak=settings.allow_leak)
        tasks[fold.name] = kind(assigned, settings)
        fold_folder = folder / f"fold_{fold.name}"
        try:
            predicted = read_logits(fold_folder / "outputs.csv", cohort)["model"][evaluated]
            if settings.bags == "patient" and not kind.per_patient:
                predicted = by_patient(tasks[fold.name], predicted, "mean").predictions
            predictions[fold.name] = predicted
            metrics = read_json_object(fold_folder / "metrics.json")
            parameters = metrics["training"].get("parameters")
            if not isinstance(parameters, int | None):
                raise TypeError(f"parameters {str(parameters)[:40]!r}")
            costs.append(read_cost(fold_folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{fold_folder}: no finished fold of {evaluated} predictions, or damaged ({error})"
            ) from error
    best_val = {
        name: None if metrics is None else metrics.get(kind.metric)
        for name, metrics in best_epochs.items()
        if name in predictions
    }
    return LongvitRun(folder, predictions, best_val, parameters, tuple(costs), tasks)


def _sides(cohort: Cohort, fold: Fold) -> dict[str, tuple[int, ...]]:
    return dict(match(cohort, fold).rows)
