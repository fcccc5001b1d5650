"""DINO's four schedules (Caron et al. 2021, section "Implementation details"), each a function of the step alone.

With S optimiser steps in total, W of them warm-up, s = 0 … S − 1:

    cosine(s; a → b) = b + (a − b) (1 + cos(π s / S)) / 2
    lr(s)            = lr s / (W − 1)                                                     s < W (0 at the first step)
                     = min_lr + (lr − min_lr) (1 + cos(π (s − W) / (S − W))) / 2          W ≤ s
    weight decay     = cosine(s; 0.04 → 0.4),      teacher's momentum = cosine(s; 0.996 → 1)
    teacher's temperature: linear over the first E epochs, both ends included, constant within an epoch

These equal the arrays of the authors' code, entry by entry; lr is scaled with the batch. Beyond the last step each
keeps its limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from longvit.dino.settings import DinoSettings


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Cosine from `start` at step 0 to `end` at step `steps`."""
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))) if steps > 0 else 0.0
    return left * start + (1 - left) * end  # both ends to the last bit


@dataclass(frozen=True)
class Schedules:
    """Values of optimiser step `step` (0 …). batch: regions of one step, over all ranks and accumulated batches."""

    settings: DinoSettings
    steps_per_epoch: int
    batch: int

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the run."""
        return self.settings.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        return round(self.settings.warmup_epochs * self.steps_per_epoch)

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up, linear in the batch."""
        return self.settings.lr * self.batch / self.settings.lr_batch

    def lr(self, step: int) -> float:
        warmup = self.warmup_steps
        if step < warmup:
            return self.peak_lr * step / max(1, warmup - 1)
        return cosine(step - warmup, self.steps - warmup, self.peak_lr, self.settings.min_lr)

    def weight_decay(self, step: int) -> float:
        return cosine(step, self.steps, self.settings.weight_decay, self.settings.weight_decay_end)

    def teacher_momentum(self, step: int) -> float:
        return cosine(step, self.steps, self.settings.teacher_momentum, 1.0)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def teacher_temperature(self, step: int) -> float:
        s, epoch = self.settings, self.epoch(step)
        if epoch >= s.warmup_teacher_temperature_epochs:
            return s.teacher_temperature
        progress = epoch / max(1, s.warmup_teacher_temperature_epochs - 1)
        return s.warmup_teacher_temperature + (s.teacher_temperature - s.warmup_teacher_temperature) * progress

    def last_layer_is_frozen(self, step: int) -> bool:
        return self.epoch(step) < self.settings.freeze_last_layer_epochs
