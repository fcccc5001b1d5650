"""Controls of a run: what the slides' mean colour, and frozen encoders, reach on the same split.

Stain and scanner alone often predict a label well, and so may a random encoder, or (a linear probe) the starting
weights before training. A control is the task's own head fitted on fixed features of the training slides
(`Task.control`): a logistic regression for subtyping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from longvit.finetuning.predict import predict_all
from longvit.parallel.ranks import ALONE, Ranks
from longvit.progress import Progress
from longvit.tasks.task import Predictions, Task

if TYPE_CHECKING:
    from longvit.data.datasets import CanvasBatch, CanvasBatches, CanvasDataset
    from longvit.model.longvit import LongViT


def colour_histogram(pixels: np.ndarray, bins: int = 8) -> np.ndarray:
    """Colour histogram of uint8 (S, S, 3): float64 (bins^3,), the fraction of pixels in each cube of RGB."""
    cube = (pixels.reshape(-1, 3) // (256 // bins)).astype(np.int64) @ (bins * bins, bins, 1)
    return np.bincount(cube, minlength=bins**3) / len(cube)


def pixel_features(dataset: CanvasDataset, feature: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Features of every canvas, float64 (slides, features); `feature` computes those of one."""
    return np.stack([feature(dataset.pixels(i)) for i in range(len(dataset))])


def run_controls(
    task: Task,
    train: CanvasBatches,
    evaluated: Mapping[str, CanvasBatches],
    encoders: Mapping[str, LongViT],
    *,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, dict[str, Predictions]]:
    """Control -> split -> predictions (without a loss): `mean_colour`, and each frozen encoder by its name.

    The batches are not shuffled. On several ranks every rank calls, with encoders for strips.
    """

    def features(batch: CanvasBatch) -> torch.Tensor:
        """(B, 3 + the widths): the mean colour, and the pooled embeddings."""
        parts = [ranks.sum_over_sequence(batch.images.sum((2, 3)).double()) / batch.images.shape[3] ** 2]
        for encoder in encoders.values():
            images = batch.images.to(next(encoder.parameters()).device, non_blocking=True)
            parts.append(encoder.forward_head(encoder.forward_features(images), pre_logits=True).double().cpu())
        return torch.cat(parts, 1)

    def features_of(batches: CanvasBatches) -> np.ndarray:
        return predict_all(batches, features, progress=progress, ranks=ranks).numpy()

    columns, first = {"mean_colour": slice(0, 3)}, 3
    for name, encoder in encoders.items():
        encoder.eval()
        columns[name] = slice(first, first + encoder.config.embed_dim)
        first += encoder.config.embed_dim
    x, others = features_of(train), {split: features_of(batches) for split, batches in evaluated.items()}
    results: dict[str, dict[str, Predictions]] = {}
    for name, part in columns.items():
        logits = task.control(x[:, part], train.dataset.rows, {split: o[:, part] for split, o in others.items()})
        results[name] = {
            split: Predictions(tuple(evaluated[split].dataset.rows), z, math.nan) for split, z in logits.items()
        }
    return results
