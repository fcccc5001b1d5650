"""Random-patch training end to end, after ABMILX (Tang et al. 2025, arXiv 2506.02408): some pixels instead of all.

    training      a random sample of a bag's tiles → convolutional encoder → gated attention → logits;
                  the gradient reaches the encoder
    evaluation    all tiles, some at a time, with the same network

The system reads pixels from the slides, not features. Differences from the paper: the encoder is a small
convolutional network from random weights (there ResNets pretrained on ImageNet), and attention has one head without
the paper's global correlation term.

N tiles, P side of a tile in px, H width of the encoder, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction
from longvit.baselines.fusion import Head
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.system import Shape, System, check_settings
from longvit.errors import InputError

_STAGES = 4


@dataclass(frozen=True)
class PatchSamplingSettings:
    """Settings of the sample, the encoder and the pooling."""

    tiles: int = 64
    """Tiles of a bag in a training step, drawn at random without replacement."""
    tile_px: int = 224
    """Side to which a tile is resampled, in px."""
    chunk: int = 64
    """Tiles that are in memory at the same time in evaluation."""
    width: int = 256
    """H; the stages of the encoder have H/8, H/4, H/2 and H channels."""
    gate: int = 128
    """Width of the attention's gate."""
    dropout: float = 0.25
    """Dropout of the tile vectors and of the gate."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"tiles": 1, "tile_px": 16, "chunk": 1, "width": 8, "gate": 1})
        if self.width % 8:
            raise InputError(f"width {self.width}: a multiple of 8")


class PatchSampling(System):
    """Random-patch training end to end."""

    Settings = PatchSamplingSettings

    def __init__(self, shape: Shape, settings: PatchSamplingSettings) -> None:
        super().__init__(shape)
        self.settings = settings
        self.encoder = tile_encoder(settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.attention = GatedAttention(settings.width, settings.gate, settings.dropout)
        self.head = Head(settings.width, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return [self._sampled(bag) if self.training else self._all(bag) for bag in bags]

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        a, pooled = self.attention.pool(self.dropout(encoded))
        return Prediction(self.head(pooled, self.omics(bag)), None if self.training else a.detach())

    def _sampled(self, bag: Bag) -> Tensor:
        """Vectors (n, H) of a random sample of the tiles, in one random orientation."""
        numbers = torch.randperm(len(bag))[: self.settings.tiles].sort().values
        x = self._pixels(bag, numbers).rot90(int(torch.randint(4, ())), (2, 3))
        if bool(torch.randint(2, ())):
            x = x.flip(3)
        return self.encoder(x)

    def _all(self, bag: Bag) -> Tensor:
        """Vectors (N, H) of all tiles, without gradient."""
        with torch.no_grad():
            return torch.cat(
                [self.encoder(self._pixels(bag, n)) for n in torch.arange(len(bag)).split(self.settings.chunk)]
            )

    def _pixels(self, bag: Bag, numbers: Tensor) -> Tensor:
        """(n, 3, P, P) in the dtype of the parameters, about −1 … 1."""
        if bag.pixels is None:
            raise InputError(f"{bag.name}: no pixels, which patch_sampling reads from the slide")
        like = self.attention.score.weight
        pixels = torch.from_numpy(bag.pixels(numbers.numpy(), self.settings.tile_px)).to(like.device)
        return pixels.permute(0, 3, 1, 2).to(like.dtype).div_(127.5).sub_(1)


def tile_encoder(width: int) -> nn.Sequential:
    """Convolutional encoder: (n, 3, P, P) → (n, width), a sixteenth of the resolution, then the mean."""
    layers: list[nn.Module] = []
    channels = [3, *(width >> shift for shift in range(_STAGES - 1, -1, -1))]
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
