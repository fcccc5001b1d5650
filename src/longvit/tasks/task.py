"""What a task is: a question asked of slides, in one file under tasks/, and one line in catalogue.py.

A task turns rows of a cohort into targets, logits into losses, and predictions into figures, columns and pictures;
slides, canvases, the loop, folds, resume and the report are the same for all (docs/extending.md shows a new one).

N slides, B slides of a batch, W outputs of the head.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.errors import InputError
from longvit.progress import Progress
from longvit.tasks.catalogue import TASKS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from longvit.data.datasets import CanvasBatch, CanvasBatches
    from longvit.metrics.classification import Interval
    from longvit.parallel.ranks import Ranks
    from longvit.tasks.settings import FinetuneSettings


def task_class(name: str) -> type[Task]:
    """The class of a task by its name; `InputError` names the ones there are."""
    if name not in TASKS:
        raise InputError(f"task {name!r}: choose {', '.join(TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    return cast("type[Task]", getattr(import_module(module), attribute))


@dataclass(frozen=True)
class Predictions:
    """What a model says about slides, in the order in which they came."""

    rows: tuple[SlideRow, ...]
    logits: np.ndarray
    """float64 (N, W), finite."""
    loss: float
    """Mean over the slides; NaN without slides."""

    @property
    def names(self) -> tuple[str, ...]:
        """slide_id of each."""
        return tuple(row.slide_id for row in self.rows)

    @property
    def patients(self) -> tuple[str, ...]:
        """case_id of each."""
        return tuple(row.case_id for row in self.rows)


class Task(ABC):
    """A task bound to a cohort with splits; whatever it learns from slides (time bins), it learns from `train`."""

    name: ClassVar[str]
    """As in `catalogue.TASKS`."""
    metric: ClassVar[str]
    """The figure that stands for the result and picks `best_val`; higher is better, chance is `chance`."""
    metric_label: ClassVar[str]
    chance: ClassVar[float] = 0.5
    loss_words: ClassVar[str] = "loss"
    has_classes: ClassVar[bool] = False
    """Whether the cohort's label column holds the answer (as classes); else the task reads cells of its own."""

    def __init__(self, cohort: Cohort, settings: FinetuneSettings) -> None:
        """Checks every row's answer: `InputError` in one line, with the slide and the way out."""
        self.cohort, self.settings = cohort, settings

    @classmethod
    def select(cls, cohort: Cohort, settings: FinetuneSettings) -> Cohort:
        """The rows that take part (a task may use the first slide of a patient only)."""
        return cohort

    @classmethod
    def strata(cls, cohort: Cohort, settings: FinetuneSettings) -> list[str]:
        """The group of every slide, for splits by stratum and for balanced sampling."""
        return [row.label for row in cohort.rows]

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of the head's outputs, W of them; they are kept with the model."""

    @abstractmethod
    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """Name -> (N,) int64 or float32: what `losses` needs of each slide."""

    @abstractmethod
    def losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float (B, W) -> (B,), whose mean is the loss of the batch."""

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Name -> value, NaN where it is not defined; `figure` is one of them."""

    def main_metric(self, predictions: Predictions) -> float:
        """`figure` alone, for resampling: override it where the others take long."""
        return self.metrics(predictions)[self.metric]

    @abstractmethod
    def intervals(self, predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Interval]:
        """The 95 % intervals of (some of) the figures when the patients are drawn anew."""

    @classmethod
    @abstractmethod
    def prediction_columns(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        """What a table of predictions says of a slide, beside who it is and its answer."""

    @classmethod
    @abstractmethod
    def prediction_cells(cls, logits: np.ndarray, output_names: Sequence[str]) -> tuple[str, ...]:
        """One slide's logits float64 (W,) -> the text under `columns`."""

    @classmethod
    @abstractmethod
    def label_columns(cls) -> tuple[str, ...]:
        """The true answer's columns in a table of predictions."""

    @abstractmethod
    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        """The true answer of a slide, as text under `answer_columns`."""

    @abstractmethod
    def control(self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]) -> Any:
        """The same head fitted on fixed features float64 (N, F) of training slides: split -> logits (N', W)."""

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:  # noqa: B027 (most need none)
        """`InputError` where the training slides that could be read cannot teach the task; `after`: what was lost."""

    def plots(  # noqa: B027
        self,
        folder: Path,
        predictions: Mapping[str, Predictions],
        intervals: Mapping[str, Mapping[str, Interval]],
        controls: Mapping[str, Mapping[str, Mapping[str, float]]],
    ) -> None:
        """Draws the curves of a finished run into its folder; nothing by default."""

    def step(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """The training loop's step: `batch` has images (B, 3, S, S) and targets, name -> (B,)."""
        device = next(model.parameters()).device
        # With offload the model takes a few rows of patches at a time from the host.
        images = batch.images if self.settings.offload else batch.images.to(device, non_blocking=True)
        logits = model(images).float()
        targets = {name: value.to(device, non_blocking=True) for name, value in batch.targets.items()}
        losses = self.losses(logits, targets)
        return {"loss": losses.mean(), "losses": losses}

    def predict(
        self,
        model: nn.Module,
        batches: CanvasBatches,
        rows: Sequence[SlideRow],
        *,
        progress: Progress | None = None,
        ranks: Ranks | None = None,
    ) -> Predictions:
        """The logits of `rows`, which `batches` brings in this order; call it with the model in eval mode.

        `InputError` names the slide where a logit is NaN or infinite. `progress` counts slides. Every rank calls it,
        and gets the logits of all slides.
        """
        import torch

        from longvit.tasks.distributed_predict import predict_all

        if not rows:
            return Predictions((), np.zeros((0, len(self.output_names))), math.nan)
        device = next(model.parameters()).device
        leave = self.settings.offload  # as in `step`

        def logits(batch: CanvasBatch) -> torch.Tensor:
            out: torch.Tensor = model(batch.images if leave else batch.images.to(device, non_blocking=True))
            return out

        z = predict_all(batches, logits, progress=progress, ranks=ranks)
        for row, finite in zip(rows, torch.isfinite(z).all(1).tolist(), strict=True):
            if not finite:
                raise InputError(
                    f"slide {row.slide_id}: the model's output is not finite; look at the slide, or use float32"
                )
        targets = {name: torch.from_numpy(value) for name, value in self.targets(rows).items()}
        return Predictions(tuple(rows), z.numpy(), self.losses(z, targets).mean().item())
