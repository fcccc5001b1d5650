"""Training method of HIPT's and MCAT's published loops.

Both use Adam at a constant learning rate, with weight decay added to the gradient. The gradient of a step is the sum
over its bags, divided by the published divisor (`baselines.reference_training`). Our training loop takes the mean over
the bags of a step, so the method multiplies by bags / divisor. This factor is 1 for MCAT's full steps and 1 / 32 for
HIPT's steps of one bag.

An epoch may end with fewer bags than a step takes. These are "stepped" unchanged, "dropped", or "carried" as in MCAT's
loop, which does not clear the gradient. Carried means: no step is made, the gradient is kept in the state of the
optimiser (and in checkpoints) and added to the first step of the next epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from longvit.baselines.reference_training import PublishedTraining, adam
from longvit.errors import InputError

_CARRIED = "carried"


class ReferenceMethod:
    """Training method (`training.method.TrainingMethod`); `bags`: number of bags per epoch."""

    def __init__(self, training: PublishedTraining, bags: int) -> None:
        steps = training.steps
        if bags < steps.bags and steps.rest != "stepped":
            raise InputError(
                f"{bags} training bags are fewer than the {steps.bags} of a step, and incomplete steps are "
                f"{steps.rest}: nothing would be trained; give --bags-per-step {max(1, bags // 4)}, or --rest stepped"
            )
        self.training, self.bags, self.step = training, bags, 0
        self.adam: torch.optim.Optimizer | None = None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = adam(model.parameters(), self.training)
        optimizer.param_groups[0]["names"] = [name for name, p in model.named_parameters() if p.requires_grad]
        self.adam = optimizer
        return optimizer

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Mapping[str, float]:
        self.step = step
        return {"lr": self.training.lr}

    def metrics(self, statistics: Tensor) -> Mapping[str, Tensor]:
        return {}

    def transform_gradients(self, gradients: Sequence[Tensor], norm: float) -> None:
        """Turns the mean into the published sum, and carries or drops an incomplete step; no clipping."""
        assert self.adam is not None
        steps = self.training.steps
        per_epoch = -(-self.bags // steps.bags)
        is_last = self.step % per_epoch == per_epoch - 1
        bags = self.bags - (per_epoch - 1) * steps.bags if is_last else steps.bags
        if bags != steps.divisor:
            torch._foreach_mul_(list(gradients), bags / steps.divisor)
        is_incomplete = bags < steps.bags
        for p in self.adam.param_groups[0]["params"]:
            if p.grad is None:
                continue
            state = self.adam.state[p]
            if is_incomplete and steps.rest != "stepped":
                if steps.rest == "carried":
                    state[_CARRIED] = p.grad.clone()
                p.grad = None  # Adam skips it
            elif (carried := state.pop(_CARRIED, None)) is not None:
                p.grad += carried

    def after_step(self, step: int, statistics: Tensor | None) -> None:
        pass
