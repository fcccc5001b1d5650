"""The exponential moving average of the parameters (EMA; Polyak and Juditsky 1992 in its running form).

    average(s) = d average(s - 1) + (1 - d) parameters(s),   d = min(decay, (1 + s) / (10 + s)),   s = 1, 2, …

The rising d lets a short run forget its random start: with a decay of 0.9999 alone, 800 steps would keep 92 % of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class ParameterAverage:
    """The running average of every parameter that is trained; frozen ones and buffers have none."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in trained]
        self.tensors = {name: p.detach().clone() for name, p in trained}
        """Name -> average; the model's own parameters while they are exchanged."""

    def update(self, step: int) -> None:
        """Takes in the parameters after optimiser step `step` (1 …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = list(self.tensors.values())
        torch._foreach_lerp_(averages, [p.detach() for p in self._parameters], 1 - decay)

    def exchange(self) -> None:
        """The model gets the averages, `tensors` its parameters; a second call puts them back. Copies nothing."""
        for name, p in zip(self.tensors, self._parameters, strict=True):
            p.data, self.tensors[name] = self.tensors[name], p.data

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """The model computes with the averages in here."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()
