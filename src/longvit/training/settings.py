"""The settings of the training loop. Light to import (no torch): the settings of tasks build on them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from longvit.errors import InputError

# What may differ when a run is started again.
_RUNTIME_ONLY = ("checkpoint_minutes", "keep_checkpoints", "max_bad_steps", "tensorboard")
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TrainSettings:
    """What decides the bits of a run, and (the last four) what does not."""

    epochs: int = 10
    """Passes over the training samples."""
    accumulation: int = 1
    """Batches per optimiser step, averaged by sample; an epoch's last step takes the rest."""
    lr: float = 5e-5
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the start of the warm-up and at the end."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up, counted in optimiser steps."""
    weight_decay: float = 0.05
    """AdamW's weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    layer_decay: float = 1.0
    """Each layer's learning rate is this times that of the layer above it; 1 is off."""
    clip_norm: float | None = None
    """Gradients longer than this are shortened to it; None leaves them."""
    dtype: Dtype = "float32"
    """Arithmetic of the model: bfloat16 and float16 are autocast, parameters and optimiser stay float32; float16 (GPUs)
    scales the loss so that small gradients do not vanish."""
    ema: float | None = None
    """Decay of the running average of the parameters (say 0.999), which is then evaluated and kept as the model in
    place of the last parameters; None is off."""
    seed: int = 0
    """Seeds everything random in the model (drop path)."""
    checkpoint_minutes: float = 10.0
    """A checkpoint after this long, beside the one after every epoch."""
    keep_checkpoints: int = 2
    """Older ones are removed."""
    max_bad_steps: int = 3
    """A step with a non-finite loss or gradient is skipped and named; this many in a row end the run."""
    tensorboard: bool = False
    """Also write the figures as TensorBoard event files (needs the extra `tensorboard`)."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("accumulation", 1), ("keep_checkpoints", 1), ("max_bad_steps", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name} {getattr(self, name)}: at least {low}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas {self.betas}: two numbers, each at least 0 and below 1")
        for name in ("lr", "min_lr", "warmup_epochs", "weight_decay", "checkpoint_minutes"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} {getattr(self, name)}: a finite number, at least 0")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm {self.clip_norm}: above 0, or left out")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema {self.ema}: above 0 and below 1, or left out")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"dtype {self.dtype!r}: choose {', '.join(get_args(Dtype))}")

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide the result: a run resumes only with the same."""
        return {k: v for k, v in asdict(self).items() if k not in _RUNTIME_ONLY}
