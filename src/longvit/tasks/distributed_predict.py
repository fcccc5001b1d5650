"""Numbers of every slide, each computed by the rank whose share it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from longvit.parallel.ranks import ALONE, Ranks
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.data.datasets import CanvasBatch, CanvasBatches


def predict_all(
    batches: CanvasBatches,
    compute: Callable[[CanvasBatch], torch.Tensor],
    *,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> torch.Tensor:
    """compute(batch) -> (B, F), for all batches: float64 (slides, F) on the CPU, on every rank.

    The batches are dealt out over the data axis; all ranks of a sequence compute the same ones. Without gradients.
    """
    ranks = ranks or ALONE
    numbers = range(ranks.data_rank, len(batches), ranks.data_ranks)
    found: list[tuple[int, torch.Tensor]] = []
    with torch.no_grad():
        for number, batch in zip(numbers, batches.epoch(0, numbers), strict=True):
            found.append((number * batches.batch_size, compute(batch).double().cpu()))
            ranks.move()
            if progress is not None:
                progress.advance(len(batch.names) * ranks.data_ranks)
    (width,) = ranks.highest([found[0][1].shape[1] if found else 0], torch.device("cpu"))
    table = torch.zeros(batches.samples, width, dtype=torch.float64)
    for first, rows in found:
        table[first : first + len(rows)] = rows
    return ranks.sum_over_data(table)
