"""Shortcut of a run: whether its predictions follow the hospital, as the site check judges it (`sites.shortcut`).

Judged on the slides whose metrics the run reports. The label of a task without classes is its stratum: the quarter of a
number, the combination of several labels, event or censored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longvit.data.cohort import Cohort
from longvit.sites.shortcut import likely_shortcut
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import Predictions, Task, task_class

_PROBABILITIES = ("prob_", "probability_")
_NUMBERS = ("risk", "predicted_value")


def shortcut_of(task: Task, predictions: Predictions) -> str | None:
    """Sentence on a likely shortcut of a fine-tuning; None without one, or without sites."""
    return shortcut_of_folds([(task, predictions)])


def shortcut_of_folds(folds: Sequence[tuple[Task, Predictions]]) -> str | None:
    """The same over the slides of all folds. Risks of two models have no common scale: their rank in a fold counts."""
    task, _ = folds[0]
    numbers = []
    for one, p in folds:
        values = predicted_numbers(type(one), one.output_names, p.logits)
        numbers.append(values if one.pools_folds or len(folds) == 1 else _ranks(values))
    rows = tuple(row for _, p in folds for row in p.rows)
    cohort = Cohort(rows, task.cohort.classes, task.cohort.source)
    return shortcut_in(cohort, task.settings, np.concatenate(numbers))


def shortcut_in(cohort: Cohort, settings: TaskSettings, numbers: np.ndarray) -> str | None:
    """Sentence on the rows of a cohort with their predictions (N, D), see `predicted_numbers`; None where D is 0."""
    if not numbers.shape[1] or len({row.site for row in cohort.rows if row.site}) < 2:
        return None
    kind = task_class(settings.task)
    labels = kind.strata(cohort, settings)
    return likely_shortcut(cohort.rows, labels, numbers, are_probabilities=kind.name not in ("survival", "regression"))


def predicted_numbers(kind: type[Task], output_names: Sequence[str], logits: np.ndarray) -> np.ndarray:
    """Predictions (N, D) as the site check reads them: probabilities, else the risk or the predicted number.

    D is 0 for a task of a user whose columns have other names.
    """
    columns = kind.prediction_columns(output_names)
    shown = [i for i, name in enumerate(columns) if name.startswith(_PROBABILITIES) or name in _NUMBERS]
    cells = [kind.prediction_cells(z, output_names) for z in logits]
    return np.array([[float(row[i]) for i in shown] for row in cells], dtype=np.float64).reshape(len(cells), len(shown))


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy import stats

    return np.asarray(stats.rankdata(values, axis=0) / max(1, len(values)))
