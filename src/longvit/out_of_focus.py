"""Out-of-focus squares: the known answer of the demo, made from sharp regions of a slide.

A square of a region is blurred as a scanner does that misses the focus. Its mean colour stays, so colour tells nothing.
The mosaic shows regions side by side in one image, every second one with such a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLUR_UM = 1.25
"""Standard deviation of the Gaussian blur."""
_CANDIDATES = 4


@dataclass(frozen=True)
class Square:
    """Square of an image, in its pixels."""

    x_px: int
    y_px: int
    side_px: int

    def moved(self, x_px: int, y_px: int) -> Square:
        """The same square in an image whose origin is at (-x_px, -y_px)."""
        return Square(self.x_px + x_px, self.y_px + y_px, self.side_px)


def draw_square(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> Square:
    """Square of half the side of a region uint8 (side, side, 3): of `_CANDIDATES` random places that with most edges.

    Glass looks the same in and out of focus.
    """
    side_px = len(pixels) // 2
    places = rng.integers(0, len(pixels) - side_px + 1, (_CANDIDATES, 2))
    edges = np.abs(np.diff(pixels.astype(np.float32).mean(2), axis=0))
    y_px, x_px = max(places.tolist(), key=lambda p: edges[p[0] : p[0] + side_px, p[1] : p[1] + side_px].sum())
    return Square(x_px, y_px, side_px)


def out_of_focus(pixels: NDArray[np.uint8], square: Square, mpp: float) -> NDArray[np.uint8]:
    """The image uint8 (height, width, 3) with the square blurred by `BLUR_UM`.

    >>> import numpy as np
    >>> from longvit.out_of_focus import Square, out_of_focus
    >>> lines = np.zeros((64, 64, 3), np.uint8); lines[::2] = 200
    >>> blurred = out_of_focus(lines, Square(0, 0, 32), mpp=0.5)
    >>> int(blurred[16, 16, 0]), int(blurred[48, 48, 0])
    (101, 200)
    """
    from PIL import Image, ImageFilter

    rows, columns = (slice(start, start + square.side_px) for start in (square.y_px, square.x_px))
    result = pixels.copy()
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR_UM / mpp))
    result[rows, columns] = np.asarray(blurred)[rows, columns]
    return result


@dataclass(frozen=True)
class Mosaic:
    """Regions side by side in one image, row by row; places left over at the end are white."""

    pixels: NDArray[np.uint8]
    """(rows * side, columns * side, 3)."""
    squares: tuple[Square, ...]
    """Squares that are out of focus."""
    region_px: int
    """Side of a region."""
    regions: int
    """Number of regions."""

    def truth_at(self, x_px: NDArray[np.float64], y_px: NDArray[np.float64]) -> tuple[NDArray[np.bool_], ...]:
        """For each point whether it is in a region, and whether it is out of focus."""
        columns = self.pixels.shape[1] // self.region_px
        number = y_px // self.region_px * columns + x_px // self.region_px
        inside = (x_px >= 0) & (x_px < self.pixels.shape[1]) & (y_px >= 0) & (number < self.regions)
        blurred = np.zeros_like(inside)
        for square in self.squares:
            right, bottom = square.x_px + square.side_px, square.y_px + square.side_px
            blurred |= (x_px >= square.x_px) & (x_px < right) & (y_px >= square.y_px) & (y_px < bottom)
        return inside, blurred


def make_mosaic(regions: Sequence[NDArray[np.uint8]], columns: int, mpp: float, seed: int = 0) -> Mosaic:
    """Mosaic of square regions in so many columns; every second one, in random order, has a square out of focus."""
    rng = np.random.default_rng(seed)
    side_px = len(regions[0])
    pixels = np.full((-(-len(regions) // columns) * side_px, columns * side_px, 3), 255, np.uint8)
    chosen = set(rng.permutation(len(regions))[: (len(regions) + 1) // 2].tolist())
    squares = []
    for number, region in enumerate(regions):
        y_px, x_px = (side_px * place for place in divmod(number, columns))
        if number in chosen:
            square = draw_square(rng, region)
            squares.append(square.moved(x_px, y_px))
            region = out_of_focus(region, square, mpp)
        pixels[y_px : y_px + side_px, x_px : x_px + side_px] = region
    return Mosaic(pixels, tuple(squares), side_px, len(regions))
