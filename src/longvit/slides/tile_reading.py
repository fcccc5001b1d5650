"""Pixels of a slide's tiles, decoded in threads some blocks ahead of the model.

Neighbouring tiles are read as one block of about 2,048 px, so a file tile under several tiles is decoded about once.
The level is the coarsest that is still as fine as the tiles. A remaining difference above one percent is resampled
once, by Pillow's bicubic filter.

n tiles of a block, P side of a tile in px.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvit.processes.cpu_count import cpu_count
from longvit.slides.pixel_reader import Level
from longvit.slides.reader import Slide
from longvit.slides.tiles import TileGrid

_BLOCK_PX = 2048
_SAME_SCALE = 0.01
_FILTER_SUPPORT = 2  # px of the tile on either side


@dataclass(frozen=True)
class TilePixels:
    """Some tiles of a grid."""

    numbers: NDArray[np.int64]
    """(n,): indices of the tiles in the grid."""
    pixels: NDArray[np.uint8]
    """(n, P, P, 3), RGB."""


def read_tiles(slide: Slide, grid: TileGrid, *, threads: int | None = None) -> Generator[TilePixels]:
    """All tiles of `grid`, each once, block by block, always in the same order.

    Undecodable areas and areas outside the slide are background; `slide.bad_tiles` counts the former. `threads`:
    decoding threads; None: one per core. Close the generator before the slide if it is not exhausted.
    """
    threads = threads or cpu_count()
    level = level_for(slide, grid)
    waiting: deque[Future[TilePixels]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="tiles") as pool:
        try:
            for numbers in _blocks(grid, level):
                waiting.append(pool.submit(_read_block, slide, grid, level, numbers))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def pieces_read(slide: Slide, grid: TileGrid) -> int:
    """Number of file tiles that `read_tiles` decodes; one under two blocks counts twice."""
    level = level_for(slide, grid)
    total = 0
    for numbers in _blocks(grid, level):
        low, high = _extent(grid, level, numbers)
        left, top = np.maximum(low, 0)
        right, bottom = np.minimum(high, level.size_px)
        total += level.tiles_in(int(left), int(top), int(right - left), int(bottom - top))
    return total


def level_for(slide: Slide, grid: TileGrid) -> Level:
    """Coarsest level that is as fine as the tiles, within one percent; level 0 where there is none."""
    wanted = grid.settings.mpp / grid.mpp.mean * (1 + _SAME_SCALE)
    fine = [level for level in slide.levels if level.downsample <= wanted]
    return max(fine, key=lambda level: level.downsample, default=slide.levels[0])


def _blocks(grid: TileGrid, level: Level) -> Iterator[NDArray[np.int64]]:
    """Tile numbers of each block."""
    if not len(grid):
        return
    side_px = max(_BLOCK_PX, *_size(grid, level)) * level.downsample
    block = (grid.coords - grid.coords.min(0)) // side_px  # (N, 2)
    order = np.lexsort((block[:, 0], block[:, 1]))
    borders = np.flatnonzero(np.any(np.diff(block[order], axis=0) != 0, axis=1)) + 1
    yield from np.split(order, borders)


def _size(grid: TileGrid, level: Level) -> NDArray[np.float64]:
    """Width and height of a tile in px of the level."""
    return np.array([grid.width_level0_px, grid.height_level0_px]) / level.downsample


def _is_same_scale(grid: TileGrid, level: Level) -> bool:
    return bool(np.all(np.abs(_size(grid, level) / grid.settings.tile_px - 1) <= _SAME_SCALE))


def _extent(grid: TileGrid, level: Level, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Top-left and bottom-right corner of a block, in px of the level.

    With resampling, the block includes the margin of the filter, within the slide.
    """
    corners, size = grid.coords[numbers] / level.downsample, _size(grid, level)
    low, high = corners.min(0), corners.max(0) + np.maximum(size, grid.settings.tile_px) + 1
    if not _is_same_scale(grid, level):
        margin = _FILTER_SUPPORT * np.maximum(size / grid.settings.tile_px, 1)
        low = np.minimum(low, np.maximum(low - margin, 0))
        high = np.maximum(high, np.minimum(high + margin, level.size_px))
    return np.floor(low).astype(np.int64), np.ceil(high).astype(np.int64)


def _read_block(slide: Slide, grid: TileGrid, level: Level, numbers: NDArray[np.int64]) -> TilePixels:
    from PIL import Image

    side_px = grid.settings.tile_px
    corners = grid.coords[numbers] / level.downsample  # (n, 2), in px of the level
    size = _size(grid, level)
    low, high = _extent(grid, level, numbers)
    block = np.empty((*(high - low)[::-1], 4), np.uint8)
    slide.read_block(level.index, int(low[0]), int(low[1]), block)
    pixels = np.empty((len(numbers), side_px, side_px, 3), np.uint8)
    if _is_same_scale(grid, level):
        for tile, (x, y) in zip(pixels, np.rint(corners).astype(int) - low, strict=True):
            tile[:] = block[y : y + side_px, x : x + side_px, :3]
        return TilePixels(numbers, pixels)
    image = Image.frombuffer("RGBX", (block.shape[1], block.shape[0]), block, "raw", "RGBX", 0, 1)
    for tile, (x, y) in zip(pixels, corners - low, strict=True):
        box = (float(x), float(y), float(x + size[0]), float(y + size[1]))
        tile[:] = np.asarray(image.resize((side_px, side_px), Image.Resampling.BICUBIC, box=box))[..., :3]
    return TilePixels(numbers, pixels)
