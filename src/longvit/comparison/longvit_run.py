"""LongViT in the same table: what `longvit train --folds` predicted, where its folds are those of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longvit.comparison.settings import ComparisonSettings
from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, assign, match, read_folds
from longvit.errors import InputError
from longvit.finetuning.crossval import replace_splits
from longvit.finetuning.outputs import read_logits
from longvit.json_file import read_json_object
from longvit.tasks.task import Predictions, Task, task_class
from longvit.training.resource_usage import Cost, read_cost

NAME = "longvit"


@dataclass(frozen=True)
class LongvitRun:
    """A cross-validation of LongViT."""

    folder: Path
    predictions: Mapping[str, Predictions]
    """Fold -> its evaluated slides, last epoch."""
    best_val: Mapping[str, float | None]
    """Fold -> the main figure at the epoch picked on val."""
    parameters: int | None
    costs: tuple[Cost, ...]
    """What each fold's training took; unknown where it was interrupted, or is older than costs.json."""
    tasks: Mapping[str, Task]
    """Fold -> the task bound to all slides of the CSV: it knows the answers of slides without features, too."""


def read_longvit_run(
    folder: str | Path, cohort: Cohort, folds: Sequence[Fold], settings: ComparisonSettings
) -> LongvitRun:
    """Reads the folder of a cross-validation; `cohort` has all slides of the CSV.

    Raises `InputError`: no finished cross-validation, another task, a fold that it has not or has otherwise.
    """
    folder, kind = Path(folder), task_class(settings.task)
    try:
        summary = read_json_object(folder / "crossval.json")
        evaluated, its_task = summary["evaluated"], summary["task"]
        of_best = {str(f["fold"]): f["best_val"] for f in summary["folds"]}
    except OSError as error:
        raise InputError(
            f"{folder}: no finished cross-validation (crossval.json); give the folder of `longvit train --folds`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'crossval.json'}: damaged; run the cross-validation again") from error
    if its_task != settings.task:
        raise InputError(f"{folder}: a cross-validation of {its_task}, this is {settings.task}")
    theirs = {fold.name: fold for fold in read_folds(folder / "folds")}
    predictions, tasks, parameters, costs = {}, {}, None, []
    for fold in folds:
        if (other := theirs.get(fold.name)) is None or _sides(cohort, fold) != _sides(cohort, other):
            what = "has no fold" if other is None else "has other slides in fold"
            raise InputError(
                f"{folder}: {what} {fold.name}: LongViT and the systems must have the same folds; give --folds "
                f"{folder / 'folds'}"
            )
        assigned = assign(replace_splits(cohort), fold, allow_leak=settings.allow_leak)
        tasks[fold.name] = kind(assigned, settings.of_task())
        fold_split = folder / f"fold_{fold.name}"
        try:
            predictions[fold.name] = read_logits(fold_split / "outputs.csv", cohort)["model"][evaluated]
            metrics = read_json_object(fold_split / "metrics.json")
            parameters = metrics["training"].get("parameters")
            if not isinstance(parameters, int | None):
                raise TypeError(f"parameters {str(parameters)[:40]!r}")
            costs.append(read_cost(fold_split))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{fold_split}: no finished fold of {evaluated} predictions, or damaged ({error})"
            ) from error
    best = {name: None if of is None else of.get(kind.metric) for name, of in of_best.items() if name in predictions}
    return LongvitRun(folder, predictions, best, parameters, tuple(costs), tasks)


def _sides(cohort: Cohort, fold: Fold) -> dict[str, tuple[int, ...]]:
    return dict(match(cohort, fold).rows)
