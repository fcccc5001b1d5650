"""Colours of a crop, changed as DINO's code changes them: ColorJitter, greyscale, blur, solarise.

    brightness  f · x                                      contrast   f · x + (1 − f) · mean grey of the crop
    saturation  f · x + (1 − f) · grey of the pixel        hue        the hue of HSV turned, S and V kept
    grey        0.299 R + 0.587 G + 0.114 B

each cut off at 0 and 255, which is what torchvision does through Pillow's ImageEnhance. What differs: the steps run in
float32 and are rounded once, at the end, not after each; the blur is a Gaussian, cut off at 3.5 σ, where Pillow's is
three box filters; the mean is that of some of the region's pixels under the crop. The pixels go through all steps some
rows at a time, so that they stay in the cache of one core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Step = tuple[Literal["brightness", "contrast", "saturation", "hue"], float]
"""A change and its size: the factor f (1 changes nothing), for the hue the share of a full turn (0 changes nothing)."""

GREY = (0.299, 0.587, 0.114)
_SIGN_BIT = np.int32(-(2**31))
# The blur is a product with a band matrix of so many rows.
_BAND = 32
# A Gaussian that is narrower changes no pixel by more than a third of a grey level.
LEAST_BLUR_PX = 0.25


class ColourJitter:
    """Steps in their order. sample: some of the crop's pixels, float32 (3, …), 0 … 255, for the mean of the contrast:
    that of the crop when its turn comes."""

    def __init__(self, steps: Sequence[Step], sample: Floats) -> None:
        self._steps: list[tuple[str, float, float]] = []
        for name, amount in steps:
            if name == "contrast":
                self._steps.append((name, float(amount), float(grey_of(self(sample.copy())).mean(dtype=np.float64))))
            else:
                self._steps.append((name, float(amount), 0.0))

    def __call__(self, x: Floats) -> Floats:
        """Pixels (3, …), 0 … 255, changed in place. A factor below 1 leads nowhere beyond 0 … 255."""
        for name, amount, mean in self._steps:
            if name == "hue":
                _turn_hue(x, amount)
                continue
            if name == "saturation":
                grey = grey_of(x)
                grey *= 1 - amount
            x *= amount
            if name == "contrast":
                x += (1 - amount) * mean
            elif name == "saturation":
                x += grey
            if amount > 1:
                np.clip(x, 0, 255, out=x)
        return x


def solarise(out: NDArray[np.uint8]) -> None:
    """In place: what is 128 or brighter becomes its negative."""
    np.minimum(out, ~out, out=out)


def grey_of(x: Floats) -> Floats:
    """(3, …) → (…)."""
    red, green, blue = GREY
    grey = x[0] * np.float32(red)
    part = x[1] * np.float32(green)
    grey += part
    np.multiply(x[2], np.float32(blue), out=part)
    grey += part
    return grey


def _turn_hue(x: Floats, turn: float) -> None:
    """On (3, …), in place: the hue of HSV turned by a share of a full turn, at most a sixth of one.

    Let M ≥ d ≥ m be the three channels of a pixel, C = M − m, and h its hue as seen from a channel's own (of red from
    red: 0) in sixths of a turn, −3 … 3. Then that channel is m + C · min(max(2 − |h|, 0), 1). For each of them, p being
    the channel, C |h| = C + M + d − 2 p, without a division, and h has the sign of the difference of the other two.
    """
    sixths = np.float32(6 * turn)
    assert abs(sixths) <= 1
    most, least = np.maximum(x[0], x[1]), np.minimum(x[0], x[1])
    between = np.maximum(np.minimum(most, x[2]), least)
    np.maximum(most, x[2], out=most)
    np.minimum(least, x[2], out=least)
    chroma = most - least
    between += chroma
    between += most
    sign = np.empty_like(x)
    np.subtract(x[1], x[2], out=sign[0])
    np.subtract(x[2], x[0], out=sign[1])
    np.subtract(x[0], x[1], out=sign[2])
    x *= 2
    np.subtract(between, x, out=x)  # C |h|
    bits, signs = x.view(np.int32), sign.view(np.int32)
    signs &= _SIGN_BIT  # copysign, five times as fast
    bits ^= signs
    x += chroma * sixths
    np.abs(x, out=x)
    chroma *= 2
    chroma += least
    np.subtract(chroma, x, out=x)
    np.maximum(x, least, out=x)
    np.minimum(x, most, out=x)


class Blur:
    """A Gaussian of σ `sigma_px` over planes of side_px × side_px; beyond its rims a crop goes on as it ends there.

    Rows are blurred along x as they come, then all along y. `_BAND` pixels at a time are a product with the same band
    matrix: more products than the sum has, at the speed of a matrix product.
    """

    def __init__(self, sigma_px: float, planes: int, side_px: int) -> None:
        self._sigma_px, self._reach, self._side_px = sigma_px, math.ceil(3.5 * sigma_px), side_px
        self._rows = np.empty((planes, side_px + 2 * self._reach, side_px), np.float32)

    def add(self, x: Floats, first: int) -> None:
        """(planes, rows, side_px), from row `first` on."""
        planes, rows, side_px = x.shape
        reach = self._reach
        wide = np.empty((planes * rows, side_px + 2 * reach), np.float32)
        wide[:, reach : reach + side_px] = x.reshape(-1, side_px)
        wide[:, :reach] = wide[:, reach : reach + 1]
        wide[:, reach + side_px :] = wide[:, reach + side_px - 1 : reach + side_px]
        narrow = np.empty((planes * rows, side_px), np.float32)
        for at in range(0, side_px, _BAND):
            size = min(_BAND, side_px - at)
            band = _gaussian_band(self._sigma_px, size)
            np.matmul(wide[:, at : at + size + 2 * reach], band.T, out=narrow[:, at : at + size])
        self._rows[:, reach + first : reach + first + rows] = narrow.reshape(x.shape)

    def finish(self, out: NDArray[np.uint8]) -> None:
        """Fills `out`, uint8 (3, side_px, side_px), once all rows are there; one plane is taken for all three."""
        rows, reach, side_px = self._rows, self._reach, self._side_px
        rows[:, :reach] = rows[:, reach : reach + 1]
        rows[:, reach + side_px :] = rows[:, reach + side_px - 1 : reach + side_px]
        for at in range(0, side_px, _BAND):
            size = min(_BAND, side_px - at)
            sums = _gaussian_band(self._sigma_px, size) @ rows[:, at : at + size + 2 * reach]
            sums += 0.5
            out[:, at : at + size] = sums.astype(np.uint8)


@lru_cache(maxsize=8)
def _gaussian_band(sigma_px: float, size: int) -> Floats:
    """(size, size + 2 · reach): row i holds the Gaussian from column i on."""
    reach = math.ceil(3.5 * sigma_px)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    kernel /= kernel.sum()
    width = size + 2 * reach
    shifted = np.zeros((size, width + 1), np.float32)  # a row longer by one: read without it, the kernel moves on
    shifted[:, : len(kernel)] = kernel
    return shifted.reshape(-1)[: size * width].reshape(size, width)
