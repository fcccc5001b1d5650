"""OpenSlide reader: NDPI, MRXS, SCN, BIF …, metadata, and the fallback for SVS and plain TIFF.

It works around three properties of OpenSlide:

- An error stays on the handle forever. After an error the handle is replaced. The region is read again in halves on
  a separate handle until the failing piece is as small as a tile, and that piece becomes background.
- openslide-python converts every pixel to a PIL image; reading into numpy takes half the time.
- Transparent pixels are black in OpenSlide; here they are blended with the background colour.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from ctypes import POINTER, c_uint32
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import lowlevel

from longvit.errors import InputError, one_line
from longvit.slides.pixel_reader import (
    MAX_TILE_PX,
    BadTile,
    Block,
    Level,
    PixelReader,
    Rgb,
    UnsupportedError,
    fill,
    fill_outside,
)

_WHITE: Rgb = (255, 255, 255)
# For a format without a stated tile size (its tiles overlap or are shifted): the block size, so that few tiles are
# decoded twice; and the smallest piece into which a failing region is cut.
_BLOCK_PX = 1024
_PIECE_PX = 256
_OPAQUE = 0xFF000000  # the smallest ARGB word of full alpha


def openslide_vendor(path: Path) -> str | None:
    """Format that OpenSlide detects, e.g. "aperio", "generic-tiff"; None for an unknown one."""
    try:
        return openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None


class OpenSlideReader(PixelReader):
    """Levels and blocks through OpenSlide. Raises `UnsupportedError` where it cannot open the file."""

    name = "openslide"
    version = f"OpenSlide {openslide.__library_version__}, openslide-python {openslide.__version__}"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._handle: Any = self._open()
        handle = self._handle
        names = lowlevel.get_property_names(handle)
        self.properties: Mapping[str, str] = {name: lowlevel.get_property_value(handle, name) for name in names}
        self.vendor = self.properties.get("openslide.vendor", "unknown")
        self.background = _background(self.properties)
        self.levels = tuple(self._level(handle, index) for index in range(lowlevel.get_level_count(handle)))
        # (Hamamatsu's levels without restart markers are one tile; the smaller ones of such a slide can be read.)
        for level in self.levels if self.vendor != "hamamatsu" else ():
            self._check_tile(level)

    def close(self) -> None:
        with self._lock:
            self._handle = None

    def read_block(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        left, top, right, bottom = fill_outside(out, x_px, y_px, self.levels[level].size_px, self.background)
        if right <= left or bottom <= top:
            return []
        self._check_tile(self.levels[level])
        x_px, y_px, inside = x_px + left, y_px + top, out[top:bottom, left:right]
        handle = self._current()
        try:
            self._read(handle, level, x_px, y_px, inside)
        except openslide.OpenSlideError:
            # The error may come from another thread's region: read again before counting a bad tile.
            self._replace(handle)
            return self._read_in_halves(level, x_px, y_px, inside)
        return []

    def _level(self, handle: Any, index: int) -> Level:
        stem = f"openslide.level[{index}]"
        tile_w = int(self.properties.get(f"{stem}.tile-width", 0)) or _BLOCK_PX
        tile_h = int(self.properties.get(f"{stem}.tile-height", 0)) or _BLOCK_PX
        width_px, height_px = lowlevel.get_level_dimensions(handle, index)
        return Level(
            index=index,
            size_px=(width_px, height_px),
            downsample=lowlevel.get_level_downsample(handle, index),
            tile_px=(min(tile_w, width_px), min(tile_h, height_px)),
        )

    def _check_tile(self, level: Level) -> None:
        """Raises `InputError` where a tile, which is decoded whole, would take gigabytes."""
        if level.tile_px[0] * level.tile_px[1] > MAX_TILE_PX:
            raise InputError(
                f"{self.path}: its tiles have {level.tile_px[0]} × {level.tile_px[1]} px; a tile is decoded whole and "
                f"may have at most {MAX_TILE_PX} px: damaged, or convert it (`vips tiffsave --tile --pyramid`)"
            )

    def _piece_px(self, level: int) -> tuple[int, int]:
        """Size at which a failing region is not cut further."""
        has_tile_size = f"openslide.level[{level}].tile-width" in self.properties
        return self.levels[level].tile_px if has_tile_size else (_PIECE_PX, _PIECE_PX)

    def _current(self) -> Any:
        """Handle that all threads share, until an error replaces it."""
        with self._lock:
            if self._handle is None:
                self._handle = self._reopen()
            return self._handle

    def _replace(self, broken: Any) -> None:
        """Drops a handle, so that the next `_current` opens a new one. The old handle closes when its last user
        releases it."""
        with self._lock:
            if self._handle is broken:
                self._handle = None

    def _open(self) -> Any:
        try:
            return lowlevel.open(self.path)
        except openslide.OpenSlideError as error:
            raise UnsupportedError(f"OpenSlide does not open it: {one_line(error)}") from error

    def _reopen(self) -> Any:
        try:
            return self._open()
        except UnsupportedError as error:
            # It opened once. A missing file must not turn every piece into a bad tile, and the slide blank.
            raise InputError(f"{self.path}: cannot be read any more ({error})") from error

    def _read(self, handle: Any, level: int, x_px: int, y_px: int, out: Block) -> None:
        height, width = out.shape[:2]
        downsample = self.levels[level].downsample
        argb = np.empty((height, width), np.uint32)
        # OpenSlide takes the corner in whole level-0 pixels, so at a downsample of 4.0003 it may be off by 1/8 px.
        lowlevel._read_region(
            handle,
            argb.ctypes.data_as(POINTER(c_uint32)),
            round(x_px * downsample),
            round(y_px * downsample),
            level,
            width,
            height,
        )
        _composite(argb, out, self.background)

    def _read_in_halves(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        try:
            self._read(self._reopen(), level, x_px, y_px, out)
            return []
        except openslide.OpenSlideError as error:
            height, width = out.shape[:2]
            tile_w, tile_h = self._piece_px(level)
            if width <= tile_w and height <= tile_h:
                fill(out, self.background)
                downsample = self.levels[level].downsample
                x_level0_px, y_level0_px = round(x_px * downsample), round(y_px * downsample)
                return [BadTile(level, x_level0_px, y_level0_px, width, height, one_line(error))]
        if width / tile_w >= height / tile_h:
            cut = _cut(x_px, width, tile_w)
            return self._read_in_halves(level, x_px, y_px, out[:, :cut]) + self._read_in_halves(
                level, x_px + cut, y_px, out[:, cut:]
            )
        cut = _cut(y_px, height, tile_h)
        return self._read_in_halves(level, x_px, y_px, out[:cut]) + self._read_in_halves(
            level, x_px, y_px + cut, out[cut:]
        )


def _cut(start_px: int, length_px: int, tile_px: int) -> int:
    """Offset at which to halve a range: the tile border nearest its middle, so that one bad tile is one piece."""
    middle = start_px + length_px / 2
    cut = round(middle / tile_px) * tile_px - start_px
    return cut if 0 < cut < length_px else length_px // 2


def _composite(argb: NDArray[np.uint32], out: Block, background: Rgb) -> None:
    """Blends premultiplied ARGB words with the background colour, into RGBX bytes."""
    # Words rather than bytes: two passes instead of three strided ones, half the time.
    if sys.byteorder == "little":
        np.right_shift(argb.byteswap(), 8, out=out.view(np.uint32)[..., 0])
    else:
        np.left_shift(argb, 8, out=out.view(np.uint32)[..., 0])
    if int(argb.min()) >= _OPAQUE:
        return
    transparency = (255 - (argb >> 24)).astype(np.uint16)
    for channel in range(3):
        added = (transparency * background[channel] + 127) // 255
        out[..., channel] = np.minimum(out[..., channel] + added, 255)


def _background(properties: Mapping[str, str]) -> Rgb:
    text = properties.get("openslide.background-color", "")
    try:
        value = int(text, 16)
    except ValueError:
        return _WHITE
    return (value >> 16 & 255, value >> 8 & 255, value & 255)
