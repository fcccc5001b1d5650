"""Deep-zoom pyramid of a slide: tiles of 512 px, each level half of the next, over the slide's bounds.

Level `max_level` has the pixels of level 0 of the slide; level 0 of the pyramid is a single tile. Tile (x, y) of a
level covers its pixels from `512 x` to `512 (x + 1)`. Pixel i of a level that is reduced by 2^k covers level-0 pixels
`2^k i` to `2^k (i + 1)` of the bounds. So a position is the same on every level, for the slide and for its heat map.

A tile is read from the file's level, with the decoder's own reduction, that has the fewest pixels above those needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvit.slides.pixel_reader import Block
from longvit.slides.placement import Box
from longvit.slides.reader import Slide

TILE_PX = 512
_MOST_READ_PX = 2**22
"""Pixels that are read at once; a larger area is read in quarters."""
_HALF_PX = 0.5 / TILE_PX


@dataclass(frozen=True)
class Pyramid:
    """Geometry of the tiles over `bounds` (level-0 px)."""

    bounds: Box

    @cached_property
    def max_level(self) -> int:
        """Number of the level with all pixels."""
        longest = max(self.bounds.width, self.bounds.height)
        return max(0, math.ceil(math.log2(longest / TILE_PX)))

    def level_size(self, level: int) -> tuple[int, int]:
        """Width and height of a level in its pixels."""
        step = 2 ** (self.max_level - level)
        return math.ceil(self.bounds.width / step), math.ceil(self.bounds.height / step)

    def tiles(self, level: int) -> tuple[int, int]:
        """Columns and rows of tiles of a level."""
        width, height = self.level_size(level)
        return math.ceil(width / TILE_PX), math.ceil(height / TILE_PX)

    def has(self, level: int, x: int, y: int) -> bool:
        """True for a tile that exists."""
        if not 0 <= level <= self.max_level:
            return False
        columns, rows = self.tiles(level)
        return 0 <= x < columns and 0 <= y < rows

    def size(self, level: int, x: int, y: int) -> tuple[int, int]:
        """Width and height of a tile: 512, and less at the right and bottom edge."""
        width, height = self.level_size(level)
        return min(TILE_PX, width - x * TILE_PX), min(TILE_PX, height - y * TILE_PX)

    def box(self, level: int, x: int, y: int) -> Box:
        """Area of a tile in level-0 px of the slide; at an edge its last pixels may reach beyond the bounds."""
        step = 2 ** (self.max_level - level)
        width, height = self.size(level, x, y)
        left, top = self.bounds.x + x * TILE_PX * step, self.bounds.y + y * TILE_PX * step
        return Box(left, top, width * step, height * step)


@dataclass(frozen=True)
class _Source:
    """A level of the file, reduced while it is decoded."""

    level: int
    reduction: int
    scale_x: float
    """Its pixels per level-0 pixel."""
    scale_y: float


class SlidePixels:
    """Pixels of a slide at any scale, for tiles, patches and thumbnails."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        width0, height0 = slide.size_px
        # Every level covers the whole of level 0, so the sizes are more exact than the rounded downsample.
        self._sources = sorted(
            (
                _Source(level.index, n, level.size_px[0] / n / width0, level.size_px[1] / n / height0)
                for level in slide.levels
                for n in slide.reductions(level.index)
            ),
            key=lambda source: (-source.scale_x, source.reduction),
        )

    def source_for(self, downsample: float) -> _Source:
        """The source with the fewest pixels that has at least one per pixel needed, else the finest."""
        # A level may lack a pixel of its exact size: 312 of 312.5.
        slack_x, slack_y = (1 / side for side in self.slide.size_px)
        enough = [
            s for s in self._sources if min(s.scale_x + slack_x, s.scale_y + slack_y) * downsample >= 1 - _HALF_PX
        ]
        if not enough:
            return self._sources[0]
        # Of equal ones (1/4 halved, or the whole at an eighth) the one of which the decoder drops the least.
        return min((s for s in enough if s.scale_x <= 1.1 * enough[-1].scale_x), key=lambda s: s.reduction)

    def stored_ratio(self, downsample: float) -> float:
        """Stored pixels, along a side, that are decoded per pixel at this scale."""
        source = self.source_for(downsample)
        return source.scale_x * source.reduction * downsample

    def tile_size(self, downsample: float) -> tuple[float, float]:
        """Width and height of a stored tile in pixels of this scale."""
        source = self.source_for(downsample)
        width, height = self.slide.levels[source.level].tile_px
        scale = source.reduction * downsample
        return width / (source.scale_x * scale), height / (source.scale_y * scale)

    def area(self, box: Box, width: int, height: int) -> Block:
        """Area `box` (level-0 px) as uint8 RGBX (height, width, 4); background outside the slide.

        Where a source has that scale its pixels are returned as they are, else they are averaged by area.
        """
        source = self.source_for(min(box.width / width, box.height / height))
        left, top = box.x * source.scale_x, box.y * source.scale_y
        wide, high = box.width * source.scale_x, box.height * source.scale_y
        if wide * high > _MOST_READ_PX and min(width, height) > 1:
            return self._in_quarters(box, width, height)
        if abs(wide / width - 1) < _HALF_PX and abs(high / height - 1) < _HALF_PX:
            return self._read(source, round(left), round(top), width, height)
        x, y = math.floor(left), math.floor(top)
        block = self._read(source, x, y, math.ceil(left + wide) - x, math.ceil(top + high) - y)
        is_smaller = wide >= width and high >= height
        image = Image.fromarray(block[..., :3]).resize(
            (width, height),
            Image.Resampling.BOX if is_smaller else Image.Resampling.BICUBIC,
            box=(left - x, top - y, left - x + wide, top - y + high),
        )
        return np.asarray(image.convert("RGBX"))

    def _read(self, source: _Source, x: int, y: int, width: int, height: int) -> Block:
        block = np.empty((height, width, 4), np.uint8)
        self.slide.read_block(source.level, x, y, block, reduction=source.reduction)
        return block

    def _in_quarters(self, box: Box, width: int, height: int) -> Block:
        whole: NDArray[np.uint8] = np.empty((height, width, 4), np.uint8)
        step_x, step_y = box.width / width, box.height / height
        for x, x_end in ((0, width // 2), (width // 2, width)):
            for y, y_end in ((0, height // 2), (height // 2, height)):
                part = Box(box.x + x * step_x, box.y + y * step_y, (x_end - x) * step_x, (y_end - y) * step_y)
                whole[y:y_end, x:x_end] = self.area(part, x_end - x, y_end - y)
        return whole
