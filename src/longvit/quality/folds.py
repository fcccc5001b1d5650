"""Folds of the tissue: long bands that are denser than the tissue on both sides.

Where tissue has two or three layers, its optical densities add up, in every channel. Earlier rules threshold the
difference of saturation and intensity of single pixels (Bautista and Yagi 2009; Kothari et al. 2013); dense glands and
bone pass those too. Here the second derivative of the mean optical density across a band is averaged along 320 µm, in
twelve directions. It is divided by the median density of the slide's tissue, so pale and dark stains are alike.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from longvit.quality.overview import Artefact, Overview, artefact_of

_MPP = 16.0
_SIGMA_UM = 24.0
"""Scale of the derivative; bands of 30 to 100 µm answer."""
_LENGTH_UM = 320.0
_DIRECTIONS = 12
_CAP = 0.6
"""Largest value of one pixel, so that a dark speck does not count as a band."""
_LEAST_DENSITY = 0.05
BAND = 0.35
"""Mean second derivative, in units of the tissue's density, from which a band is a fold (`benchmarks/quality.py`)."""


def find_folds(overview: Overview, apart: NDArray[np.bool_] | None = None) -> Artefact:
    """Folds of a slide, without those on `apart` (pen and bubbles, which are dark bands too).

    The score is the 98 % quantile over the tissue, in units of `BAND`.
    """
    tissue = overview.tissue.mask
    if not tissue.any():
        return artefact_of(overview, np.zeros_like(tissue), 0.0)
    density = overview.optical_density.mean(0)
    reference = max(float(np.median(density[tissue])), _LEAST_DENSITY)
    step = tuple(max(1, round(_MPP / um)) for um in overview.px_um)
    coarse = _shrunk(density, step)
    strength = _bands(coarse, tuple(um * n for um, n in zip(overview.px_um, step, strict=True)), reference)
    inside = _shrunk(tissue.astype(np.float32), step) > 0.5
    score = float(np.quantile(strength[inside], 0.98)) if inside.any() else 0.0
    found = np.repeat(np.repeat(strength > BAND, step[0], 0), step[1], 1)[: tissue.shape[0], : tissue.shape[1]]
    found &= density > reference
    return artefact_of(overview, found if apart is None else found & ~apart, score / BAND)


def _bands(density: NDArray[np.float32], px_um: tuple[float, ...], reference: float) -> NDArray[np.float32]:
    """Strength of the strongest band through each pixel, in units of `reference`."""
    from scipy.ndimage import gaussian_filter

    sigma = [_SIGMA_UM / um for um in px_um]

    def derivative(rows: int, columns: int) -> NDArray[np.float32]:
        scale = np.float32(sigma[0] ** rows * sigma[1] ** columns)
        return np.asarray(gaussian_filter(density, sigma, order=(rows, columns), mode="nearest") * scale, np.float32)

    across_rows, across_columns, mixed = derivative(2, 0), derivative(0, 2), derivative(1, 1)
    half = max(1, round(_LENGTH_UM / 2 / px_um[0]))
    best = np.zeros_like(density)
    for direction in range(_DIRECTIONS):
        angle = math.pi * direction / _DIRECTIONS
        along_x, along_y = math.cos(angle), math.sin(angle)
        second = across_columns * along_y**2 + across_rows * along_x**2 - 2 * mixed * along_x * along_y
        ridge = np.pad(np.clip(-second, 0, _CAP * reference), half)
        total = np.zeros_like(density)
        for place in range(-half, half + 1):
            top, left = half + round(place * along_y), half + round(place * along_x)
            total += ridge[top : top + density.shape[0], left : left + density.shape[1]]
        np.maximum(best, total, out=best)
    return np.asarray(best / np.float32((2 * half + 1) * reference))


def _shrunk(plane: NDArray[np.float32], step: tuple[int, ...]) -> NDArray[np.float32]:
    """Means of blocks of `step` px; the last block of a row or column is filled by repetition."""
    rows, columns = (-size % n for size, n in zip(plane.shape, step, strict=True))
    padded = np.pad(plane, ((0, rows), (0, columns)), mode="edge")
    height, width = padded.shape[0] // step[0], padded.shape[1] // step[1]
    return np.asarray(padded.reshape(height, step[0], width, step[1]).mean((1, 3)), np.float32)
