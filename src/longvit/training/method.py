"""Training method: optimiser, schedule, gradient transform and post-step update (fine-tuning here, DINO above)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from longvit.training.optim import adamw, learning_rate, set_learning_rate
from longvit.training.settings import TrainSettings


class TrainingMethod(Protocol):
    """Method-specific part of a training step. The loop calls these hooks in this order, on all ranks alike."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Optimiser of the run, made before the first step. Its groups hold `params` and their `names`."""

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Mapping[str, float]:
        """Sets the rates of optimiser step `step` (0 …) before its forward passes; returns them for the history."""

    def metrics(self, statistics: Tensor) -> Mapping[str, Tensor]:
        """Scalars for the history from `statistics`, the mean over the samples of the optimiser step."""

    def transform_gradients(self, gradients: Sequence[Tensor], norm: float) -> None:
        """Transforms the averaged, finite gradients in place (clipping); `norm`: the norm of all of them together."""

    def after_step(self, step: int, statistics: Tensor | None) -> None:
        """Update after the optimiser's step; not called after a skipped step."""


class FineTuning:
    """Fine-tuning method (the paper's table 6): AdamW, linear warm-up and cosine, optional clipping."""

    def __init__(self, settings: TrainSettings, steps_per_epoch: int) -> None:
        self.settings, self.steps_per_epoch = settings, steps_per_epoch

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        s = self.settings
        return adamw(model, lr=s.lr, weight_decay=s.weight_decay, betas=s.betas, layer_decay=s.layer_decay)

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Mapping[str, float]:
        s = self.settings
        lr = learning_rate(
            step,
            lr=s.lr,
            min_lr=s.min_lr,
            warmup_steps=round(s.warmup_epochs * self.steps_per_epoch),
            steps=self.steps_per_epoch * s.epochs,
        )
        set_learning_rate(optimizer, lr)
        return {"lr": lr}

    def metrics(self, statistics: Tensor) -> Mapping[str, Tensor]:
        return {}

    def transform_gradients(self, gradients: Sequence[Tensor], norm: float) -> None:
        if (longest := self.settings.clip_norm) is not None and norm > longest:
            torch._foreach_mul_(list(gradients), longest / (norm + 1e-6))

    def after_step(self, step: int, statistics: Tensor | None) -> None:
        pass
