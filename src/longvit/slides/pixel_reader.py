"""Interface of a pixel reader: levels, and blocks of one level written into the caller's memory.

Blocks are RGBX: uint8 (height, width, 4), red, green, blue, and an unused fourth byte. Pillow resamples this layout in
place. A 3-byte RGB block is repacked first: 121 against 399 million pixels per second with the box filter on one core
(2026-11). libjpeg-turbo writes RGBX directly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError

# 0.1 µm/px over 40 cm of glass: no slide is larger, a damaged header easily is.
MAX_SIDE_PX = 2**22
# A tile is decoded whole, which takes about ten bytes per pixel at the peak: 0.8 GB for 8,192 × 8,192 px. No scanner
# makes such tiles; files of a single strip have them.
MAX_TILE_PX = 2**26

Rgb = tuple[int, int, int]
Block = NDArray[np.uint8]


@dataclass(frozen=True)
class Level:
    """One resolution of a slide; level 0 is the largest.

    >>> import longvit
    >>> level = longvit.open_slide("examples/CMU-1-Small-Region.svs").levels[0]
    >>> level.size_px, level.downsample, level.tile_px
    ((2220, 2967), 1.0, (240, 240))
    """

    index: int
    """Number of the level, from 0."""
    size_px: tuple[int, int]
    """Width and height in pixels of this level."""
    downsample: float
    """Level-0 pixels per pixel of this level (mean of both axes, as in OpenSlide)."""
    tile_px: tuple[int, int]
    """Width and height of the tiles of this level in the file. Reads aligned with them decode nothing twice."""
    compression: str = ""
    """Name of the compression, such as `jpeg`; empty where the reader does not state it."""
    reduction: int = 1
    """Factor by which the decoder reduces the stored pixels (see `PixelReader.reductions`)."""

    def tiles_in(self, x_px: int, y_px: int, width_px: int, height_px: int) -> int:
        """Number of tiles that a rectangle touches (pixels of this level, inside it)."""
        tile_w, tile_h = self.tile_px
        columns = -(-(x_px + width_px) // tile_w) - x_px // tile_w
        rows = -(-(y_px + height_px) // tile_h) - y_px // tile_h
        return columns * rows

    def reduced(self, reduction: int) -> Level:
        """This level as a decoder delivers it that reduces every tile by a factor (1, 2, 4 or 8)."""
        if reduction == 1:
            return self
        width_px, height_px = (max(1, side // reduction) for side in self.size_px)
        tile_w, tile_h = (side // reduction for side in self.tile_px)
        return replace(
            self,
            size_px=(width_px, height_px),
            downsample=self.downsample * reduction,
            tile_px=(tile_w, tile_h),
            reduction=reduction,
        )


@dataclass(frozen=True, order=True)
class BadTile:
    """A piece that could not be decoded and was filled with background.

    >>> from longvit.slides.pixel_reader import BadTile
    >>> print(BadTile(level=0, x_level0_px=240, y_level0_px=0, width_px=240, height_px=240, message="damaged JPEG"))
    level 0, 240 × 240 px at level-0 (240, 0): damaged JPEG
    """

    level: int
    """Level of the piece."""
    x_level0_px: int
    """Left edge."""
    y_level0_px: int
    """Upper edge."""
    width_px: int
    """Width and height in pixels of `level`."""
    height_px: int
    """See `width_px`."""
    message: str
    """Reason, in one line."""

    def __str__(self) -> str:
        return (
            f"level {self.level}, {self.width_px} × {self.height_px} px at level-0 "
            f"({self.x_level0_px}, {self.y_level0_px}): {self.message}"
        )


class PixelReader(ABC):
    """Reader of one open slide. `read_block` may be called from many threads at once; each process opens its own
    reader."""

    name: str
    version: str
    levels: tuple[Level, ...]
    background: Rgb

    @abstractmethod
    def read_block(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        """Fills `out` (RGBX, any strides) with the pixels of `level` from the corner (x_px, y_px) in that level.

        Pixels outside the level and transparent pixels become background. A piece that cannot be decoded becomes
        background and is returned; no error is raised for it.
        """

    def reductions(self, level: int) -> tuple[int, ...]:
        """Factors by which the decoder can reduce the tiles of a level, ascending from 1."""
        return (1,)

    def read_reduced_block(self, level: int, reduction: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        """Same as `read_block` for a level reduced by one of its `reductions`; the corner is in reduced pixels."""
        if reduction != 1:
            raise ValueError(f"{self.name} does not reduce while decoding")
        return self.read_block(level, x_px, y_px, out)

    @abstractmethod
    def close(self) -> None:
        """Releases file handles and memory. Reading afterwards is an error."""


def fill(out: Block, colour: Rgb) -> None:
    """Sets the three colours of an RGBX block."""
    out[..., :3] = colour


def fill_outside(out: Block, x_px: int, y_px: int, size_px: tuple[int, int], colour: Rgb) -> tuple[int, int, int, int]:
    """Fills the part of a block outside a level of `size_px`; returns the inside as (left, top, right, bottom).

    The result is in pixels of the block; right <= left or bottom <= top where the block is entirely outside.
    """
    height, width = out.shape[:2]
    left, top = max(0, -x_px), max(0, -y_px)
    right, bottom = min(width, size_px[0] - x_px), min(height, size_px[1] - y_px)
    if right <= left or bottom <= top:
        fill(out, colour)
        return 0, 0, 0, 0
    if left:
        fill(out[:, :left], colour)
    if right < width:
        fill(out[:, right:], colour)
    if top:
        fill(out[:top], colour)
    if bottom < height:
        fill(out[bottom:], colour)
    return left, top, right, bottom


def check_side(path: Path, width_px: int, height_px: int) -> None:
    """Raises `InputError` for a size that no slide has; a damaged header's size would cost gigabytes before it
    fails."""
    if width_px < 1 or height_px < 1:
        raise InputError(f"{path}: damaged: its header declares {width_px} × {height_px} px")
    if max(width_px, height_px) > MAX_SIDE_PX:
        raise InputError(
            f"{path}: damaged: its header declares {width_px} × {height_px} px, more than the {MAX_SIDE_PX} px on a "
            f"side that any slide has"
        )


class UnsupportedError(Exception):
    """This reader cannot read the file; the text gives the reason as a clause. Another reader may read it."""
