"""Tiles of a slide: squares of `tile_px` pixels at `mpp` µm per pixel, on a regular grid, where there is tissue.

A tile's position is its top-left corner (x, y) in level-0 pixels, as usual in the field. Its side there is tile_px ·
mpp / (the slide's own mpp), a fractional number of pixels. Corners are rounded one by one, so that rounding does not
accumulate along the slide. The magnification is not used ("20×" is 0.45 to 0.55 µm/px): a tile covers the same µm on
every scanner.

N tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.kept_area import KeptPoints
from longvit.slides.mpp import Mpp
from longvit.slides.tissue import Tissue

# A slide may end a hundredth of a tile before the tile does: 256 px at 0.499 µm/px are a tile of 256 px at 0.5.
_SLACK = 0.01
# A slide at 0.55 µm/px counts as 20×, and its tiles are enlarged a little.
_MAX_ENLARGEMENT = 1.25


@dataclass(frozen=True)
class TileSettings:
    """Settings of the tile grid.

    >>> import longvit
    >>> longvit.TileSettings(tile_px=224, overlap_px=300)
    Traceback (most recent call last):
    longvit.errors.InputError: --overlap-px 300: from 0 to 223, less than --tile-px
    """

    tile_px: int = 256
    """Side of a tile, in pixels of the encoder's input."""
    mpp: float = 0.5
    """µm per pixel of the tile."""
    overlap_px: int = 0
    """Overlap of neighbouring tiles, in pixels of the tile."""
    min_tissue: float = 0.25
    """Smallest tissue fraction of a tile; 0 keeps the whole grid."""

    def __post_init__(self) -> None:
        if self.tile_px < 1:
            raise InputError(f"--tile-px {self.tile_px}: at least 1")
        if not 0 < self.mpp < math.inf:
            raise InputError(f"--tile-mpp {self.mpp:g}: more than 0")
        if not 0 <= self.overlap_px < self.tile_px:
            raise InputError(f"--overlap-px {self.overlap_px}: from 0 to {self.tile_px - 1}, less than --tile-px")
        if not 0 <= self.min_tissue <= 1:
            raise InputError(f"--min-tissue {self.min_tissue:g}: a fraction from 0 to 1")


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a slide."""

    coords: NDArray[np.int64] = field(repr=False)
    """(N, 2): top-left corners in level-0 px, row by row."""
    tissue: NDArray[np.float32] = field(repr=False)
    """(N,): tissue fraction of each tile."""
    width_level0_px: float
    height_level0_px: float
    """Size of a tile at level 0; it is square if the slide's pixels are."""
    places: int
    """Number of grid positions, with or without tissue."""
    settings: TileSettings
    mpp: Mpp
    """Resolution of the slide."""

    def __len__(self) -> int:
        return len(self.coords)


def tile_grid(
    tissue: Tissue, mpp: Mpp, settings: TileSettings | None = None, area: KeptPoints | None = None
) -> TileGrid:
    """Tiles within `tissue.bounds` that have enough tissue, and their centre in `area`; there may be none.

    `mpp`: µm per level-0 px of the slide. A remainder of the slide to the right of and below the last whole tile is not
    covered. Raises `InputError` for a slide that is smaller than one tile, or much coarser than the tiles.
    """
    settings = settings or TileSettings()
    enlarged = mpp.mean / settings.mpp
    if enlarged > _MAX_ENLARGEMENT:
        raise InputError(
            f"its {mpp.mean:.4g} µm/px are coarser than tiles of {settings.mpp:g} µm/px, which would be enlarged "
            f"{enlarged:.3g} times; pass --tile-mpp {mpp.mean:.3g} or more"
        )
    bounds = tissue.bounds
    side_um, step_um = settings.tile_px * settings.mpp, (settings.tile_px - settings.overlap_px) * settings.mpp
    width, height = side_um / mpp.x, side_um / mpp.y
    columns = _n_positions(bounds.width, width, step_um / mpp.x)
    rows = _n_positions(bounds.height, height, step_um / mpp.y)
    if not columns or not rows:
        raise InputError(
            f"{bounds.width:g} × {bounds.height:g} px at level 0, smaller than one tile of {width:.0f} × {height:.0f} "
            f"px there ({settings.tile_px} px at {settings.mpp:g} µm/px); pass a smaller --tile-px"
        )
    x = bounds.x + np.arange(columns) * (step_um / mpp.x)
    y = bounds.y + np.arange(rows) * (step_um / mpp.y)
    is_inside = True if area is None else area.inside(x + width / 2, y + height / 2).ravel()
    x, y = (axis.ravel() for axis in np.meshgrid(x, y))
    fraction = tissue.share(x, y, width, height)
    # A tile that is all tissue has a fraction of 1 up to rounding.
    kept = (fraction >= settings.min_tissue - 1e-9) & is_inside
    coords = np.stack([np.rint(x[kept]), np.rint(y[kept])], axis=1).astype(np.int64)
    return TileGrid(coords, fraction[kept].astype(np.float32), width, height, columns * rows, settings, mpp)


def _n_positions(extent: float, side: float, step: float) -> int:
    room = extent - side * (1 - _SLACK)
    return math.floor(room / step) + 1 if room >= 0 else 0
