"""Speed of a training step on this machine: a few steps on random pixels, at the proposed size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from longvit.data.cohort import SlideRow
from longvit.data.datasets import CanvasBatch
from longvit.finetuning.predict import training_step
from longvit.finetuning.settings import FinetuneSettings
from longvit.finetuning.starting_model import starting_model
from longvit.tasks.task import Task
from longvit.training.loop import autocast

_STEPS = 3
_LONG_S = 5.0
"""Seconds of a step from which one is enough, without a first one that is not counted."""


@dataclass(frozen=True)
class Speed:
    """Seconds per slide of a model on a device."""

    step_s: float
    """Forward and backward pass."""
    forward_s: float
    """Forward pass alone."""
    steps: int
    """Steps that were timed; 0: not measured, the plan's floor."""


def measure_speed(task: Task, rows: tuple[SlideRow, ...], settings: FinetuneSettings, device: torch.device) -> Speed:
    """Times steps of the starting model on random pixels, with the labels of `rows`.

    At most the slides of one forward pass are in a step.
    """
    rows = rows[: settings.slides_per_forward()]
    model = starting_model(settings, task.output_names).to(device).train()
    pixels = torch.randint(0, 256, (len(rows), 3, settings.side_px, settings.side_px), dtype=torch.uint8)
    targets = {name: torch.from_numpy(value) for name, value in task.targets(rows).items()}
    batch = CanvasBatch(pixels, targets, tuple(row.slide_id for row in rows))
    step = training_step(task, offload=settings.offload)

    def train() -> None:
        with autocast(device, settings.dtype):
            loss = step(model, batch)["loss"]
        loss.backward()
        model.zero_grad(set_to_none=True)

    def evaluate() -> None:
        with torch.no_grad(), autocast(device, settings.dtype):
            step(model, batch)

    first = _seconds(train, device)
    steps = [first] if first > _LONG_S else [_seconds(train, device) for _ in range(_STEPS)]
    model.eval()
    return Speed(median(steps) / len(rows), _seconds(evaluate, device) / len(rows), len(steps))


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    start = perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start
