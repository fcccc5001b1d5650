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
