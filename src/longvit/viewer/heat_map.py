"""Heat map of a slide: values of canvas patches, colours of patches, or scores of tiles, painted on any area.

A pixel shows the value at its centre (nearest neighbour), which `Placement` maps from level-0 px to the canvas. So the
map is right for stretched and padded canvases, for bounds with an offset and for slides that are not square.

K layers (classes, time bins), R × C patches, N tiles.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvit.slides.placement import Box, Placement

PERCENTILE = 99.0
"""The colour scale ends at this percentile of the absolute values."""
COLOURS = {
    "red-blue": "RdBu_r",
    "orange-purple": "PuOr_r",
    "viridis": "viridis",
    "cividis": "cividis",
}
"""Colour maps that colour-blind readers can tell apart; the first two are for signed values."""


@dataclass(frozen=True)
class Layer:
    """One map of values over a slide."""

    name: str
    """Class, time bin or system."""
    meaning: str
    """Meaning of a value, one sentence."""
    is_signed: bool
    """True where values are for (positive) and against (negative)."""
    limit: float
    """Value at which the colour scale ends."""


@dataclass(frozen=True)
class Patch:
    """A patch or tile with its value."""

    box: Box
    """Area in level-0 px."""
    value: float


class HeatMap(ABC):
    """Heat map of one slide."""

    layers: tuple[Layer, ...]

    def __init__(self) -> None:
        self._extremes: dict[tuple[int, int], tuple[list[Patch], list[Patch]]] = {}

    @abstractmethod
    def values(self, layer: int, box: Box, width: int, height: int) -> NDArray[np.float32]:
        """Values (height, width) at the centres of the pixels of an area (level-0 px); NaN where there is none."""

    @abstractmethod
    def ranked(self, layer: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Numbers of the patches whose centre is on the slide, from the lowest to the highest, and their values."""

    @abstractmethod
    def patch_box(self, number: int) -> Box:
        """Area of a patch in level-0 px."""

    def extremes(self, layer: int, count: int) -> tuple[list[Patch], list[Patch]]:
        """Patches with the highest values, the highest first, and those with the lowest, the lowest first.

        No patch is in both; there are at most `count` in each.
        """
        if (layer, count) not in self._extremes:
            numbers, values = self.ranked(layer)
            count_here = min(count, len(numbers) // 2) if len(numbers) > 1 else len(numbers)
            patches = [
                [Patch(self.patch_box(int(numbers[i])), float(values[i])) for i in places]
                for places in (range(len(numbers) - 1, len(numbers) - 1 - count_here, -1), range(count_here))
            ]
            self._extremes[layer, count] = patches[0], patches[1]
        return self._extremes[layer, count]

    def png(self, layer: int, box: Box, width: int, height: int, colours: str, threshold: float) -> bytes:
        """PNG of an area. Values whose share of the limit is below `threshold` are transparent."""
        values, shown = self.values(layer, box, width, height), self.layers[layer]
        share = values / shown.limit
        with np.errstate(invalid="ignore"):
            if shown.is_signed:
                index = 1 + np.round((np.clip(share, -1, 1) + 1) * 127)
            else:
                index = 1 + np.round(np.clip(share, 0, 1) * 254)
            is_hidden = np.isnan(values) | (np.abs(share) < threshold)
        image = Image.fromarray(np.where(is_hidden, 0, index).astype(np.uint8), "P")
        image.putpalette(palette(colours))
        return _encoded(image, transparency=0)


class PatchHeat(HeatMap):
    """Values of the patches of a canvas, float32 (K, R, C)."""

    def __init__(self, placement: Placement, values: NDArray[np.float32], layers: tuple[Layer, ...]) -> None:
        super().__init__()
        assert len(layers) == len(values)
        self.placement, self.per_patch, self.layers = placement, values, layers

    def values(self, layer: int, box: Box, width: int, height: int) -> NDArray[np.float32]:
        rows, columns = patch_of_pixels(self.placement, self.per_patch.shape[1:], box, width, height)
        grid = self.per_patch[layer]
        inside = (rows >= 0)[:, None] & (columns >= 0)[None]
        return np.where(inside, grid[np.maximum(rows, 0)[:, None], np.maximum(columns, 0)[None]], np.float32(np.nan))

    def ranked(self, layer: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        image, (rows, columns) = self.placement.image_box, self.per_patch.shape[1:]
        y = (np.arange(rows) + 0.5) * (self.placement.side_px / rows)
        x = (np.arange(columns) + 0.5) * (self.placement.side_px / columns)
        inside = ((y >= image.y) & (y < image.bottom))[:, None] & ((x >= image.x) & (x < image.right))[None]
        numbers, values = np.flatnonzero(inside), self.per_patch[layer][inside]
        order = np.argsort(values, kind="stable")
        return numbers[order], values[order]

    def patch_box(self, number: int) -> Box:
        rows, columns = self.per_patch.shape[1:]
        row, column = divmod(number, columns)
        high, wide = self.placement.side_px / rows, self.placement.side_px / columns
        left, top = self.placement.to_level0(column * wide, row * high)
        down_x, down_y = self.placement.downsample
        return Box(left, top, wide * down_x, high * down_y)


class PatchColours(HeatMap):
    """Colours of the patches of a canvas, uint8 (R, C, 3)."""

    def __init__(self, placement: Placement, colours: NDArray[np.uint8], layer: Layer) -> None:
        super().__init__()
        self.placement, self.colours, self.layers = placement, colours, (layer,)

    def values(self, layer: int, box: Box, width: int, height: int) -> NDArray[np.float32]:
        raise NotImplementedError("colours have no values")

    def ranked(self, layer: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        return np.empty(0, np.intp), np.empty(0, np.float32)

    def patch_box(self, number: int) -> Box:
        raise NotImplementedError("colours have no order")

    def png(self, layer: int, box: Box, width: int, height: int, colours: str, threshold: float) -> bytes:
        rows, columns = patch_of_pixels(self.placement, self.colours.shape[:2], box, width, height)
        inside = (rows >= 0)[:, None] & (columns >= 0)[None]
        pixels = np.zeros((height, width, 4), np.uint8)
        pixels[..., :3] = self.colours[np.maximum(rows, 0)[:, None], np.maximum(columns, 0)[None]]
        pixels[..., 3] = 255 * inside
        return _encoded(Image.fromarray(pixels))


class TileHeat(HeatMap):
    """Scores (N,) of square tiles with corners (N, 2) in level-0 px. Where tiles overlap, the highest score counts."""

    def __init__(
        self, corners: NDArray[np.int64], side_level0_px: float, scores: NDArray[np.float32], layer: Layer
    ) -> None:
        super().__init__()
        order = np.argsort(scores, kind="stable")
        self.corners, self.side, self.scores = corners[order].astype(np.float64), side_level0_px, scores[order]
        self.layers = (layer,)

    def values(self, layer: int, box: Box, width: int, height: int) -> NDArray[np.float32]:
        painted = np.full((height, width), np.nan, np.float32)
        step = np.array([box.width / width, box.height / height])
        # First pixel whose centre is at or beyond an edge: i + 0.5 >= edge / step.
        first = np.ceil((self.corners - [box.x, box.y]) / step - 0.5).astype(np.int64)
        end = np.ceil((self.corners + self.side - [box.x, box.y]) / step - 0.5).astype(np.int64)
        first, end = first.clip(0, [width, height]), end.clip(0, [width, height])
        for i in np.flatnonzero((first < end).all(1)):
            (x, y), (x_end, y_end) = first[i], end[i]
            painted[y:y_end, x:x_end] = self.scores[i]
        return painted

    def ranked(self, layer: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        return np.arange(len(self.scores)), self.scores

    def patch_box(self, number: int) -> Box:
        x, y = self.corners[number].tolist()
        return Box(x, y, self.side, self.side)


def patch_of_pixels(
    placement: Placement, shape: tuple[int, ...], box: Box, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row of patches (height,) and column (width,) at the centres of the pixels of an area; -1 outside the slide."""
    x = box.x + (np.arange(width) + 0.5) * (box.width / width)
    y = box.y + (np.arange(height) + 0.5) * (box.height / height)
    x_canvas, y_canvas = placement.to_canvas(x, y)
    bounds = placement.bounds
    rows = np.floor(y_canvas * (shape[0] / placement.side_px)).astype(np.int64)
    columns = np.floor(x_canvas * (shape[1] / placement.side_px)).astype(np.int64)
    rows = np.where((y >= bounds.y) & (y < bounds.bottom), rows.clip(0, shape[0] - 1), -1)
    columns = np.where((x >= bounds.x) & (x < bounds.right), columns.clip(0, shape[1] - 1), -1)
    return rows, columns


def colour_limit(values: NDArray[np.float32]) -> float:
    """Value at which a colour scale ends: the 99th percentile of the absolute values, above 0."""
    return float(np.percentile(np.abs(values), PERCENTILE)) or 1e-12


@cache
def palette(colours: str) -> bytes:
    """256 RGB entries of a colour map; entry 0 is for transparent pixels."""
    from matplotlib import colormaps

    table = colormaps[COLOURS[colours]](np.linspace(0, 1, 255))[:, :3]
    return bytes(3) + np.round(table * 255).astype(np.uint8).tobytes()


def _encoded(image: Image.Image, **settings: int) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1, **settings)
    return data.getvalue()
