"""Input and output of a system: a bag (the tiles of one slide or patient) and a prediction.

N tiles, D width of their features, C outputs, G genes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

TilePixels = Callable[[np.ndarray, int], np.ndarray]
"""Numbers of tiles (n,) and the side P in px -> their pixels, uint8 (n, P, P, 3)."""


@dataclass(frozen=True)
class Bag:
    """One slide, or one patient with all slides concatenated; every tensor on one device."""

    features: Tensor
    """(N, D) float, N ≥ 1; (0, 0) for systems on omics alone; HIPT also takes regions (M, 256, D)."""
    coords: Tensor | None = None
    """(N, 2) int, x and y of each tile's corner in level-0 px of its slide."""
    omics: Tensor | tuple[Tensor, ...] | None = None
    """(G,) float, NaN where not measured; for MCAT one vector for each of six signatures."""
    clusters: Tensor | None = None
    """(N,) int, phenotype of each tile, from `prepare` of DeepAttnMISL."""
    neighbours: Tensor | None = None
    """(N, k) int, neighbours of each tile, −1 for none, from `prepare` of GCN-MIL."""
    slide_tiles: tuple[int, ...] = ()
    """Number of tiles of each slide of a patient, in order; empty: all tiles are of one slide."""
    pixels: TilePixels | None = None
    """Reader of the tiles' pixels, for systems that need them."""
    name: str = "a bag"
    """Name of the slide or patient, for messages."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def slides(self) -> tuple[slice, ...]:
        """Tiles of each slide."""
        sizes = self.slide_tiles or (len(self),)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(slice(end - n, end) for n, end in zip(sizes, ends, strict=True))

    def to(self, device: torch.device | str) -> Bag:
        """The bag on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device)
            elif field.name == "omics" and value is not None:
                moved[field.name] = tuple(v.to(device) for v in value)
        return replace(self, **moved)


@dataclass(frozen=True)
class Prediction:
    """Output of a system for one bag; the training loss is `total(loss of the logits)`."""

    logits: Tensor
    """(C,): of the classes, or of the hazards of the time bins."""
    attention: Tensor | None
    """(N,) scores of the tiles, at least 0, sum 1, without gradient; None where a system has none."""
    loss: Tensor | None = None
    """Scalar added in training: CLAM's instance loss, SNN's L1 norm."""
    bag_weight: float = 1.0
    """Weight of the loss of the logits in the total."""

    def total(self, bag_loss: Tensor) -> Tensor:
        """Training loss of one bag; `bag_loss`: the loss of its logits, a scalar."""
        weighted = self.bag_weight * bag_loss
        return weighted if self.loss is None else weighted + self.loss


def all_tiles(bags: Sequence[Bag]) -> Tensor:
    """Features of all bags, concatenated (T, D); of a single bag without a copy."""
    return bags[0].features if len(bags) == 1 else torch.cat([bag.features for bag in bags])


def packed(layers: Callable[[Tensor], Tensor], bags: Sequence[Bag]) -> list[Tensor]:
    """Applies layers that are independent per tile to the tiles of all bags at once → a tensor (N, …) per bag."""
    return list(layers(all_tiles(bags)).split([len(bag) for bag in bags]))
