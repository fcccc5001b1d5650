"""Augmentations of a canvas that keep its diagnosis: the 8 flips and quarter turns, stain, or colour.

All of it is NumPy on one image. It runs in loader threads, where torch would start a thread pool per thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from longvit.errors import InputError

Augmentation = Literal["none", "flips", "flips+stain", "flips+colour"]

# Optical density of haematoxylin, eosin and a rest (Ruifrok and Johnston 2001), one stain per row.
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
STAIN_SIGMA = 0.2


def augment(
    pixels: np.ndarray, kind: Augmentation, rng: np.random.Generator, *, orientation: Orientation | None = None
) -> np.ndarray:
    """Augments uint8 (S, S, 3) to the same shape. `rng` determines the result, so seed it by (seed, epoch, index). May
    return a view.

    "flips": one of the 8 symmetries of the square. "flips+stain": then each stain's density is scaled by up to
    ±STAIN_SIGMA and shifted by up to ± a quarter of it, as between laboratories and scanners. "flips+colour": then any
    hue, a saturation of 0 to 1.5 and a density of 2/3 to 3/2 of the original. Colour then carries no information, and
    only structure can be learned. It follows the strong hue shifts of Tellez et al. 2019, who found them best across
    laboratories.

    `orientation`: the result of `draw_orientation` on the same `rng`, where `pixels` are a part of the canvas.
    """
    orientation = draw_orientation(kind, rng) if orientation is None else orientation
    if kind == "none":
        return pixels
    pixels = orientation(pixels)
    if kind == "flips+stain":
        scale = rng.uniform(1 - STAIN_SIGMA, 1 + STAIN_SIGMA, 3)
        shift = rng.uniform(-STAIN_SIGMA / 4, STAIN_SIGMA / 4, 3)
        pixels = restain(pixels, scale, shift)
    elif kind == "flips+colour":
        gain = float(np.exp(rng.uniform(-1, 1) * np.log(1.5)))
        pixels = recolour(pixels, rng.uniform(0, 2 * np.pi), rng.uniform(0, 1.5), gain)
    return pixels


@dataclass(frozen=True)
class Orientation:
    """One of the 8 symmetries of the square: counter-clockwise quarter turns, then a mirror from left to right."""

    turns: int = 0
    mirror: bool = False

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(height, width, 3) in this orientation; a view."""
        pixels = np.rot90(pixels, self.turns)
        return pixels[:, ::-1] if self.mirror else pixels

    def source(self, side_px: int, first_px: int, end_px: int) -> tuple[int, int, int, int]:
        """Source of the rows [first, end) of the oriented canvas: (first row, end row, first column, end column).

        That part, oriented by itself, is those rows.
        """
        reversed_px = side_px - end_px, side_px - first_px
        if self.turns == 0:
            return first_px, end_px, 0, side_px
        if self.turns == 1:
            return 0, side_px, *reversed_px
        if self.turns == 2:
            return *reversed_px, 0, side_px
        return 0, side_px, first_px, end_px


def draw_orientation(kind: Augmentation, rng: np.random.Generator) -> Orientation:
    """First random draw of an augmentation."""
    if kind not in get_args(Augmentation):
        raise InputError(f"augmentation {kind!r}: choose {', '.join(get_args(Augmentation))}")
    return Orientation() if kind == "none" else Orientation(int(rng.integers(4)), bool(rng.integers(2)))


def restain(pixels: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Optical density -> stains -> stain * scale + shift -> optical density -> uint8; white changes by the shift
    only."""
    stains = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    return _in_density(pixels, np.linalg.inv(stains) @ np.diag(scale) @ stains, shift @ stains)


def recolour(pixels: np.ndarray, hue: float, saturation: float, gain: float) -> np.ndarray:
    """Rotates the optical density by `hue` (radians) about the grey axis, scales its chroma, then all of it.

    (0, 1, 1) changes nothing, saturation 0 leaves greys; white stays white.
    """
    grey = np.full((3, 3), 1 / 3)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    chroma = np.eye(3) - grey
    turn = np.cos(hue) * chroma + np.sin(hue) * axis  # Rodrigues about (1, 1, 1)
    return _in_density(pixels, gain * (grey + saturation * turn), np.zeros(3))


def _in_density(pixels: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """uint8 -> density @ matrix + offset -> uint8, rounded and clipped."""
    matrix, offset = matrix.astype(np.float32), offset.astype(np.float32)
    out = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), 256):  # in strips: a canvas of 32,768² as float32 would take 13 GB
        density = _DENSITY[pixels[start : start + 256]] @ matrix
        density += offset
        np.exp(np.negative(density, out=density), out=density)
        density *= 256
        density -= 0.5  # minus the 1 of _DENSITY, plus a half to round
        out[start : start + 256] = np.clip(density, 0, 255, out=density)
    return out
