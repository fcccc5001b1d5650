"""Task: labels, loss, metrics and columns for slides; one file under tasks/, one line in catalogue.py.

A task turns rows of a cohort into targets, logits into losses, and predictions into metrics and columns. Slides,
canvases, the training loop, folds, resume and the report are the same for all tasks (docs/extending.md shows a new
one).

N slides, B slides of a batch, W outputs of the head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.errors import InputError
from longvit.tasks.catalogue import TASKS
from longvit.tasks.settings import TaskSettings

if TYPE_CHECKING:
    import torch

    from longvit.metrics.classification import Interval


Aggregate = Literal["mean", "max"]
"""Aggregation of the slides of a patient."""


def task_class(name: str) -> type[Task]:
    """Class of a task by its name; `InputError` lists the names."""
    if name not in TASKS:
        raise InputError(f"task {name!r}: choose {', '.join(TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    return cast("type[Task]", getattr(import_module(module), attribute))


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for slides, in the order of the rows."""

    rows: tuple[SlideRow, ...]
    logits: np.ndarray
    """float64 (N, W), finite."""
    loss: float
    """Mean loss over the slides; NaN without slides."""

    @property
    def names(self) -> tuple[str, ...]:
        """slide_id of each slide."""
        return tuple(row.slide_id for row in self.rows)

    @property
    def patients(self) -> tuple[str, ...]:
        """case_id of each slide."""
        return tuple(row.case_id for row in self.rows)


@dataclass(frozen=True)
class OutputMeaning:
    """Meaning of one output for the reader of a heat map."""

    title: str
    unit: str
    """Quantity that a patch contributes to: `log-odds of KRAS`."""


class Task(ABC):
    """A task for a cohort with splits; what it fits to slides (time bins), it fits to `train`."""

    name: ClassVar[str]
    """Name in `catalogue.TASKS`."""
    metric: ClassVar[str]
    """Main metric, which also selects `best_val`; higher is better, `chance` is its value by chance."""
    metric_label: ClassVar[str]
    chance: ClassVar[float] = 0.5
    loss_label: ClassVar[str] = "loss"
    has_classes: ClassVar[bool] = False
    """True where the cohort's label column holds the label (a class); else the task reads other columns."""
    outputs_are_classes: ClassVar[bool] = False
    """True where the outputs are those of a softmax over the classes."""
    per_patient: ClassVar[bool] = False
    """True where a patient, not a slide, has the label: a bag is then a patient's."""
    pools_folds: ClassVar[bool] = False
    """True where predictions of the models of different folds can be compared."""

    def __init__(self, cohort: Cohort, settings: TaskSettings) -> None:
        """Checks every row's label: `InputError` in one line, with the slide and the way out."""
        self.cohort, self.settings = cohort, settings

    @classmethod
    def select(cls, cohort: Cohort, settings: TaskSettings) -> Cohort:
        """Selects the rows of the task (a task may use only the first slide of a patient)."""
        return cohort

    @classmethod
    def strata(cls, cohort: Cohort, settings: TaskSettings) -> list[str]:
        """Stratum of every slide, for stratified splits and balanced sampling."""
        return [row.label for row in cohort.rows]

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of the head's W outputs, stored with the model."""

    @classmethod
    def classes_of(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        """Classes with a column `prob_<class>` in a table of predictions; none where the task has no such columns."""
        return ()

    @classmethod
    def meanings(cls, output_names: Sequence[str]) -> tuple[OutputMeaning, ...]:
        """Title of each output, and what a patch contributes to."""
        return tuple(OutputMeaning(name, name) for name in output_names)

    @classmethod
    def shown_output(cls, logits: np.ndarray) -> int:
        """Output of which a heat map is made unless another is chosen; `logits` float64 (W,)."""
        return int(logits.argmax())

    @classmethod
    def aggregated(cls, logits: np.ndarray, how: Aggregate) -> np.ndarray:
        """Logits (W,) of a patient from those of its slides, float64 (n, W): their mean, or the highest of each output.

        A task whose predictions are probabilities aggregates these.
        """
        return np.asarray(logits.mean(0) if how == "mean" else logits.max(0))

    def patient_row(self, rows: Sequence[SlideRow]) -> SlideRow | None:
        """Row with the label of a patient, from the rows of its slides: the first; None where their labels differ."""
        return rows[0] if len({self.label_cells(row) for row in rows}) == 1 else None

    def rescaled(self, logits: np.ndarray, other: Task) -> np.ndarray:
        """Logits (N, W) of another fold's task on the scale of this one."""
        return logits

    @abstractmethod
    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """Targets of the loss: name -> (N,) int64 or float32 (NaN where a label is missing)."""

    @abstractmethod
    def losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Losses (B,) of logits (B, W); their mean is the loss of the batch."""

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Metrics: name -> value, NaN where it is not defined; `metric` is one of them."""

    def main_metric(self, predictions: Predictions) -> float:
        """Value of `metric`, for resampling; override it where the other metrics take long."""
        return self.metrics(predictions)[self.metric]

    @abstractmethod
    def intervals(self, predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Interval]:
        """95 % bootstrap intervals of (some of) the metrics, resampled by patient."""

    @classmethod
    @abstractmethod
    def prediction_columns(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        """Columns of a prediction in a table of predictions."""

    @classmethod
    @abstractmethod
    def prediction_cells(cls, logits: np.ndarray, output_names: Sequence[str]) -> tuple[str, ...]:
        """One slide's prediction as text under `prediction_columns`, from its logits float64 (W,)."""

    @abstractmethod
    def label_columns(self) -> tuple[str, ...]:
        """Columns of the label in a table of predictions."""

    @abstractmethod
    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        """Label of a slide, as text under `label_columns`."""

    @abstractmethod
    def control(self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]) -> Any:
        """Fits the same head on fixed features float64 (N, F) of training slides; returns split -> logits (N', W)."""

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:  # noqa: B027 (most need none)
        """`InputError` where the readable training slides do not suffice; `after`: text on the slides left out."""
