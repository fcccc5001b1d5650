"""SNN: omics alone, through self-normalising layers (Klambauer et al. 2017; as in Pathomic Fusion and MCAT).

    block(x) = alpha_dropout(elu(W x + b))           logits = W block(… block(x)) + b

Weights start as N(0, 1 / fan_in), biases at 0. The sum of the absolute values of all parameters, times 1e-4, is added
to the loss of every patient. MCAT's loop divides the losses of the 32 patients of a step by 32, but not that term. So
it adds 32e-4 times the sum to a step's mean loss, which is the default here. As in MCAT, ELU replaces the SELU of the
paper on self-normalisation.

G genes, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction
from longvit.baselines.initialisation import self_normalising
from longvit.baselines.system import Shape, System, check_settings
from longvit.errors import InputError


def snn_layers(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Blocks (…, widths[0]) → (…, widths[-1])."""
    blocks = [
        nn.Sequential(nn.Linear(i, o), nn.ELU(), nn.AlphaDropout(dropout, inplace=False)) for i, o in pairwise(widths)
    ]
    return nn.Sequential(*blocks)


@dataclass(frozen=True)
class SnnSettings:
    """Settings of MCAT's SNN."""

    hidden: int = 256
    """Width of every block (MCAT)."""
    blocks: int = 4
    """Number of blocks (MCAT)."""
    dropout: float = 0.25
    """Alpha dropout (MCAT)."""
    l1: float = 32e-4
    """Weight of the L1 norm of all parameters in a step, relative to the mean loss (MCAT: 1e-4, undivided, 32
    times)."""
    init: Literal["snn", "pytorch"] = "snn"
    """Initial weights: N(0, 1 / fan_in) with biases 0 (MCAT), or PyTorch's default."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"hidden": 1, "blocks": 1, "l1": 0})


class Snn(System):
    """SNN: one omic vector → logits; no tiles, no attention."""

    Settings = SnnSettings
    reads_tiles: ClassVar[bool] = False

    def __init__(self, shape: Shape, settings: SnnSettings) -> None:
        super().__init__(shape)
        assert isinstance(shape.omics, int)
        self.settings = settings
        self.blocks = snn_layers([shape.omics] + [settings.hidden] * settings.blocks, settings.dropout)
        self.classifier = nn.Linear(settings.hidden, shape.outputs)
        if settings.init == "snn":
            self.apply(self_normalising)

    @classmethod
    def check_shape(cls, shape: Shape) -> None:
        if not isinstance(shape.omics, int) or shape.fusion is not None:
            raise InputError(f"omics {shape.omics}, fusion {shape.fusion}: snn needs one omic vector and no fusion")

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        logits = self.classifier(self.blocks(torch.stack([self.omics(bag)[0] for bag in bags])))
        loss = None
        if self.training and self.settings.l1:
            loss = self.settings.l1 * torch.stack([p.abs().sum() for p in self.parameters()]).sum()
        return [(bag_logits, loss) for bag_logits in logits]

    def pool(self, encoded: tuple[Tensor, Tensor | None], bag: Bag, label: Tensor | None) -> Prediction:
        logits, loss = encoded
        return Prediction(logits, None, loss)
