"""LongNet over tile features: the package's encoder with the tiles' coordinates, as in Prov-GigaPath
(`model.gigapath`).

    z = norm(mean of the tiles) (or norm(CLS)) of the slide encoder,     logits = W z + b

The encoder starts at random and is trained with the head. Sizes are those of LongViT-tiny, comparable to the other
systems; Prov-GigaPath's are embed_dim 768, depth 12, ffn_dim 3072, num_heads 16. It returns no attention: the mean
weights all tiles equally, and each layer mixes five patterns. A short segment is short, not padded with zeros.

N tiles, D width of their features, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from longvit.baselines.bag import Bag, Prediction
from longvit.baselines.fusion import Head
from longvit.baselines.system import Shape, System, check_settings
from longvit.errors import InputError
from longvit.model.gigapath import GigaPathConfig, GigaPathSlideEncoder


@dataclass(frozen=True)
class LongNetSettings:
    """Settings of the slide encoder."""

    embed_dim: int = 192
    """Width (LongViT-tiny)."""
    depth: int = 6
    """Layers (LongViT-tiny)."""
    num_heads: int = 8
    """Attention heads (LongViT-tiny)."""
    ffn_dim: int = 768
    """Width of the feed-forward layers (LongViT-tiny)."""
    tile_px: int = 256
    """Side of a tile in level-0 px, the step of the positions (Prov-GigaPath)."""
    pool: Literal["cls", "mean"] = "mean"
    """Pooling to the slide vector (LongViT: mean; Prov-GigaPath: cls)."""

    def __post_init__(self) -> None:
        whole = ("embed_dim", "depth", "num_heads", "ffn_dim", "tile_px")
        check_settings(self, at_least=dict.fromkeys(whole, 1))
        if self.embed_dim % self.num_heads or self.embed_dim % 4:
            raise InputError(f"embed_dim {self.embed_dim}: a multiple of 4 and of the {self.num_heads} heads")


class LongNet(System):
    """LongNet over the tiles of a slide."""

    Settings = LongNetSettings

    def __init__(self, shape: Shape, settings: LongNetSettings) -> None:
        super().__init__(shape)
        self.encoder = GigaPathSlideEncoder(
            GigaPathConfig(
                in_dim=shape.in_dim,
                embed_dim=settings.embed_dim,
                depth=settings.depth,
                num_heads=settings.num_heads,
                ffn_dim=settings.ffn_dim,
                tile_px=settings.tile_px,
                pool=settings.pool,
                ragged="masked",
            )
        )
        self.head = Head(settings.embed_dim, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        encoded = []
        for bag in bags:
            if bag.coords is None:
                raise InputError(f"{bag.name}: no coordinates, which longnet needs; extract features that have them")
            try:
                encoded.append(self.encoder(bag.features.unsqueeze(0), bag.coords.unsqueeze(0)).squeeze(0))
            except ValueError as error:  # coordinates beyond the grid
                raise InputError(f"{bag.name}: {error}") from error
        return encoded

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        return Prediction(self.head(encoded, self.omics(bag)), None)
