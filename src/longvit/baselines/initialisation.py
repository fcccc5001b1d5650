"""How the published systems start: PyTorch's own way, Xavier-normal, or SNN's."""

from __future__ import annotations

from torch import nn


def xavier_normal(module: nn.Module) -> None:
    """Weights N(0, 2 / (fan_in + fan_out)), biases 0 (MIL, CLAM): for `module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


def self_normalising(module: nn.Module) -> None:
    """Weights N(0, 1 / fan_in), biases 0 (Klambauer et al. 2017; SNN): for `module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)
