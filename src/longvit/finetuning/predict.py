"""Training step and inference of a task's model, on one device or sharded over ranks.

N slides, B slides of a batch, W outputs of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from longvit.data.cohort import SlideRow
from longvit.errors import InputError
from longvit.parallel.ranks import ALONE, Ranks
from longvit.progress import Progress
from longvit.tasks.task import Predictions, Task

if TYPE_CHECKING:
    from longvit.data.datasets import CanvasBatch, CanvasBatches


def training_step(task: Task, *, offload: bool = False) -> Callable[[nn.Module, Any], Mapping[str, torch.Tensor]]:
    """Step of the training loop: a batch has images (B, 3, S, S) and targets, name -> (B,).

    With `offload` the images stay in host memory: the model takes a few rows of patches at a time from there.
    """

    def step(model: nn.Module, batch: CanvasBatch) -> dict[str, torch.Tensor]:
        device = next(model.parameters()).device
        images = batch.images if offload else batch.images.to(device, non_blocking=True)
        logits = model(images).float()
        targets = {name: value.to(device, non_blocking=True) for name, value in batch.targets.items()}
        losses = task.losses(logits, targets)
        return {"loss": losses.mean(), "losses": losses}

    return step


def predict(
    task: Task,
    model: nn.Module,
    batches: CanvasBatches,
    rows: Sequence[SlideRow],
    *,
    offload: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Predictions:
    """Logits and loss of `rows`, in the order of `batches`; the model is in eval mode.

    Every rank calls, and gets the logits of all slides. `progress` counts slides.
    `InputError` names the slide where a logit is NaN or infinite.
    """
    if not rows:
        return Predictions((), np.zeros((0, len(task.output_names))), math.nan)
    device = next(model.parameters()).device

    def logits(batch: CanvasBatch) -> torch.Tensor:
        out: torch.Tensor = model(batch.images if offload else batch.images.to(device, non_blocking=True))
        return out

    z = predict_all(batches, logits, progress=progress, ranks=ranks)
    for row, is_finite in zip(rows, torch.isfinite(z).all(1).tolist(), strict=True):
        if not is_finite:
            raise InputError(
                f"slide {row.slide_id}: the model's output is not finite; inspect the slide, or use float32"
            )
    targets = {name: torch.from_numpy(value) for name, value in task.targets(rows).items()}
    return Predictions(tuple(rows), z.numpy(), task.losses(z, targets).mean().item())


def predict_all(
    batches: CanvasBatches,
    compute: Callable[[CanvasBatch], torch.Tensor],
    *,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> torch.Tensor:
    """Inference sharded over ranks: compute(batch) -> (B, F) becomes float64 (N, F) on the CPU of every rank.

    The data axis shards the batches; all ranks of a sequence compute the same ones. Without gradients.
    """
    numbers = range(ranks.data_rank, len(batches), ranks.data_ranks)
    computed: list[tuple[int, torch.Tensor]] = []
    with torch.no_grad():
        for number, batch in zip(numbers, batches.epoch(0, numbers), strict=True):
            computed.append((number * batches.batch_size, compute(batch).double().cpu()))
            ranks.move()
            if progress is not None:
                progress.advance(len(batch.names) * ranks.data_ranks)
    (width,) = ranks.highest([computed[0][1].shape[1] if computed else 0], torch.device("cpu"))
    table = torch.zeros(batches.samples, width, dtype=torch.float64)
    for first, values in computed:
        table[first : first + len(values)] = values
    return ranks.sum_over_data(table)
