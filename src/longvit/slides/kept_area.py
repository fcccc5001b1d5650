"""Kept area of a slide on a canvas: pixels whose centre is outside it become background.

A canvas pixel (column, row) has its centre at (column + 0.5, row + 0.5) canvas px. `Placement.to_level0` maps it to
level-0 px, where the area decides. So the pixels depend neither on the height of a strip nor on the threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longvit.slides.pixel_reader import Rgb
from longvit.slides.placement import Placement

# Canvas pixels whose membership is computed at once.
_MOST_PX = 2**22


class KeptPoints(Protocol):
    """Area of a slide that is kept, in level-0 px; see `longvit.annotations.slide_area`."""

    def inside(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """(len(y), len(x)): True where the point (x[column], y[row]) is kept; both in increasing order."""


class KeptArea(KeptPoints, Protocol):
    """Area with its provenance."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Provenance of the area, ready for JSON."""


def blank_outside(
    pixels: NDArray[np.uint8], first_row: int, placement: Placement, area: KeptArea, background: Rgb
) -> None:
    """Fills the pixels outside the area with background, in place.

    `pixels`: rows of the canvas from `first_row`, RGB uint8 (rows, side, 3).
    """
    height, width = pixels.shape[:2]
    step = max(1, _MOST_PX // width)
    for top in range(0, height, step):
        part = pixels[top : top + step]
        x, y = placement.to_level0(
            np.arange(width) + 0.5, np.arange(first_row + top, first_row + top + len(part)) + 0.5
        )
        part[~area.inside(x, y)] = background
