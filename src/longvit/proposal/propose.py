"""Settings of a first training, each with its reason: `propose` chooses, `recipe_text` writes them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from longvit.data.cohort import Cohort
from longvit.device import Device, pick_device
from longvit.finetuning.settings import FinetuneSettings
from longvit.proposal.machine import SIDES, SMALLEST_OF_PAPER, Canvas, choose_canvas, floor_s
from longvit.proposal.runs import Run, Runs, plan_runs
from longvit.proposal.slide_sample import SlideSample, open_sample, time_reading
from longvit.proposal.speed import Speed, measure_speed
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import task_class

FEW_SLIDES = 300
"""Training slides below which a small model with the weights that ship is proposed."""
FEW = {"model": "longvit_tiny_stem_patch32", "weights": "longvit-tiny-stem", "epochs": 12, "lr": 3e-4}
"""Settings of the recipe `tiny` that differ from the paper's."""
MANY = {"model": "longvit_small_patch32", "epochs": 10, "lr": 5e-5}
"""Settings of the recipe `subtyping`, the paper's."""
FEWEST_STEPS, MOST_EPOCHS = 75, 50
"""Optimiser steps of the recipe `tiny` on the demo's slides; epochs are added to reach them."""
_LONGEST_STEP_S = 60.0
"""Expected seconds of a step above which none is measured."""


@dataclass(frozen=True)
class Proposal:
    """Settings of a first training, and what they rest on."""

    cohort: Cohort
    """Rows that the task selects."""
    settings: FinetuneSettings
    runs: Runs
    sample: SlideSample
    canvas: Canvas
    speed: Speed
    device: Device

    def training_s(self, runs: Sequence[Run]) -> float:
        """Seconds of these runs: training, an evaluation after every epoch, and the controls; without reading."""
        train, evaluated = sum(run.train for run in runs), sum(run.evaluated for run in runs)
        encoders = 1 if self.settings.weights is None else 2  # controls: a random one, and the weights frozen
        forwards = evaluated * self.settings.epochs + encoders * (train + evaluated)
        return train * self.settings.epochs * self.speed.step_s + forwards * self.speed.forward_s

    @property
    def reading_s(self) -> float | None:
        """Seconds of reading every slide once; None: not measured."""
        return None if self.sample.read_s is None else self.sample.read_s * len(self.cohort.rows)

    @property
    def um_per_px(self) -> float | None:
        """µm of the slide per pixel of the canvas, on the longer side; None without a resolution."""
        longer_um = self.sample.longer_um
        return None if longer_um is None else longer_um / self.settings.side_px


def propose(
    cohort: Cohort, task: TaskSettings, *, slides: int = 5, device: str = "auto", more: Mapping[str, Any] | None = None
) -> Proposal:
    """Settings that `longvit train` accepts for a cohort on this machine.

    - `slides`: slides of the cohort that are opened, at least 1.
    - `device`: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
    - `more`: further settings of a fine-tuning, kept as they are.

    Opens slides, reads one, and times a few training steps. Raises `InputError` in one line where no slide of the
    sample can be read, no canvas fits into memory, or training would refuse the labels.

    >>> import longvit
    >>> from longvit.proposal.propose import propose
    >>> from longvit.tasks.settings import TaskSettings
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> proposal = propose(cohort, TaskSettings(), slides=2, device="cpu")
    >>> proposal.settings.model
    'longvit_tiny_stem_patch32'
    """
    chosen = pick_device(device)
    labels = {**vars(task), **(more or {}), "device": device}
    runs = plan_runs(cohort, FinetuneSettings(**labels))
    sample = open_sample(cohort, slides)
    is_few = runs.single.train < FEW_SLIDES
    recipe: dict[str, Any] = dict(FEW if is_few else MANY)
    batch_size = _batch_size(runs.fewest_train)
    epochs = _epochs(recipe["epochs"], runs.fewest_train, batch_size)
    settings = FinetuneSettings(
        **{**recipe, **labels, "batch_size": batch_size, "epochs": epochs, "dtype": _dtype(chosen.device)}
    )
    passes = sum(run.train for run in runs.proposed) * epochs
    most_px = SMALLEST_OF_PAPER if is_few else SIDES[-1]
    canvas = choose_canvas(settings, chosen.device, sample.longer_px, passes, most_px)
    sample = time_reading(cohort, sample, canvas.settings.side_px)
    speed = _speed(runs, canvas, chosen.device)
    selected = task_class(settings.task).select(cohort, settings)
    return Proposal(selected, canvas.settings, runs, sample, canvas, speed, chosen)


def _batch_size(training_slides: int) -> int:
    """8 as in the paper; half of the training slides, as a power of two, where there are fewer than 16."""
    batch_size = 8
    while batch_size > 1 and 2 * batch_size > training_slides:
        batch_size //= 2
    return batch_size


def _epochs(epochs: int, training_slides: int, batch_size: int) -> int:
    """The recipe's epochs, or more to reach `FEWEST_STEPS`, at most `MOST_EPOCHS`."""
    steps = -(-training_slides // batch_size)
    return max(epochs, min(MOST_EPOCHS, -(-FEWEST_STEPS // steps)))


def _dtype(device: torch.device) -> str:
    """bfloat16 on cards that have it, float16 on older ones, float32 elsewhere."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def _speed(runs: Runs, canvas: Canvas, device: torch.device) -> Speed:
    """Measured speed, or the floor of the plan where a step would take minutes."""
    n, floor = canvas.plan.settings.batch_size, canvas.plan.training_floor.seconds
    if floor > _LONGEST_STEP_S:
        return Speed(floor_s(canvas.plan), canvas.plan.forward_floor.seconds / n, 0)
    return measure_speed(runs.task, runs.rows, canvas.settings, device)
