"""Slide level of HIPT (Chen et al. 2022, "Scaling vision transformers to gigapixel images", section 3) over its
regions.

    r_m = ViT-4096(16 × 16 tile features of region m)                         192 wide; `hipt_vits`
    h_m = dropout(relu(W r_m + b)),   2 layers of transformer encoder,   a gated attention over the regions
    logits = W ρ(Σ_m a_m h_m) + b

The transformer is post-norm: 3 heads, 192 wide within, ReLU, dropout .25, without positions. In the paper's tables
ViT-256 and ViT-4096 are published, frozen weights. There the features are those of ViT-256, `region_checkpoint` is
`vit4k_xs_dino.pth`, and only the slide level is trained. Without a checkpoint ViT-4096 starts at random and is trained
too, for features of any width.

A bag is one of three kinds. Tile features (N, D) with coordinates are laid out on a grid of regions of 16 × 16 tiles. A
missing tile is masked; in the authors' code every region has all of its 256 tiles. Regions (M, 256, D) are taken as
HIPT stores them. With `level="region"` the features are of regions (M, 192).

Attention: a_m, split equally over the tiles of region m; of the regions where the bag has no separate tiles.

M regions, N tiles, D width of their features, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction
from longvit.baselines.fusion import Head
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.hipt_vits import Vit4096, load_vit4096
from longvit.baselines.system import Shape, System, check_settings, hidden_layer
from longvit.errors import InputError

_WIDTH = 192
_SIDE = 16  # tiles per side of a region
_CHUNK_REGIONS = 64


@dataclass(frozen=True)
class HiptSettings:
    """Settings of HIPT_LGP_FC."""

    level: Literal["tile", "region"] = "tile"
    """Kind of features: of tiles of 256 px, or of regions of 4,096 px."""
    region_checkpoint: str = ""
    """Weights of ViT-4096, `vit4k_xs_dino.pth`, which are then frozen (HIPT). Empty: random weights that are
    trained."""
    tile_px: int | None = None
    """Side of a tile in level-0 px; by default the smallest distance of two tiles along an axis."""
    layers: int = 2
    """Layers of the slide's transformer (HIPT)."""
    heads: int = 3
    """Heads of the slide's transformer (HIPT)."""
    dropout: float = 0.25
    """Dropout of the slide level (HIPT)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"layers": 1, "heads": 1, "tile_px": 1})
        if _WIDTH % self.heads:
            raise InputError(f"heads {self.heads}: a divisor of {_WIDTH}")
        if self.level == "region" and self.region_checkpoint:
            raise InputError(f"region_checkpoint {self.region_checkpoint}: features of regions need no ViT-4096")


@dataclass(frozen=True)
class Regions:
    """Grid positions of the tiles of a bag. count: M; region, cell: (N,) of each tile, 0 … M − 1 and 0 … 255."""

    count: int
    region: Tensor
    cell: Tensor


def regions_of(bag: Bag, tile_px: int | None) -> Regions:
    """Regions of a bag. The grid of each slide begins at its first column and row of tiles; only regions with tiles
    count.

    Raises InputError for missing coordinates and for two tiles in one cell.
    """
    if bag.coords is None:
        raise InputError(f"{bag.name}: no coordinates, which hipt needs for its regions; or give regions (M, 256, D)")
    keys = []
    for number, s in enumerate(bag.slides):
        xy = bag.coords[s].long()
        step = tile_px or _smallest_step(xy)
        columns, rows = torch.div(xy - xy.amin(0), step, rounding_mode="floor").unbind(1)
        position = torch.stack([rows // _SIDE, columns // _SIDE, rows % _SIDE * _SIDE + columns % _SIDE], 1)
        keys.append(torch.cat([torch.full_like(position[:, :1], number), position], 1))
    key = torch.cat(keys)  # slide, row and column of the region, cell
    if len(key.unique(dim=0)) < len(key):
        raise InputError(
            f"{bag.name}: {len(key) - len(key.unique(dim=0))} tiles share a cell of the grid; give tile_px, the side "
            "of a tile in level-0 px, or extract tiles without overlap"
        )
    unique_regions, region = key[:, :3].unique(dim=0, return_inverse=True)
    return Regions(len(unique_regions), region, key[:, 3])


def _smallest_step(xy: Tensor) -> int:
    """xy (N, 2): the smallest nonzero distance along x or y; 1 for a single tile."""
    steps = torch.cat([xy[:, axis].unique().diff() for axis in range(2)])
    return int(steps.min()) if len(steps) else 1


class Hipt(System):
    """HIPT: ViT-4096 per region, then a transformer over the regions."""

    Settings = HiptSettings

    def __init__(self, shape: Shape, settings: HiptSettings) -> None:
        super().__init__(shape)
        self.settings = settings
        self.regions: Vit4096 | None = None
        if settings.level == "tile":
            self.regions = Vit4096(shape.in_dim)
            if settings.region_checkpoint:
                if shape.in_dim != 384:
                    raise InputError(f"in_dim {shape.in_dim}: {settings.region_checkpoint} takes the 384 of ViT-256")
                self.regions.load_state_dict(load_vit4096(settings.region_checkpoint).state_dict())
                self.regions.requires_grad_(False)
        elif shape.in_dim != _WIDTH:
            raise InputError(f"in_dim {shape.in_dim}: features of regions are {_WIDTH} wide")
        self.phi = hidden_layer(_WIDTH, _WIDTH, settings.dropout)
        layer = nn.TransformerEncoderLayer(_WIDTH, settings.heads, _WIDTH, settings.dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.attention = GatedAttention(_WIDTH, _WIDTH, settings.dropout)
        self.rho = hidden_layer(_WIDTH, _WIDTH, settings.dropout)
        self.head = Head(_WIDTH, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        """→ r (M, 192) of each bag, and the regions of its tiles."""
        encoded = []
        for bag in bags:
            x, tile_regions = bag.features, None
            if self.regions is not None:
                if x.ndim == 2:
                    tile_regions = regions_of(bag, self.settings.tile_px)
                x = torch.cat([self._region_features(x, tile_regions, c) for c in self._chunks(x, tile_regions)])
            encoded.append((x, tile_regions))
        return encoded

    def pool(self, encoded: tuple[Tensor, Regions | None], bag: Bag, label: Tensor | None) -> Prediction:
        x, tile_regions = encoded
        h = self.transformer(self.phi(x).unsqueeze(0)).squeeze(0)
        a, pooled = self.attention.pool(h)
        a = a.detach()
        if tile_regions is not None:
            tiles = torch.bincount(tile_regions.region, minlength=tile_regions.count).to(a.dtype)
            a = (a / tiles)[tile_regions.region]
        return Prediction(self.head(self.rho(pooled), self.omics(bag)), a)

    @staticmethod
    def _chunks(x: Tensor, tile_regions: Regions | None) -> list[range]:
        count = len(x) if tile_regions is None else tile_regions.count
        return [range(i, min(i + _CHUNK_REGIONS, count)) for i in range(0, count, _CHUNK_REGIONS)]

    def _region_features(self, x: Tensor, tile_regions: Regions | None, chunk: range) -> Tensor:
        """Regions `chunk` → r (…, 192)."""
        assert self.regions is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.region_checkpoint):
            if tile_regions is None:
                if x.shape[1] != _SIDE**2:
                    raise InputError(f"regions of {x.shape[1]} tiles; HIPT's have {_SIDE**2}")
                return self.regions(x[chunk.start : chunk.stop])
            members = ((tile_regions.region >= chunk.start) & (tile_regions.region < chunk.stop)).nonzero().squeeze(1)
            place = (tile_regions.region[members] - chunk.start) * _SIDE**2 + tile_regions.cell[members]
            is_present = torch.zeros(len(chunk) * _SIDE**2, dtype=torch.bool, device=x.device).index_fill(
                0, place, True
            )
            grid = x.new_zeros(len(chunk) * _SIDE**2, x.shape[1]).index_copy(0, place, x[members])
            return self.regions(grid.unflatten(0, (-1, _SIDE**2)), is_present.unflatten(0, (-1, _SIDE**2)))
