"""Heat map: scores of rectangles of a slide in level-0 px, and the same scores as a raster over the whole slide.

Made of the patch contributions of a LongViT (`of_contributions`) or of the tile scores of any system (`of_tiles`).
Every format is written from it, so that one conversion of coordinates serves all.

N rectangles, H × W raster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box

if TYPE_CHECKING:
    from longvit.interpret import Contributions
    from longvit.slides.canvas import Canvas

MOST_RASTER_PX = 2**24
"""Pixels up to which the pixels of a raster stay as square as those of the canvas."""
_PX_PER_TILE = 4
"""Raster pixels along the side of a tile: a tile's edge is right within an eighth of its side."""


@dataclass(frozen=True)
class HeatMap:
    """Scores of rectangles of one slide."""

    slide_id: str
    measurement: str
    """Name of the score, as other programs show it: "contribution to tumour"."""
    bounds: Box
    """Part of the slide that the raster spans, in level-0 px. QuPath counts from its corner."""
    mpp: Mpp | None
    boxes: NDArray[np.float64] = field(repr=False)
    """(N, 4): left, top, right, bottom in level-0 px of the whole file."""
    scores: NDArray[np.float32] = field(repr=False)
    """(N,)."""
    raster: NDArray[np.float32] = field(repr=False)
    """(H, W): the score at each pixel; NaN where there is none. Row 0 is at the top of the bounds."""
    is_signed: bool
    """True where scores below 0 are evidence against the class."""
    meaning: Mapping[str, Any]
    """Meaning of the scores, ready for JSON: class, unit, score and constant."""

    @property
    def raster_mpp(self) -> tuple[float, float] | None:
        """µm per raster pixel along x and y; None where the resolution of the slide is unknown."""
        if self.mpp is None:
            return None
        height, width = self.raster.shape
        return self.mpp.x * self.bounds.width / width, self.mpp.y * self.bounds.height / height

    def highest(self, n: int) -> NDArray[np.int64]:
        """Indices of the n highest scores, the highest first; equal scores in the order of the rectangles."""
        return np.argsort(-self.scores, kind="stable")[:n]

    def lowest(self, n: int) -> NDArray[np.int64]:
        """Indices of the n lowest scores, the lowest first."""
        return np.argsort(self.scores, kind="stable")[:n]


def of_contributions(slide_id: str, canvas: Canvas, contributions: Contributions) -> HeatMap:
    """Heat map of patch contributions, one rectangle per patch that the slide covers, cut at the slide's edge.

    A padded canvas has patches outside the slide. They have no rectangle; the sum of their contributions is the fact
    `outside_the_slide`.
    """
    placement, values = canvas.placement, contributions.per_patch
    box, patch_px = placement.image_box, placement.side_px / values.shape[1]
    columns = _covered(int(box.x), int(box.right), int(patch_px), values.shape[1])
    rows = _covered(int(box.y), int(box.bottom), int(patch_px), values.shape[0])
    x_px = np.clip(np.arange(columns[0], columns[-1] + 2) * patch_px, box.x, box.right)
    y_px = np.clip(np.arange(rows[0], rows[-1] + 2) * patch_px, box.y, box.bottom)
    x, y = placement.to_level0(x_px, y_px)
    left, top = np.meshgrid(x[:-1], y[:-1])
    right, bottom = np.meshgrid(x[1:], y[1:])
    shown = values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return HeatMap(
        slide_id=slide_id,
        measurement=f"contribution to {contributions.class_name}",
        bounds=placement.bounds,
        mpp=canvas.source.mpp,
        boxes=np.stack([part.ravel() for part in (left, top, right, bottom)], 1),
        scores=shown.ravel().astype(np.float32),
        raster=_raster_of_patches(values, box, int(patch_px)),
        is_signed=True,
        meaning={
            "class": contributions.class_name,
            "against": contributions.others,
            "unit": contributions.unit,
            "score": contributions.score,
            "constant": contributions.constant,
            "probability": contributions.probability,
            "outside_the_slide": float(values.sum(dtype=np.float64) - shown.sum(dtype=np.float64)),
        },
    )


def of_tiles(
    slide_id: str,
    scores: NDArray[np.float32],
    coords: NDArray[Any],
    tile_px: float,
    bounds: Box,
    mpp: Mpp | None,
    *,
    measurement: str = "attention",
    meaning: Mapping[str, Any] | None = None,
) -> HeatMap:
    """Heat map of tile scores. `coords`: (N, 2) top-left corners, `tile_px`: side of a tile, both in level-0 px.

    The raster has four pixels along a tile, each with the score of the tile at its centre. Where tiles overlap, the
    higher score counts.
    """
    corners = np.asarray(coords, np.float64)
    width = max(1, math.ceil(bounds.width / tile_px * _PX_PER_TILE))
    height = max(1, math.ceil(bounds.height / tile_px * _PX_PER_TILE))
    if (shrink := math.sqrt(width * height / MOST_RASTER_PX)) > 1:
        width, height = max(1, int(width / shrink)), max(1, int(height / shrink))
    scale = np.array([width / bounds.width, height / bounds.height])
    first = np.ceil((corners - (bounds.x, bounds.y)) * scale - 0.5).astype(np.int64).clip(min=0)
    end = np.ceil((corners + tile_px - (bounds.x, bounds.y)) * scale - 0.5).astype(np.int64).clip(min=0)
    raster = np.full((height, width), np.nan, np.float32)
    for i in np.argsort(scores, kind="stable"):
        raster[first[i, 1] : end[i, 1], first[i, 0] : end[i, 0]] = scores[i]
    return HeatMap(
        slide_id=slide_id,
        measurement=measurement,
        bounds=bounds,
        mpp=mpp,
        boxes=np.concatenate([corners, corners + tile_px], 1),
        scores=np.asarray(scores, np.float32),
        raster=raster,
        is_signed=False,
        meaning=dict(meaning or {}),
    )


def _covered(first_px: int, end_px: int, patch_px: int, n: int) -> range:
    """Indices of the patches that cover canvas px [first, end)."""
    return range(first_px // patch_px, min(n, math.ceil(end_px / patch_px)))


def _raster_of_patches(values: NDArray[np.float32], box: Box, patch_px: int) -> NDArray[np.float32]:
    """Raster over the image box whose pixel edges include the edges of all patches.

    On a stretched canvas a pixel is a patch. On a padded canvas the box begins inside a patch, so that the pixels are
    the largest that fit. They are square unless there would be too many.
    """
    x_px = math.gcd(patch_px, int(box.x), int(box.width))
    y_px = math.gcd(patch_px, int(box.y), int(box.height))
    both_px = math.gcd(x_px, y_px)
    if box.width * box.height / both_px**2 <= MOST_RASTER_PX:
        x_px = y_px = both_px
    columns = (int(box.x) + np.arange(0, int(box.width), x_px)) // patch_px
    rows = (int(box.y) + np.arange(0, int(box.height), y_px)) // patch_px
    return np.ascontiguousarray(values[rows[:, None], columns[None, :]], np.float32)
