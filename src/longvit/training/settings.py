"""Settings of the training loop, and the settings of every run that do not decide its result.

Light to import (no torch): the settings of fine-tuning, pretraining and comparisons inherit from these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from longvit.annotations.settings import AnnotationSettings
from longvit.errors import InputError

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Settings that do not decide a result and may differ when a run resumes.

    A class of settings names a subclass of this one first among its bases, then the classes whose fields decide the
    result. Its own fields are runtime settings too.
    """

    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; one more is written after every epoch."""

    def result_settings(self) -> dict[str, Any]:
        """Settings that decide the result, as JSON values: every field that no class of runtime settings declares.

        Annotations are not among them: their content decides, which a run stores as a hash.
        """
        others = (RuntimeSettings, AnnotationSettings)
        kinds = [kind for kind in type(self).__mro__ if is_dataclass(kind) and not issubclass(kind, others)]
        names = {field.name for kind in kinds for field in fields(kind)}
        return {field.name: _json_value(getattr(self, field.name)) for field in fields(self) if field.name in names}


@dataclass(frozen=True, kw_only=True)
class LoopRuntime(RuntimeSettings):
    """Runtime settings of the training loop."""

    max_bad_steps: int = 3
    """Number of consecutive steps with a NaN or an infinity that end the run; each is skipped and logged."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra tensorboard)."""


@dataclass(frozen=True, kw_only=True)
class DeviceRuntime(RuntimeSettings):
    """Runtime settings of the device."""

    device: str = "auto"
    """Device: auto (the first available of cuda, mps, cpu), cpu, cuda, cuda:1 or mps."""
    threads: int | None = None
    """CPU threads; default: one per core."""


@dataclass(frozen=True, kw_only=True)
class TrainingRuntime(LoopRuntime, DeviceRuntime):
    """Runtime settings of a training that reads slides, on one device or on several ranks."""

    num_workers: int = 2
    """Workers that read slides ahead; 0 reads in the training process."""
    cache_dir: Path | None = None
    """Folder of the cached pixels; runs may share it."""
    sequence_ranks: int = 1
    """Under torchrun: the number of ranks that share the patches of each image; the other ranks take other images."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of the training loop: they decide the bits of a run."""

    epochs: int = 10
    """Passes over the training samples."""
    accumulation: int = 1
    """Batches per optimiser step, averaged by sample; an epoch's last step takes the remaining ones."""
    lr: float = 5e-5
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the start of the warm-up and at the end."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up, counted in optimiser steps."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    layer_decay: float = 1.0
    """Ratio of each layer's learning rate to that of the layer above it; 1 is off."""
    clip_norm: float | None = None
    """Longest gradient norm: longer gradients are scaled to it; None is off."""
    dtype: Dtype = "float32"
    """Arithmetic of the model. bfloat16 and float16 are autocast; parameters and optimiser stay float32. float16 (GPUs)
    scales the loss so that small gradients do not vanish."""
    ema: float | None = None
    """Decay of the EMA of the parameters (say 0.999); None is off. The EMA is evaluated and kept as the model in place
    of the last parameters."""
    seed: int = 0
    """Seed of everything random in the model (drop path)."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LoopRuntime, Hyperparameters):
    """Settings of the training loop: hyperparameters, and runtime settings that may change on resume."""

    keep_checkpoints: int = 2
    """Number of checkpoints kept; older ones are removed."""

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


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value
