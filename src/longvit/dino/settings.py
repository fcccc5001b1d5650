"""Defaults of DINO pretraining, each with its source. Light to import (no torch).

"LongViT, table 5": the pretraining settings of arXiv 2312.03558. "DINO's code": the defaults of `main_dino.py` and
`vision_transformer.py` at facebookresearch/dino. The authors of LongViT ran that code with their own model, so settings
missing in their table are taken from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from longvit.errors import InputError


@dataclass(frozen=True)
class DinoSettings:
    """Settings of the mathematics of a run; the settings of the crops and their augmentation are elsewhere."""

    epochs: int = 100
    """Passes over the regions (LongViT, table 5; DINO's code: 100)."""
    lr: float = 2e-3
    """Peak learning rate at a batch of `lr_batch` regions (LongViT, table 5; DINO's code: 5e-4 per 256, the same)."""
    lr_batch: int = 1024
    """Batch for which `lr` holds; another batch has lr · batch / lr_batch (LongViT, table 5; the rule: DINO's code)."""
    min_lr: float = 1e-6
    """Learning rate at the end; not scaled with the batch (DINO's code)."""
    warmup_epochs: float = 10
    """Epochs of linear warm-up from 0 (LongViT, table 5; DINO's code: 10)."""
    weight_decay: float = 0.04
    """Weight decay at the start, on matrices only (LongViT, table 5; DINO's code)."""
    weight_decay_end: float = 0.4
    """Weight decay at the end of its cosine (LongViT, table 5; DINO's code)."""
    teacher_momentum: float = 0.996
    """Decay of the teacher's EMA at the start; 1 at the end of its cosine (LongViT, table 5; DINO's code). DINO advises
    a higher one for small batches, 0.9995 at 256."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax (DINO's code)."""
    warmup_teacher_temperature: float = 0.04
    """Teacher's temperature in the first epoch (DINO's code)."""
    teacher_temperature: float = 0.04
    """Teacher's temperature after its warm-up (DINO's code; its long runs end at 0.07)."""
    warmup_teacher_temperature_epochs: int = 0
    """Epochs from the first temperature to the last, linear (DINO's code; 30 in its long runs)."""
    center_momentum: float = 0.9
    """Decay of the EMA of the teacher's outputs (DINO's code)."""
    freeze_last_layer_epochs: int = 1
    """Epochs in which the last layer of the head keeps its weights (LongViT, table 5; DINO's code)."""
    clip_norm: float = 3.0
    """Longest gradient; longer ones are scaled down (DINO's code, per parameter)."""
    drop_path: float = 0.1
    """Drop path of the student's last layer, drawn for every crop (LongViT, table 5; DINO's code); the teacher has
    none."""
    prototypes: int = 65_536
    """Outputs of the head (LongViT, section 2; DINO's code)."""
    head_layers: int = 3
    """Linear layers of the head before the last one (DINO's code)."""
    head_hidden: int = 2048
    """Hidden width of the head (DINO's code)."""
    head_bottleneck: int = 256
    """Width of the normalised vector before the last layer (DINO's code)."""
    global_crops: int = 2
    """Crops that the teacher also receives, the first of each region's (DINO's code)."""
    local_crops: int = 8
    """Small crops that only the student receives (DINO's code)."""

    def __post_init__(self) -> None:
        whole = {
            "epochs": 1,
            "lr_batch": 1,
            "prototypes": 2,
            "head_layers": 1,
            "head_hidden": 1,
            "head_bottleneck": 1,
            "global_crops": 1,
            "local_crops": 0,
            "warmup_teacher_temperature_epochs": 0,
            "freeze_last_layer_epochs": 0,
        }
        for name, low in whole.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} {getattr(self, name)}: at least {low}")
        for name in ("lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} {getattr(self, name)}: a finite number, at least 0")
        for name in ("student_temperature", "warmup_teacher_temperature", "teacher_temperature", "clip_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} {getattr(self, name)}: a finite number above 0")
        for name, high in (("teacher_momentum", 1.0), ("center_momentum", 1.0), ("drop_path", 0.999)):
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name} {getattr(self, name)}: between 0 and {high:g}")
        for name in ("warmup_epochs", "warmup_teacher_temperature_epochs"):
            if getattr(self, name) > self.epochs:
                raise InputError(f"{name} {getattr(self, name)}: at most the {self.epochs} epochs of the run")
        if self.global_crops + self.local_crops < 2:
            raise InputError(
                "global_crops 1, local_crops 0: the loss compares two different crops; at least 2 are needed"
            )
