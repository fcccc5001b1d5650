"""Pixels of chosen tiles of a bag, read from the slides when a system asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError


@dataclass(frozen=True)
class SlideTiles:
    """Tiles of one slide of a bag."""

    path: Path
    coords: NDArray[np.int64] = field(repr=False)
    """(N, 2): corners in level-0 px."""
    side_level0_px: float
    """Side of a tile in level-0 px."""


@dataclass(frozen=True)
class TilePixelSource:
    """Source of the pixels of a bag's tiles; a call reads some of them."""

    slides: tuple[SlideTiles, ...]
    """Slides of the bag, in the order of its tiles."""

    def __call__(self, numbers: Sequence[int] | NDArray[np.int64], tile_px: int) -> NDArray[np.uint8]:
        """Pixels of the tiles of these numbers, resampled to `tile_px`: uint8 (n, tile_px, tile_px, 3).

        Memory is that of the pixels returned and of one block of about 2,048 px. Raises `InputError` for a slide that
        cannot be opened, or in which tiles cannot be decoded.
        """
        chosen = np.asarray(numbers, np.int64)
        pixels = np.empty((len(chosen), tile_px, tile_px, 3), np.uint8)
        first = 0
        for slide in self.slides:
            end = first + len(slide.coords)
            inside = np.flatnonzero((chosen >= first) & (chosen < end))
            if len(inside):
                _read(slide, chosen[inside] - first, tile_px, pixels, inside)
            first = end
        return pixels


def _read(
    tiles: SlideTiles, numbers: NDArray[np.int64], tile_px: int, out: NDArray[np.uint8], places: NDArray[np.int64]
) -> None:
    """Reads the tiles of one slide into their places of `out`."""
    from longvit.slides.mpp import Mpp
    from longvit.slides.reader import open_slide
    from longvit.slides.tile_reading import read_tiles
    from longvit.slides.tiles import TileGrid, TileSettings

    side = tiles.side_level0_px
    # Only the ratio of the two resolutions counts, so the slide needs none.
    settings = TileSettings(tile_px=tile_px, mpp=side / tile_px, min_tissue=0)
    grid = TileGrid(
        tiles.coords[numbers], np.ones(len(numbers), np.float32), side, side, len(numbers), settings, Mpp(1, 1, "tiles")
    )
    with open_slide(tiles.path) as slide:
        for block in read_tiles(slide, grid, threads=1):
            out[places[block.numbers]] = block.pixels
        if slide.bad_tiles:
            raise InputError(
                f"{tiles.path}: {len(slide.bad_tiles)} of its tiles cannot be decoded; leave this slide out"
            )
