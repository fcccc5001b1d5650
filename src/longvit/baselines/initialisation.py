"""Initial weights of the published systems, for `module.apply`: Xavier-normal and SNN's."""

from __future__ import annotations

from torch import nn


def xavier_normal(module: nn.Module) -> None:
    """Draws weights N(0, 2 / (fan_in + fan_out)) and sets biases to 0 (MIL, CLAM)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


def self_normalising(module: nn.Module) -> None:
    """Draws weights N(0, 1 / fan_in) and sets biases to 0 (Klambauer et al. 2017; SNN)."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
