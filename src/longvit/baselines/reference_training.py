"""How the published systems were trained, bag by bag, with the quirks of the two loops.

Both: Adam, learning rate 2e-4, weight decay 1e-5 (Adam's own, added to the gradient), 20 epochs of one bag at a time,
a sampler that draws each class as often as the others, seed 1, the last epoch is tested.

    HIPT, subtyping    the loss is divided by 32, but every bag is a step: that scales the gradient, which Adam undoes
                       but for its ε and the weight decay. CLAM's loop divides by nothing
    MCAT, survival     the loss is divided by 32, every 32nd bag is a step; what is left at the end of an epoch is
                       neither stepped nor cleared, so that it goes into the first step of the next
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from longvit.errors import InputError


@dataclass(frozen=True)
class Steps:
    """How the gradients of bags become steps of the optimiser."""

    bags: int = 1
    """Bags for each step."""
    divisor: float = 1.0
    """The loss of a bag is divided by it."""
    rest: Literal["carried", "stepped", "dropped"] = "stepped"
    """An epoch's last bags, fewer than `bags`: kept for the next epoch's first step, a step of their own, cleared."""

    def __post_init__(self) -> None:
        if self.bags < 1 or not self.divisor > 0:
            raise InputError(f"bags {self.bags}, divisor {self.divisor}: at least 1, and above 0")


@dataclass(frozen=True)
class PublishedTraining:
    """A recipe of tables 1 and 2 of LongViT's paper, for its baselines."""

    steps: Steps
    lr: float = 2e-4
    """Adam's (HIPT, MCAT)."""
    weight_decay: float = 1e-5
    """Adam's, added to the gradient (HIPT, MCAT)."""
    epochs: int = 20
    """The last is tested (HIPT, MCAT)."""
    seed: int = 1
    """(HIPT, MCAT.)"""
    balanced: bool = True
    """Draw classes equally often, for survival the classes of bin and censoring (HIPT, MCAT)."""


SUBTYPING = PublishedTraining(Steps(bags=1, divisor=32))
SUBTYPING_CLAM = PublishedTraining(Steps(bags=1, divisor=1))
SURVIVAL = PublishedTraining(Steps(bags=32, divisor=32, rest="carried"))


def adam(parameters: Iterable[nn.Parameter], training: PublishedTraining) -> torch.optim.Adam:
    """The optimiser of both; parameters that are frozen are left out."""
    trained = [p for p in parameters if p.requires_grad]
    return torch.optim.Adam(trained, lr=training.lr, weight_decay=training.weight_decay)
