"""How the parameters move in HIPT's and MCAT's loops, as a rule of our one training loop.

Both use Adam at a constant rate, its weight decay added to the gradient. The gradient of a step is the sum over its
bags, divided by the published divisor (`baselines.published_training`). The loop itself takes the mean over the bags of
a step, so here it is multiplied by bags / divisor: 1 for MCAT's full steps, 1 / 32 for HIPT's steps of one bag.

What is left at the end of an epoch, fewer bags than a step takes: "stepped" as it is, "dropped", or "carried" as in
MCAT's loop, where nothing clears it: then no step is made, the gradient is kept with the state of the optimiser (so it
stands in checkpoints) and added to the first step of the next epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from longvit.baselines.reference_training import PublishedTraining, adam
from longvit.errors import InputError

_CARRIED = "carried"


class ReferenceMethod:
    """`training.rule.Rule`; `bags`: those of an epoch."""

    def __init__(self, training: PublishedTraining, bags: int) -> None:
        steps = training.steps
        if bags < steps.bags and steps.rest != "stepped":
            raise InputError(
                f"{bags} training bags are fewer than the {steps.bags} of a step, and what is left of an epoch is "
                f"{steps.rest}: nothing would be trained; give --bags-per-step {max(1, bags // 4)}, or --rest stepped"
            )
        self.training, self.bags, self.step = training, bags, 0
        self.moved_by: torch.optim.Optimizer | None = None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        found = adam(model.parameters(), self.training)
        found.param_groups[0]["names"] = [name for name, p in model.named_parameters() if p.requires_grad]
        self.moved_by = found
        return found

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Mapping[str, float]:
        self.step = step
        return {"lr": self.training.lr}

    def metrics(self, statistics: Tensor) -> Mapping[str, Tensor]:
        return {}

    def transform_gradients(self, gradients: Sequence[Tensor], norm: float) -> None:
        """Nothing is shortened; here the mean becomes the published sum, and a rest is carried or dropped."""
        assert self.moved_by is not None
        steps = self.training.steps
        per_epoch = -(-self.bags // steps.bags)
        is_last = self.step % per_epoch == per_epoch - 1
        bags = self.bags - (per_epoch - 1) * steps.bags if is_last else steps.bags
        if bags != steps.divisor:
            torch._foreach_mul_(list(gradients), bags / steps.divisor)
        is_rest = bags < steps.bags
        for p in self.moved_by.param_groups[0]["params"]:
            if p.grad is None:
                continue
            state = self.moved_by.state[p]
            if is_rest and steps.rest != "stepped":
                if steps.rest == "carried":
                    state[_CARRIED] = p.grad.clone()
                p.grad = None  # Adam passes over it
            elif (carried := state.pop(_CARRIED, None)) is not None:
                p.grad += carried

    def after_step(self, step: int, statistics: Tensor | None) -> None:
        pass
