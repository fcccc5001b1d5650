"""Controls of a run: what the slides' mean colour, and frozen encoders, reach on the same split.

Stain and scanner alone often predict a label well, and so may a random encoder, or (a linear probe) the starting
weights before training. A control is the task's own head fitted on fixed features of the training slides
(`Task.control`): a logistic regression for subtyping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from longvit.errors import InputError
from longvit.files import require_regular_file, write_bytes
from longvit.finetuning.predict import predict_all
from longvit.parallel.ranks import ALONE, Ranks
from longvit.progress import Progress
from longvit.tasks.task import Predictions, Task

if TYPE_CHECKING:
    from longvit.data.datasets import CanvasBatch, CanvasBatches, CanvasDataset
    from longvit.finetuning.settings import FinetuneSettings
    from longvit.model.longvit import LongViT

FEATURES_FILE = "control_features.safetensors"


def colour_histogram(pixels: np.ndarray, bins: int = 8) -> np.ndarray:
    """Colour histogram of uint8 (S, S, 3): float64 (bins^3,), the fraction of pixels in each cube of RGB."""
    cube = (pixels.reshape(-1, 3) // (256 // bins)).astype(np.int64) @ (bins * bins, bins, 1)
    return np.bincount(cube, minlength=bins**3) / len(cube)


def pixel_features(dataset: CanvasDataset, feature: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Features of every canvas, float64 (slides, features); `feature` computes those of one."""
    return np.stack([feature(dataset.pixels(i)) for i in range(len(dataset))])


def control_features(
    batches: CanvasBatches, encoders: Mapping[str, LongViT], *, progress: Progress | None = None, ranks: Ranks = ALONE
) -> dict[str, np.ndarray]:
    """Control -> features, float64 (slides, width): `mean_colour`, and each frozen encoder by its name.

    The batches are not shuffled. On several ranks every rank calls, with encoders for strips.
    """
    for encoder in encoders.values():
        encoder.eval()

    def features(batch: CanvasBatch) -> torch.Tensor:
        """(B, 3 + the widths): the mean colour, and the pooled embeddings."""
        parts = [ranks.sum_over_sequence(batch.images.sum((2, 3)).double()) / batch.images.shape[3] ** 2]
        for encoder in encoders.values():
            images = batch.images.to(next(encoder.parameters()).device, non_blocking=True)
            parts.append(encoder.forward_head(encoder.forward_features(images), pre_logits=True).double().cpu())
        return torch.cat(parts, 1)

    x = predict_all(batches, features, progress=progress, ranks=ranks).numpy()
    ends = np.cumsum([3, *(encoder.config.embed_dim for encoder in encoders.values())])
    names = ["mean_colour", *encoders]
    return dict(zip(names, np.split(x, ends[:-1], axis=1), strict=True))


def run_controls(
    task: Task,
    train: CanvasBatches,
    evaluated: Mapping[str, CanvasBatches],
    encoders: Mapping[str, LongViT],
    *,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, dict[str, Predictions]], dict[str, np.ndarray]]:
    """Control -> split -> predictions (without a loss), and control -> features of the training slides.

    Batches, encoders and ranks as in `control_features`.
    """
    x = control_features(train, encoders, progress=progress, ranks=ranks)
    others = {
        split: control_features(batches, encoders, progress=progress, ranks=ranks)
        for split, batches in evaluated.items()
    }
    results: dict[str, dict[str, Predictions]] = {}
    for name, features in x.items():
        logits = task.control(features, train.dataset.rows, {split: o[name] for split, o in others.items()})
        results[name] = {
            split: Predictions(tuple(evaluated[split].dataset.rows), z, math.nan) for split, z in logits.items()
        }
    return results, x


def write_training_features(folder: Path, features: Mapping[str, np.ndarray]) -> None:
    """Writes control_features.safetensors: control -> features of the training slides, in the order of slides.csv."""
    from safetensors.numpy import save

    write_bytes(folder / FEATURES_FILE, save({name: np.ascontiguousarray(x) for name, x in features.items()}))


def read_training_features(folder: Path) -> dict[str, np.ndarray] | None:
    """Features of `write_training_features`; None where there are none. `InputError`: a damaged file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / FEATURES_FILE
    try:
        require_regular_file(path)
        features = load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it to leave out the controls") from error
    if any(x.ndim != 2 or not np.isfinite(x).all() for x in features.values()):
        raise InputError(f"{path}: damaged (not a table of numbers); remove it to leave out the controls")
    return dict(features)


def frozen_encoders(settings: FinetuneSettings, outputs: Sequence[str]) -> dict[str, LongViT]:
    """Frozen encoders of the controls: `random_encoder`, and `frozen_weights` where the run starts from weights."""
    from longvit.finetuning.starting_model import starting_model

    encoders = {"random_encoder": starting_model(settings, outputs, random=True)}
    if settings.weights is not None:
        encoders["frozen_weights"] = starting_model(settings, outputs)
    return encoders
