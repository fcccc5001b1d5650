"""Tissue mask of a slide at about 8 µm per pixel, made on a thumbnail.

A pixel is tissue where it is more saturated than a threshold and darker than the glass. The threshold is Otsu's (1979),
on the smoothed HSV saturation of the thumbnail. Then gaps are closed, small holes filled, small pieces dropped, and pen
marks removed. All lengths are in µm and all areas in µm², so settings have the same meaning on every scanner.

Differences from the usual recipe: colours are first divided by the colour of the slide's own glass. Otsu's threshold is
clipped to `_SATURATION`, since it splits any input: noise on a blank slide, pale from dark tissue without glass. Pen is
distinguished from stain by its absorption. With the optical density OD = -log10(I / I_glass), haematoxylin, eosin and
DAB all absorb green at least about as much as red (Ruifrok and Johnston 2001). Blue and green ink absorb red the most.
Red ink resembles blood: only pixels that absorb all green and blue and hardly any red count as red ink. Tissue under
ink is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.placement import Box

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas
    from longvit.slides.mpp import Mpp

# Glass divided by its own colour stays below 0.05 even with JPEG noise; fat and mucus begin at about 0.06, eosin has
# 0.2 to 0.4.
_SATURATION = (0.05, 0.1)
# Relative to the glass. Smears of eosin beside a section have 0.90 to 0.93 (and the saturation of pale stroma), loose
# collagen 0.75.
_BRIGHTEST = 0.9
# Scanner's black, text, black ink; the densest nuclei are as dark, but purple.
_BLACK_LUMA, _BLACK_CHROMA = 0.25, 0.12
# Glass is at least this bright and at most this tinted; without any, the whole image is tissue.
_GLASS_LUMA, _GLASS_SATURATION = 0.8, 0.1
_INK_RED_OVER_GREEN, _INK_RED_OD = 1.3, 0.4
_RED_INK_OD, _RED_INK_RED_OD = 1.0, 0.2
_CLOSE_UM = 32.0
INK_UM2, _INK_MARGIN_UM = 20_000.0, 60.0


@dataclass(frozen=True)
class TissueSettings:
    """Settings of the tissue mask.

    >>> import longvit
    >>> longvit.TissueSettings(min_piece_um2=10_000.0).mpp
    8.0
    """

    mpp: float = 8.0
    """µm per pixel of the mask, at least that of the thumbnail."""
    smooth_um: float = 12.0
    """Standard deviation of the Gaussian filter before the thresholds: about the size of a cell."""
    min_piece_um2: float = 30_000.0
    """Leave out pieces of tissue smaller than this, in µm². Two tiles of 256 px at 0.5 µm/px have 32,768 µm²."""
    max_hole_um2: float = 50_000.0
    """Fill holes in the tissue up to this size, in µm² (glands, vessels, fat cells)."""

    def __post_init__(self) -> None:
        if self.mpp <= 0:
            raise InputError(f"a tissue mask of {self.mpp:g} µm/px: more than 0")
        for name in ("smooth_um", "min_piece_um2", "max_hole_um2"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"--{name.replace('_', '-')} {value:g}: at least 0")


@dataclass(frozen=True)
class Tissue:
    """A tissue mask and its position."""

    mask: NDArray[np.bool_]
    """(height, width)."""
    bounds: Box
    """Area of the mask, in level-0 px."""
    px_um: tuple[float, float]
    """Width and height of a pixel of the mask in µm."""
    threshold: float
    """Threshold of the saturation."""
    glass: tuple[float, float, float]
    """Colour of the glass, 0 … 1."""
    ink_mm2: float
    """Area of pen marks (and of the scanner's black), with their margin."""

    @property
    def area_mm2(self) -> float:
        return float(self.mask.sum()) * self.px_um[0] * self.px_um[1] * 1e-6

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres of the mask's columns (x) and rows (y), in level-0 px."""
        height, width = self.mask.shape
        x = self.bounds.x + (np.arange(width) + 0.5) * (self.bounds.width / width)
        return x, self.bounds.y + (np.arange(height) + 0.5) * (self.bounds.height / height)

    def share(self, x_level0_px: Any, y_level0_px: Any, width_px: float, height_px: float) -> NDArray[np.float64]:
        """Tissue fraction (0 … 1) in rectangles with these corners (arrays) and this size, in level-0 px.

        It is exact: pixels of the mask may be cut. Outside the bounds there is no tissue.
        """
        height, width = self.mask.shape
        # Summed-area table, linear inside a pixel of the mask.
        sums = np.zeros((height + 1, width + 1))
        sums[1:, 1:] = self.mask.cumsum(0).cumsum(1)
        scale_x, scale_y = width / self.bounds.width, height / self.bounds.height

        def sum_above_left(x: Any, y: Any) -> NDArray[np.float64]:
            u = np.clip((np.asarray(x, float) - self.bounds.x) * scale_x, 0, width)
            v = np.clip((np.asarray(y, float) - self.bounds.y) * scale_y, 0, height)
            i, j = np.minimum(u.astype(int), width - 1), np.minimum(v.astype(int), height - 1)
            du, dv = u - i, v - j
            above = sums[j, i] * (1 - du) + sums[j, i + 1] * du
            below = sums[j + 1, i] * (1 - du) + sums[j + 1, i + 1] * du
            return np.asarray(above * (1 - dv) + below * dv)

        x, y = np.asarray(x_level0_px, float), np.asarray(y_level0_px, float)
        right, bottom = x + width_px, y + height_px
        inside = (
            sum_above_left(right, bottom) - sum_above_left(x, bottom) - sum_above_left(right, y) + sum_above_left(x, y)
        )
        return np.clip(inside / (width_px * scale_x * height_px * scale_y), 0.0, 1.0)


def tissue_of_canvas(canvas: Canvas, settings: TissueSettings | None = None) -> Tissue:
    """Tissue of a slide, from a padded or stretched canvas of it that serves as thumbnail.

    The canvas should be at least as fine as `settings.mpp`; a coarser one gives a coarser mask. The slide's resolution
    must be known.
    """
    assert canvas.source.mpp is not None, "a mask in µm needs the slide's resolution"
    box = canvas.placement.image_box
    rows, columns = slice(int(box.y), int(box.bottom)), slice(int(box.x), int(box.right))
    return find_tissue(
        canvas.pixels[rows, columns], canvas.placement.bounds, canvas.source.mpp, canvas.source.background, settings
    )


@dataclass(frozen=True)
class TissueImage:
    """Image of a slide at the resolution of its tissue mask, relative to the colour of its glass."""

    rgb: NDArray[np.float32]
    """Planes (3, height, width), 0 … 1."""
    smooth: NDArray[np.float32]
    """`rgb` after the Gaussian filter of `smooth_um`."""
    glass: tuple[float, float, float]
    """Colour of the glass, 0 … 1."""
    px_um: tuple[float, float]
    """Width and height of a pixel in µm."""


def find_tissue(
    pixels: NDArray[np.uint8],
    bounds: Box,
    mpp: Mpp,
    background: tuple[int, int, int] = (255, 255, 255),
    settings: TissueSettings | None = None,
) -> Tissue:
    """Tissue in `bounds` (level-0 px), from an image of it of any size: `pixels`, uint8 (height, width, 3).

    `mpp`: µm per level-0 px. `background`: fill colour of areas that were not scanned; it is not a sample of the glass.
    """
    settings = settings or TissueSettings()
    return tissue_in(tissue_image(pixels, bounds, mpp, background, settings), bounds, settings)


def tissue_image(
    pixels: NDArray[np.uint8], bounds: Box, mpp: Mpp, background: tuple[int, int, int], settings: TissueSettings
) -> TissueImage:
    """Image in which `tissue_in` finds the tissue. The arguments are those of `find_tissue`."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    width_um, height_um = bounds.width * mpp.x, bounds.height * mpp.y
    width = min(pixels.shape[1], max(1, round(width_um / settings.mpp)))
    height = min(pixels.shape[0], max(1, round(height_um / settings.mpp)))
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BOX)
    rgb = np.ascontiguousarray(np.moveaxis(np.asarray(image, np.float32), 2, 0)) / np.float32(255)
    glass = _glass_of(rgb, background)
    px_um = (width_um / width, height_um / height)
    rgb = np.minimum(rgb / glass[:, None, None], 1)
    sigma = (0, settings.smooth_um / px_um[1], settings.smooth_um / px_um[0])
    r, g, b = (float(c) for c in glass)
    return TissueImage(rgb, gaussian_filter(rgb, sigma, mode="nearest"), (r, g, b), px_um)


def tissue_in(image: TissueImage, bounds: Box, settings: TissueSettings) -> Tissue:
    """Tissue of an image that `tissue_image` made with the same `bounds` and `settings`."""
    px_um, rgb = image.px_um, image.smooth
    per_px = (px_um[1], px_um[0])  # as arrays count: rows first
    luma, low, high = _luma(rgb), rgb.min(0), rgb.max(0)
    saturation = (high - low) / np.maximum(high, 1e-3)
    black = is_black(rgb)
    ink = _grown(large_pieces(black | is_ink(rgb), INK_UM2, per_px), _INK_MARGIN_UM, per_px)

    countable = ~(black | ink)
    threshold = float(np.clip(otsu(saturation[countable]), *_SATURATION)) if countable.any() else _SATURATION[1]
    mask = (saturation > threshold) & (luma < _BRIGHTEST) & ~black
    mask = _closed(mask, _CLOSE_UM, per_px)
    mask = _filled(mask, settings.max_hole_um2, per_px) & ~ink
    mask = large_pieces(mask, settings.min_piece_um2, per_px)
    return Tissue(mask, bounds, px_um, threshold, image.glass, float(ink.sum()) * px_um[0] * px_um[1] * 1e-6)


def otsu(values: NDArray[Any], bins: int = 256) -> float:
    """Otsu's threshold of values in [0, 1]: the border of two classes with the largest variance between their means."""
    counts, edges = np.histogram(values, bins, range=(0, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    below, sum_below = counts.cumsum()[:-1], (counts * centres).cumsum()
    above, total = counts.sum() - below, sum_below[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sum_below[:-1] / below - (total - sum_below[:-1]) / above
        between = np.nan_to_num(below * above * gap**2)
    return float(edges[1 + between.argmax()])


def _glass_of(rgb: NDArray[np.float32], background: tuple[int, int, int]) -> NDArray[np.float32]:
    """Colour of the glass: the median of the brightest twentieth of possible glass pixels; white without any."""
    luma, low, high = _luma(rgb), rgb.min(0), rgb.max(0)
    is_filled = np.all([np.abs(plane - c / 255) < 0.5 / 255 for plane, c in zip(rgb, background, strict=True)], axis=0)
    is_candidate = ~is_filled & (luma > _GLASS_LUMA) & (high - low < _GLASS_SATURATION * high)
    if not is_candidate.any():
        return np.ones(3, np.float32)
    bright = is_candidate & (luma >= np.quantile(luma[is_candidate], 0.95))
    return np.array([np.median(plane[bright]) for plane in rgb], np.float32)


def _luma(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Luma (Rec. 601) of planes (3, height, width)."""
    return np.asarray(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2], np.float32)


def is_black(rgb: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mask of black pen and of the scanner's black, of planes (3, height, width) relative to the glass."""
    return np.asarray((_luma(rgb) < _BLACK_LUMA) & (rgb.max(0) - rgb.min(0) < _BLACK_CHROMA))


def is_ink(rgb: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mask of blue, green and (where unmistakable) red pen, of planes (3, height, width) relative to the glass."""
    red, green, blue = -np.log10(np.maximum(rgb, 1 / 255))
    blue_or_green = (red > _INK_RED_OVER_GREEN * green) & (red > _INK_RED_OD)
    return np.asarray(blue_or_green | ((np.minimum(green, blue) > _RED_INK_OD) & (red < _RED_INK_RED_OD)))


def large_pieces(mask: NDArray[np.bool_], least_um2: float, px_um: tuple[float, float]) -> NDArray[np.bool_]:
    """Mask without pieces (8-connected) below an area."""
    from scipy.ndimage import label

    if not mask.any():
        return mask
    pieces, _ = label(mask, np.ones((3, 3)))
    keep = np.bincount(pieces.ravel()) * (px_um[0] * px_um[1]) >= least_um2
    keep[0] = False
    return np.asarray(keep[pieces])


def _filled(mask: NDArray[np.bool_], most_um2: float, px_um: tuple[float, float]) -> NDArray[np.bool_]:
    """Mask with holes up to an area filled; a gap that reaches the border of the image is not a hole."""
    from scipy.ndimage import label

    gaps, _ = label(~mask)
    is_hole = np.bincount(gaps.ravel()) * (px_um[0] * px_um[1]) <= most_um2
    is_hole[np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]])] = False
    is_hole[0] = True
    return np.asarray(is_hole[gaps])


def _grown(mask: NDArray[np.bool_], by_um: float, px_um: tuple[float, float]) -> NDArray[np.bool_]:
    """Mask of the pixels whose centre is at most `by_um` from that of a pixel of `mask`.

    It is the union of the mask shifted over an ellipse, whose rows are taken from the narrow top to the wide middle.
    """
    if not mask.any():
        return mask
    height, width = mask.shape
    grown, run, reach = np.zeros_like(mask), mask.copy(), 0
    for row in range(min(int(by_um / px_um[0]) + 1, height - 1), -1, -1):
        columns = np.arange(min(int(by_um / px_um[1]) + 2, width))
        inside = int((np.sqrt((row * px_um[0]) ** 2 + (columns * px_um[1]) ** 2) <= by_um).sum())
        if not inside:
            continue
        for shift in range(reach + 1, inside):
            run[:, shift:] |= mask[:, :-shift]
            run[:, :-shift] |= mask[:, shift:]
        reach = inside - 1
        grown[row:] |= run[: height - row]
        grown[: height - row] |= run[row:]
    return grown


def _closed(mask: NDArray[np.bool_], by_um: float, px_um: tuple[float, float]) -> NDArray[np.bool_]:
    """Mask after morphological closing; tissue is assumed to continue beyond the border of the image."""
    return ~_grown(~_grown(mask, by_um, px_um), by_um, px_um)
