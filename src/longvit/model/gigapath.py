"""Prov-GigaPath's slide encoder (Xu et al. 2024): the same LongNet encoder on tile features and coordinates.

Tile features are projected linearly, and a fixed sine-cosine position of their tile is added (column and row on a grid
of 256-px tiles at level 0). A CLS token precedes them. The result is LayerNorm(CLS), or LayerNorm(mean of the tiles).
The weights were trained with zero-padded segments, so `ragged="padded"` is the default.

Differences from the authors' code: positions are computed from the coordinates (theirs is a table of 1,000² × 768
elements), and a length is never padded in memory.

B slides, N tiles, I tile feature width, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from longvit.attention.pattern import DilatedPattern
from longvit.config import check_bounds
from longvit.model import longvit
from longvit.model.encoder import Encoder, init_weights

BOUNDS = {
    **{name: longvit.BOUNDS[name] for name in ("embed_dim", "depth", "num_heads", "ffn_dim")},
    **{name: longvit.BOUNDS[name] for name in ("dilated_ratios", "segment_lengths")},
    "in_dim": (1, 65_536),
    "tile_px": (1, 65_536),
    "grid_tiles": (1, 2**20),
    "max_slide_px": (1, 2**31),
}


@dataclass(frozen=True)
class GigaPathConfig:
    """Configuration of a slide encoder.

    Attributes:
        in_dim: width of the tile features.
        tile_px: side of a tile in level-0 px.
        grid_tiles: tiles per side of the position grid.
        max_slide_px: the largest slide side, from which the published code derives its segments.
        ragged: "padded" for published weights, which were trained with it.
    """

    in_dim: int = 1536
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 16
    ffn_dim: int = 3072
    tile_px: int = 256
    grid_tiles: int = 1000
    max_slide_px: int = 262_144
    dilated_ratios: tuple[int, ...] = (1, 2, 4, 8, 16)
    segment_lengths: tuple[int, ...] | Literal["auto"] = "auto"
    pool: Literal["cls", "mean"] = "cls"
    ragged: Literal["masked", "padded"] = "padded"

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)
        if self.embed_dim % self.num_heads or self.embed_dim % 4:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads} and of 4")
        if self.segment_lengths == "auto":
            if len(self.dilated_ratios) < 2 or self.max_slide_px < self.tile_px:
                raise ValueError(
                    "segment_lengths 'auto' takes two dilated ratios at least, and slides of a tile at least"
                )
        elif len(self.segment_lengths) != len(self.dilated_ratios):
            raise ValueError(
                f"{len(self.segment_lengths)} segment lengths for {len(self.dilated_ratios)} dilated ratios"
            )

    def pattern(self) -> DilatedPattern:
        """Five segment lengths, evenly spaced in log from 1,024 to all tiles of the largest slide."""
        if self.segment_lengths != "auto":
            return DilatedPattern(self.segment_lengths, self.dilated_ratios, ragged=self.ragged)
        low, high = 10.0, math.log2((self.max_slide_px // self.tile_px) ** 2)
        count = len(self.dilated_ratios)
        segments = (int(2 ** (low + (high - low) * i / (count - 1))) for i in range(count))
        return DilatedPattern(tuple(segments), self.dilated_ratios, ragged=self.ragged)


def sine_cosine_positions(columns: Tensor, rows: Tensor, dim: int) -> Tensor:
    """(…,) column and row numbers → (…, dim): sin and cos of the second, then of the first, each dim / 2 wide.

    As in MAE: frequencies 10,000^(−i / (dim / 4)), all sines before all cosines. The order (row part = number of the
    y tile first) is that of Prov-GigaPath's flat index x · grid + y.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides, got {dim}")
    frequency = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64, device=columns.device) / (dim / 4))
    parts = []
    for number in (rows, columns):
        angle = number.to(torch.float64).unsqueeze(-1) * frequency
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, -1)


class GigaPathSlideEncoder(nn.Module):
    """features (B, N, I), coords (B, N, 2) level-0 px (x, y) → embedding (B, D)."""

    def __init__(self, config: GigaPathConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Linear(config.in_dim, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.blocks = Encoder(config.depth, config.embed_dim, config.num_heads, config.ffn_dim)
        self.encoder_norm = nn.LayerNorm(config.embed_dim, eps=1e-5)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_weights)

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        """The slide's embedding (B, D)."""
        return self._pool(self.encoder_norm(self.blocks(self._tokens(features, coords), self.config.pattern())))

    def all_layers(self, features: Tensor, coords: Tensor) -> list[Tensor]:
        """depth + 1 embeddings (B, D): of the input tokens, then after every layer, without the encoder's last norm."""
        layers = self.blocks.get_intermediate_layers(self._tokens(features, coords), self.config.pattern())
        return [self._pool(x) for x in layers]

    def _tokens(self, features: Tensor, coords: Tensor) -> Tensor:
        c = self.config
        if features.ndim != 3 or coords.shape != (*features.shape[:2], 2) or features.shape[-1] != c.in_dim:
            raise ValueError(
                f"features must be (B, N, {c.in_dim}) and coords (B, N, 2), got {tuple(features.shape)} and "
                f"{tuple(coords.shape)}"
            )
        tiles = torch.div(coords, c.tile_px, rounding_mode="floor")
        if tiles.numel() and (tiles.min() < 0 or tiles.max() >= c.grid_tiles):
            raise ValueError(
                f"coords reach tile {int(tiles.max())} of a grid of {c.grid_tiles}: they must be level-0 px, 0 … "
                f"{c.grid_tiles * c.tile_px - 1}"
            )
        x = self.patch_embed(features)
        x = x + sine_cosine_positions(tiles[..., 0], tiles[..., 1], c.embed_dim).to(x.dtype)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)

    def _pool(self, x: Tensor) -> Tensor:
        if self.config.pool == "mean":
            return self.norm(x[:, 1:].mean(1))
        return self.norm(x[:, 0])
