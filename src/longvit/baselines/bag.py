"""A bag, what a system is given: the tiles of one slide or patient; and a prediction, what it gives back.

N tiles, D width of their features, C outputs, G genes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bag:
    """One slide, or one patient with all slides behind each other; every tensor on one device."""

    features: Tensor
    """(N, D) float, N ≥ 1; (0, 0) for systems of omics alone; HIPT also takes regions (M, 256, D)."""
    coords: Tensor | None = None
    """(N, 2) int, x and y of each tile's corner in level-0 px of its slide."""
    omics: Tensor | tuple[Tensor, ...] | None = None
    """(G,) float, NaN where not measured; for MCAT a vector for each of its six signatures."""
    clusters: Tensor | None = None
    """(N,) int, the phenotype of each tile: `prepare` of DeepAttnMISL."""
    neighbours: Tensor | None = None
    """(N, k) int, the tiles next to each tile, −1 for none: `prepare` of GCN-MIL."""
    slide_tiles: tuple[int, ...] = ()
    """How many tiles each slide of a patient has, in order; empty: all are of one slide."""
    name: str = "a bag"
    """Who it is, for messages."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def slides(self) -> tuple[slice, ...]:
        """The tiles of each slide."""
        sizes = self.slide_tiles or (len(self),)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(slice(end - n, end) for n, end in zip(sizes, ends, strict=True))

    def to(self, device: torch.device | str) -> Bag:
        """The same on another device."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                found[field.name] = value.to(device)
            elif field.name == "omics" and value is not None:
                found[field.name] = tuple(v.to(device) for v in value)
        return replace(self, **found)


@dataclass(frozen=True)
class Prediction:
    """What a system says of one bag; the loss to train on is `total(loss of the logits)`."""

    logits: Tensor
    """(C,): of the classes, or of the hazards of the bins of time."""
    attention: Tensor | None
    """(N,) scores of the tiles, at least 0, sum 1, without gradient; None where a system has none."""
    loss: Tensor | None = None
    """A scalar that training adds: CLAM's loss of instances, the L1 norm of SNN."""
    bag_weight: float = 1.0
    """Weight of the loss of the logits beside it."""

    def total(self, bag_loss: Tensor) -> Tensor:
        """What one bag adds to training; `bag_loss`: the loss of its logits, a scalar."""
        weighted = self.bag_weight * bag_loss
        return weighted if self.loss is None else weighted + self.loss


def all_tiles(bags: Sequence[Bag]) -> Tensor:
    """The features of all bags behind each other (T, D); of one bag itself, uncopied."""
    return bags[0].features if len(bags) == 1 else torch.cat([bag.features for bag in bags])


def packed(layers: Callable[[Tensor], Tensor], bags: Sequence[Bag]) -> list[Tensor]:
    """Layers that see each tile alone, on the tiles of all bags at once → a tensor (N, …) per bag."""
    return list(layers(all_tiles(bags)).split([len(bag) for bag in bags]))
