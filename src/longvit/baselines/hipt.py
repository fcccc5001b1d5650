"""HIPT's slide level (Chen et al. 2022, "Scaling vision transformers to gigapixel images", section 3) over its regions.

    r_m = ViT-4096(16 × 16 tile features of region m)                         192 wide; `hipt_vits`
    h_m = dropout(relu(W r_m + b)),   2 layers of transformer encoder,   a gated attention over the regions
    logits = W ρ(Σ_m a_m h_m) + b

The transformer is post-norm: 3 heads, 192 wide within, ReLU, dropout .25, without positions. In the paper's tables
ViT-256 and ViT-4096 are published weights and frozen, so the features are those of ViT-256 and `region_checkpoint` is
`vit4k_xs_dino.pth`; only the slide level is trained. Without a checkpoint ViT-4096 starts at random and is trained too,
for features of any width.

A bag is one of: tile features (N, D) with coordinates, laid out on a grid of regions of 16 × 16 tiles here (a tile
that is not there is masked; in the authors' code every region has all of its 256 tiles); regions (M, 256, D), as HIPT
keeps them; with `level="region"`, features of regions (M, 192).

Attention: a_m, in equal parts to the tiles of region m; of the regions where the bag has no tiles of its own.

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
    """HIPT_LGP_FC."""

    level: Literal["tile", "region"] = "tile"
    """What the features are of: tiles of 256 px, or regions of 4,096 px."""
    region_checkpoint: str = ""
    """Weights of ViT-4096, `vit4k_xs_dino.pth`; then it is frozen (HIPT). Empty: it starts at random and is trained."""
    tile_px: int | None = None
    """Side of a tile in level-0 px; by default the smallest distance of two tiles along an axis."""
    layers: int = 2
    """Of the slide's transformer (HIPT)."""
    heads: int = 3
    """Of the slide's transformer (HIPT)."""
    dropout: float = 0.25
    """Of the slide level (HIPT)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"layers": 1, "heads": 1, "tile_px": 1})
        if _WIDTH % self.heads:
            raise InputError(f"heads {self.heads}: a divisor of {_WIDTH}")
        if self.level == "region" and self.region_checkpoint:
            raise InputError(f"region_checkpoint {self.region_checkpoint}: features of regions need no ViT-4096")


@dataclass(frozen=True)
class Regions:
    """Where the tiles of a bag stand. count: M; region, cell: (N,) of each tile, 0 … M − 1 and 0 … 255."""

    count: int
    region: Tensor
    cell: Tensor


def regions_of(bag: Bag, tile_px: int | None) -> Regions:
    """The grid of each slide begins at its first column and row of tiles; only regions with tiles count.

    Raises InputError: no coordinates; two tiles in one cell.
    """
    if bag.coords is None:
        raise InputError(f"{bag.name}: no coordinates, which hipt needs for its regions; or give regions (M, 256, D)")
    keys = []
    for number, s in enumerate(bag.slides):
        xy = bag.coords[s].long()
        step = tile_px or _smallest_step(xy)
        columns, rows = torch.div(xy - xy.amin(0), step, rounding_mode="floor").unbind(1)
        where = torch.stack([rows // _SIDE, columns // _SIDE, rows % _SIDE * _SIDE + columns % _SIDE], 1)
        keys.append(torch.cat([torch.full_like(where[:, :1], number), where], 1))
    key = torch.cat(keys)  # slide, row and column of the region, cell
    if len(key.unique(dim=0)) < len(key):
        raise InputError(
            f"{bag.name}: {len(key) - len(key.unique(dim=0))} tiles share a cell of the grid; give tile_px, the side "
            "of a tile in level-0 px, or extract tiles without overlap"
        )
    found, region = key[:, :3].unique(dim=0, return_inverse=True)
    return Regions(len(found), region, key[:, 3])


def _smallest_step(xy: Tensor) -> int:
    """xy (N, 2): the smallest distance along x or y that is not 0; 1 for a single tile."""
    steps = torch.cat([xy[:, axis].unique().diff() for axis in range(2)])
    return int(steps.min()) if len(steps) else 1


class Hipt(System):
    """HIPT."""

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
        """→ r (M, 192) of each bag and where its tiles stand."""
        found = []
        for bag in bags:
            x, where = bag.features, None
            if self.regions is not None:
                if x.ndim == 2:
                    where = regions_of(bag, self.settings.tile_px)
                x = torch.cat([self._region_features(x, where, c) for c in self._chunks(x, where)])
            found.append((x, where))
        return found

    def pool(self, encoded: tuple[Tensor, Regions | None], bag: Bag, label: Tensor | None) -> Prediction:
        x, where = encoded
        h = self.transformer(self.phi(x).unsqueeze(0)).squeeze(0)
        a, pooled = self.attention.pool(h)
        a = a.detach()
        if where is not None:
            tiles = torch.bincount(where.region, minlength=where.count).to(a.dtype)
            a = (a / tiles)[where.region]
        return Prediction(self.head(self.rho(pooled), self.omics(bag)), a)

    @staticmethod
    def _chunks(x: Tensor, where: Regions | None) -> list[range]:
        count = len(x) if where is None else where.count
        return [range(i, min(i + _CHUNK_REGIONS, count)) for i in range(0, count, _CHUNK_REGIONS)]

    def _region_features(self, x: Tensor, where: Regions | None, chunk: range) -> Tensor:
        """Regions `chunk` → r (…, 192)."""
        assert self.regions is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.region_checkpoint):
            if where is None:
                if x.shape[1] != _SIDE**2:
                    raise InputError(f"regions of {x.shape[1]} tiles; HIPT's have {_SIDE**2}")
                return self.regions(x[chunk.start : chunk.stop])
            mine = ((where.region >= chunk.start) & (where.region < chunk.stop)).nonzero().squeeze(1)
            place = (where.region[mine] - chunk.start) * _SIDE**2 + where.cell[mine]
            there = torch.zeros(len(chunk) * _SIDE**2, dtype=torch.bool, device=x.device).index_fill(0, place, True)
            grid = x.new_zeros(len(chunk) * _SIDE**2, x.shape[1]).index_copy(0, place, x[mine])
            return self.regions(grid.unflatten(0, (-1, _SIDE**2)), there.unflatten(0, (-1, _SIDE**2)))
