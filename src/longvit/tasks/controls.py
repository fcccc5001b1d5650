"""Two controls beside every run: what the slides' mean colour, and a random encoder, reach on the same split.

A user sees from them whether the trained encoder earned its number: stain and scanner alone often carry a label far.
Each is the task's own head fitted on the training slides (`Task.control`): for subtyping a logistic regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.data.datasets import CanvasBatch, CanvasBatches, CanvasDataset
    from longvit.model.longvit import LongViT
    from longvit.tasks.task import Predictions, Task


def mean_colour(pixels: np.ndarray) -> np.ndarray:
    """uint8 (S, S, 3) -> float64 (3,), the mean red, green and blue."""
    return pixels.reshape(-1, 3).mean(0)


def colour_histogram(pixels: np.ndarray, bins: int = 8) -> np.ndarray:
    """uint8 (S, S, 3) -> float64 (bins^3,), the share of pixels in each cell of the RGB cube."""
    cell = (pixels.reshape(-1, 3) // (256 // bins)).astype(np.int64) @ (bins * bins, bins, 1)
    return np.bincount(cell, minlength=bins**3) / len(cell)


def pixel_features(dataset: CanvasDataset, feature: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`feature` of every canvas, float64 (slides, features)."""
    return np.stack([feature(dataset.pixels(i)) for i in range(len(dataset))])


def encoder_features(encoder: LongViT, batches: Iterable[CanvasBatch], progress: Progress | None = None) -> np.ndarray:
    """The pooled embedding of every slide, float64 (slides, width), in the order of `batches`."""
    import torch

    device = next(encoder.parameters()).device
    encoder.eval()
    out = []
    with torch.no_grad():
        for batch in batches:
            tokens = encoder.forward_features(batch.images.to(device))
            out.append(encoder.forward_head(tokens, pre_logits=True).double().cpu())
            if progress is not None:
                progress.advance(len(batch.names))
    return torch.cat(out).numpy()


def run_controls(
    task: Task,
    train: CanvasBatches,
    evaluated: Mapping[str, CanvasBatches],
    random_encoder: LongViT,
    progress: Progress | None = None,
) -> dict[str, dict[str, Predictions]]:
    """`mean_colour`, `random_encoder` -> split -> predictions (without a loss). The batches are unshuffled."""
    from longvit.tasks.task import Predictions

    features: dict[str, Callable[[CanvasBatches], np.ndarray]] = {
        "mean_colour": lambda batches: pixel_features(batches.dataset, mean_colour),
        "random_encoder": lambda batches: encoder_features(random_encoder, batches, progress),
    }
    results: dict[str, dict[str, Predictions]] = {}
    for name, of in features.items():
        logits = task.control(of(train), train.dataset.rows, {split: of(b) for split, b in evaluated.items()})
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
