"""Learned positions of patches: parameters of the pretraining grid, interpolated on the fly to the grid of an image.

The pretraining grid has 32 × 32 patches, those of a 1,024² image. Interpolation is bicubic with the scale factor
(target + 0.1) / source, as in DINO.

Difference from the authors' code: the interpolation is a product with two small matrices, so positions for a strip of
the image are computed for that strip alone. The published code makes them a parameter of 400 M elements at 32,768².

h × w patches, G grid side, D width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PatchGrid(NamedTuple):
    """Numbers of patches along the height and the width of an image."""

    height: int
    width: int


class Positions(NamedTuple):
    """The positions of an image's patches, (h, w·D): rows @ columns, or columns where rows is None."""

    rows: Tensor | None  # (h, G)
    columns: Tensor  # (G, w·D) or (h, w·D)

    def band(self, first: int, end: int) -> Positions:
        """The positions of rows of patches [first, end) alone."""
        if self.rows is None:
            return Positions(None, self.columns[first:end])
        return Positions(self.rows[first:end], self.columns)

    def in_rows(self, rows: slice) -> Tensor:
        """The positions of some rows of patches, (number of rows, w·D)."""
        return self.columns[rows] if self.rows is None else self.rows[rows] @ self.columns

    def add_gradient(self, total: Tensor, rows: slice, grad: Tensor) -> None:
        """Adds the gradient of some rows' positions, `grad` (number of rows, w·D), to `total`, that of `columns`."""
        if self.rows is None:
            total[rows] = grad
        else:
            total.addmm_(self.rows[rows].t(), grad)


SINE_AMPLITUDE = 0.2
"""Of the sine positions. At 0.5 textures are learned later, at 0.1 places are (`benchmarks/trainability.py`)."""
_CYCLES = (0.125, 4.0)
"""Of the slowest and the fastest sine, over the side of an image."""


def sine_positions(grid: PatchGrid, dim: int) -> Tensor:
    """Initial positions (1, G_h · G_w, D) of sines and cosines of the place; D is a multiple of 4.

    A quarter of the channels each are the sine and cosine of the row and of the column, as in MAE (He et al. 2022,
    arXiv 2111.06377), with frequencies in a geometric series. Neighbours are similar from the start, so that a model
    can use places after few steps; independent random vectors have to be learned one by one.
    """
    slow, fast = _CYCLES
    cycles = slow * (fast / slow) ** torch.linspace(0, 1, dim // 4)
    waves = []
    for side in grid:
        angles = 2 * torch.pi * ((torch.arange(side) + 0.5) / side)[:, None] * cycles
        waves.append(torch.cat([angles.sin(), angles.cos()], 1))
    rows, columns = waves[0][:, None], waves[1][None]
    shape = (grid.height, grid.width, -1)
    return SINE_AMPLITUDE * torch.cat([rows.expand(shape), columns.expand(shape)], 2).reshape(1, -1, dim)


def positions_on(pos_embed: Tensor, grid: PatchGrid, target: PatchGrid) -> Positions:
    """The positions `pos_embed` (1, G_h · G_w, D) of `grid`, for an image of `target` patches; differentiable."""
    on_grid = pos_embed.view(grid.height, grid.width, -1)
    if target == grid and (target.height == target.width or grid.height != grid.width):
        return Positions(None, on_grid.flatten(1))
    to_columns = interpolation(target.width, grid.width).to(on_grid)
    to_rows = interpolation(target.height, grid.height).to(on_grid)
    return Positions(to_rows, torch.einsum("gkd,xk->gxd", on_grid, to_columns).flatten(1))


@lru_cache(maxsize=64)
def interpolation(target: int, source: int) -> Tensor:
    """(target, source) float64: bicubic weights along one axis, scale (target + 0.1) / source as in DINO.

    Taken from PyTorch's own `interpolate` (a = −0.75, border repeated) with unit vectors.
    """
    with torch.inference_mode(False), torch.no_grad():  # the cached matrix must serve training too
        eye = torch.eye(source, dtype=torch.float64).view(1, source, source, 1)
        result = F.interpolate(eye, scale_factor=((target + 0.1) / source, 1.0), mode="bicubic")
        assert result.shape[2] == target, (result.shape, target)
        return result[0, :, :, 0].t().contiguous()
