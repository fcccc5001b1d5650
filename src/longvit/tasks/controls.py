"""Controls beside every run: what the slides' mean colour, and frozen encoders, reach on the same split.

A user sees from them whether the trained encoder earned its number: stain and scanner alone often carry a label far,
and so may a random encoder, or (a linear probe) the weights that the run starts from before any of them moves.
Each is the task's own head fitted on the training slides (`Task.control`): for subtyping a logistic regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.data.datasets import CanvasBatch, CanvasBatches, CanvasDataset
    from longvit.model.longvit import LongViT
    from longvit.parallel.ranks import Ranks
    from longvit.tasks.task import Predictions, Task


def colour_histogram(pixels: np.ndarray, bins: int = 8) -> np.ndarray:
    """uint8 (S, S, 3) -> float64 (bins^3,), the share of pixels in each cell of the RGB cube."""
    cell = (pixels.reshape(-1, 3) // (256 // bins)).astype(np.int64) @ (bins * bins, bins, 1)
    return np.bincount(cell, minlength=bins**3) / len(cell)


def pixel_features(dataset: CanvasDataset, feature: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`feature` of every canvas, float64 (slides, features)."""
    return np.stack([feature(dataset.pixels(i)) for i in range(len(dataset))])


def run_controls(
    task: Task,
    train: CanvasBatches,
    evaluated: Mapping[str, CanvasBatches],
    encoders: Mapping[str, LongViT],
    *,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> dict[str, dict[str, Predictions]]:
    """`mean_colour`, and each of the frozen encoders by its name -> split -> predictions (without a loss). The batches
    are unshuffled; on several ranks the encoders are those for strips, and every rank calls."""
    import torch

    from longvit.parallel.ranks import ALONE
    from longvit.tasks.distributed_predict import predict_all
    from longvit.tasks.task import Predictions

    ranks = ranks or ALONE

    def features(batch: CanvasBatch) -> torch.Tensor:
        """(B, 3 + the widths): the mean colour, and the pooled embeddings."""
        found = [ranks.sum_over_sequence(batch.images.sum((2, 3)).double()) / batch.images.shape[3] ** 2]
        for encoder in encoders.values():
            images = batch.images.to(next(encoder.parameters()).device, non_blocking=True)
            found.append(encoder.forward_head(encoder.forward_features(images), pre_logits=True).double().cpu())
        return torch.cat(found, 1)

    def of(batches: CanvasBatches) -> np.ndarray:
        return predict_all(batches, features, progress=progress, ranks=ranks).numpy()

    columns, first = {"mean_colour": slice(0, 3)}, 3
    for name, encoder in encoders.items():
        encoder.eval()
        columns[name] = slice(first, first + encoder.config.embed_dim)
        first += encoder.config.embed_dim
    x, others = of(train), {split: of(batches) for split, batches in evaluated.items()}
    results: dict[str, dict[str, Predictions]] = {}
    for name, own in columns.items():
        logits = task.control(x[:, own], train.dataset.rows, {split: o[:, own] for split, o in others.items()})
        results[name] = {
            split: Predictions(tuple(evaluated[split].dataset.rows), z, math.nan) for split, z in logits.items()
        }
    return results


def logistic_probabilities(
    train_features: np.ndarray, train_labels: np.ndarray, features: Mapping[str, np.ndarray], classes: int
) -> dict[str, np.ndarray]:
    """Split -> class probabilities (slides, classes) of a logistic regression fitted on the training slides.

    A class that is absent from training has probability 0 everywhere.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    fitted.fit(train_features, train_labels)
    result = {}
    for split, x in features.items():
        result[split] = np.zeros((len(x), classes))
        if len(x):
            result[split][:, fitted.classes_] = fitted.predict_proba(x)
    return result
