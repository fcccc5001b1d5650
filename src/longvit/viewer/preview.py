"""Preview of a slide without small levels: the colours of a grid of samples, shown while the overview is read.

A sample is the middle of one tile of the file. There are at most 32 along a side, and a preview exists only where they
are a quarter of the tiles or less. It is a blurred image; every later tile replaces it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from longvit.processes.cpu_count import cpu_count
from longvit.slides.pixel_reader import Block
from longvit.slides.placement import Box
from longvit.viewer.pyramid import Pyramid, SlidePixels

SAMPLES = 32
"""Samples along the longer side."""
_LEAST_TILES = 4
"""Tiles per sample from which a preview is worth its time."""
_SIDE_PX = 512


def sample_grid(pixels: SlidePixels, pyramid: Pyramid, level: int) -> tuple[int, int] | None:
    """Columns and rows of samples; None where the tiles are too few or too large. `level`: of the overview."""
    sides = pyramid.level_size(level)
    columns, rows = (max(1, round(SAMPLES * side / max(sides))) for side in sides)
    width, height = pixels.tile_size(2.0 ** (pyramid.max_level - level))
    across, down = sides[0] / width, sides[1] / height
    is_worth_it = across >= columns and down >= rows and across * down >= _LEAST_TILES * columns * rows
    return (columns, rows) if is_worth_it else None


def preview(pixels: SlidePixels, pyramid: Pyramid, level: int, grid: tuple[int, int]) -> Block:
    """The whole slide, uint8 RGBX, with a longest side of 512 px. `grid`: from `sample_grid` for the same `level`."""
    step = 2 ** (pyramid.max_level - level)
    tile = pixels.tile_size(step)
    # the middle half of a tile: rounded, it is still inside
    size = [max(1, math.floor(side / 2)) for side in tile]
    corners = [
        [round((int((i + 0.5) * length / n / side) + 0.25) * side) for i in range(n)]
        for n, length, side in zip(grid, pyramid.level_size(level), tile, strict=True)
    ]

    def colour(corner: tuple[int, int]) -> Block:
        x, y = pyramid.bounds.x + corner[0] * step, pyramid.bounds.y + corner[1] * step
        block = pixels.area(Box(x, y, size[0] * step, size[1] * step), *size)
        return np.asarray(np.rint(block[..., :3].mean((0, 1))), np.uint8)

    with ThreadPoolExecutor(cpu_count(), thread_name_prefix="preview") as pool:
        colours = list(pool.map(colour, [(x, y) for y in corners[1] for x in corners[0]]))
    samples = np.reshape(colours, (grid[1], grid[0], 3))
    scale = _SIDE_PX / max(pyramid.bounds.width, pyramid.bounds.height)
    shape = [max(1, round(side * scale)) for side in (pyramid.bounds.width, pyramid.bounds.height)]
    image = Image.fromarray(samples).resize((shape[0], shape[1]), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGBX"))
