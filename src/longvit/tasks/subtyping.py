"""Subtyping: which of two or more classes a slide belongs to; cross-entropy on the logits of one linear head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from longvit.errors import InputError
from longvit.progress import Progress


@dataclass(frozen=True)
class Predictions:
    """What a model says about slides, in the order in which they came."""

    names: tuple[str, ...]
    """slide_id of each."""
    labels: np.ndarray
    """True class, int64 (N,)."""
    probabilities: np.ndarray
    """Softmax of the logits, float64 (N, classes); a row sums to 1."""
    loss: float
    """Mean cross-entropy; NaN without slides."""


def step(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """The training loop's step: the batch's mean cross-entropy. `batch` has images (B, 3, S, S) and labels (B,)."""
    device = next(model.parameters()).device
    logits = model(batch.images.to(device, non_blocking=True)).float()
    losses = functional.cross_entropy(logits, batch.labels.to(device, non_blocking=True), reduction="none")
    return {"loss": losses.mean(), "losses": losses}


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Any], classes: int, *, progress: Progress | None = None) -> Predictions:
    """Class probabilities of every slide of `batches`; call it with the model in eval mode. `progress` counts slides.

    `InputError` names the slide where a logit is NaN or infinite.
    """
    device = next(model.parameters()).device
    names: list[str] = []
    labels: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    for batch in batches:
        out = model(batch.images.to(device, non_blocking=True)).double().cpu()
        for name, finite in zip(batch.names, torch.isfinite(out).all(1).tolist(), strict=True):
            if not finite:
                raise InputError(f"slide {name}: the model's output is not finite; look at the slide, or use float32")
        names += batch.names
        labels.append(batch.labels)
        logits.append(out)
        if progress is not None:
            progress.advance(len(batch.names))
    if not names:
        return Predictions((), np.zeros(0, np.int64), np.zeros((0, classes)), math.nan)
    y, z = torch.cat(labels), torch.cat(logits)
    loss = functional.cross_entropy(z, y).item()
    return Predictions(tuple(names), y.numpy(), torch.softmax(z, 1).numpy(), loss)
