"""How the parameters move: the part of a run that is the method's (fine-tuning, DINO), not the loop's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from longvit.training.optim import adamw, learning_rate, set_learning_rate
from longvit.training.settings import TrainSettings


class TrainingMethod(Protocol):
    """What the loop asks at every optimiser step (0 …), in this order; `begin` and `moved` on all ranks alike."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Once, before the first step. Its groups hold `params` and their `names`."""

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Mapping[str, float]:
        """Before the forward passes: sets the rates; → figures for the history, `lr` among them."""

    def metrics(self, statistics: Tensor) -> Mapping[str, Tensor]:
        """Scalars for the history from the mean over the step's samples of what `step` returned as `statistics`."""

    def transform_gradients(self, gradients: Sequence[Tensor], norm: float) -> None:
        """Shortens the averaged, finite gradients in place; `norm`: the length of all of them together."""

    def after_step(self, step: int, statistics: Tensor | None) -> None:
        """After the optimiser has moved the parameters; not after a step that was skipped."""


class FineTuning:
    """The paper's table 6: AdamW, linear warm-up and cosine, gradients shortened as one vector where asked for."""

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
