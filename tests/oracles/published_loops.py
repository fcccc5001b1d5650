"""HIPT's and MCAT's loops bag by bag, as their papers' code has them: what `comparison.published_rule` must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from longvit.baselines.reference_training import Steps


class Stepper:
    """Takes the losses of bags in turn; steps and clears as `Steps` says."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: Steps) -> None:
        self.optimizer, self.steps, self.waiting = optimizer, steps, 0
        optimizer.zero_grad()

    def add(self, loss: Tensor) -> bool:
        """The loss of a bag, with gradient → whether this was a step."""
        (loss / self.steps.divisor).backward()
        self.waiting += 1
        if self.waiting < self.steps.bags:
            return False
        self._step()
        return True

    def end_epoch(self) -> None:
        """After an epoch's last bag. "carried": the gradient stays, the count of bags begins anew (MCAT's loop)."""
        if self.waiting and self.steps.rest == "stepped":
            self._step()
        elif self.steps.rest == "dropped":
            self.optimizer.zero_grad()
        self.waiting = 0

    def _step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.waiting = 0
