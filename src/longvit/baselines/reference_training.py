"""Training of the published systems, bag by bag, with the quirks of the two reference loops.

Both use Adam with learning rate 2e-4 and weight decay 1e-5 (Adam's own, added to the gradient). They train 20 epochs of
one bag at a time, with a sampler that draws all classes equally often, and seed 1. The last epoch is tested.

    HIPT, subtyping    the loss is divided by 32, but every bag is a step: that scales the gradient, which Adam undoes
                       except for its ε and the weight decay. CLAM's loop does not divide
    MCAT, survival     the loss is divided by 32, every 32nd bag is a step; gradients left at the end of an epoch are
                       neither stepped nor cleared, so they add to the first step of the next epoch
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
    """Accumulation of the gradients of bags into optimiser steps."""

    bags: int = 1
    """Bags per step."""
    divisor: float = 1.0
    """Divisor of the loss of a bag."""
    rest: Literal["carried", "stepped", "dropped"] = "stepped"
    """An epoch's last bags, fewer than `bags`: carried into the next epoch's first step, a separate step, or
    dropped."""

    def __post_init__(self) -> None:
        if self.bags < 1 or not self.divisor > 0:
            raise InputError(f"bags {self.bags}, divisor {self.divisor}: at least 1, and above 0")


@dataclass(frozen=True)
class PublishedTraining:
    """Training settings of the baselines in tables 1 and 2 of LongViT's paper."""

    steps: Steps
    lr: float = 2e-4
    """Learning rate of Adam (HIPT, MCAT)."""
    weight_decay: float = 1e-5
    """Weight decay of Adam, added to the gradient (HIPT, MCAT)."""
    epochs: int = 20
    """Number of epochs; the last is tested (HIPT, MCAT)."""
    seed: int = 1
    """Random seed (HIPT, MCAT)."""
    balanced: bool = True
    """Draw classes equally often, for survival the classes of bin and censoring (HIPT, MCAT)."""


SUBTYPING = PublishedTraining(Steps(bags=1, divisor=32))
SUBTYPING_CLAM = PublishedTraining(Steps(bags=1, divisor=1))
SURVIVAL = PublishedTraining(Steps(bags=32, divisor=32, rest="carried"))


def adam(parameters: Iterable[nn.Parameter], training: PublishedTraining) -> torch.optim.Adam:
    """Adam optimiser of both loops; frozen parameters are left out."""
    trained = [p for p in parameters if p.requires_grad]
    return torch.optim.Adam(trained, lr=training.lr, weight_decay=training.weight_decay)
