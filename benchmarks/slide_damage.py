"""Synthetic damage of real fields: blur, a fold, an air bubble, a pen stroke; for `quality.py` and its tests.

Fields are uint8 (height, width, 3). Fold and pen add optical densities, as layers on a slide do. The sizes are in µm,
so damage is alike on every field. Random numbers come from the generator that the caller gives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Field = NDArray[np.uint8]
INKS = {
    "blue": (1.0, 0.62, 0.15),
    "green": (1.05, 0.35, 0.75),
    "red": (0.08, 0.95, 0.85),
    "black": (1.1, 1.1, 1.05),
}
"""Optical densities of red, green and blue light; chosen by eye after felt pens on glass, not measured."""


def blur(field: Field, sigma_px: float) -> Field:
    """The field out of focus: a Gaussian filter, and rounding to grey levels."""
    return np.rint(gaussian_filter(field.astype(np.float32), (sigma_px, sigma_px, 0))).clip(0, 255).astype(np.uint8)


def fold(field: Field, um_per_px: float, rng: np.random.Generator) -> Field:
    """A bent band of 30 to 80 µm in which tissue from 60 µm away lies on top, in one or two layers."""
    density = _density(field)
    shift = [round(sign * 60 / um_per_px) for sign in rng.choice([-1, 1], 2)]
    above = gaussian_filter(np.roll(density, shift, (0, 1)), (2 / um_per_px, 2 / um_per_px, 0))
    return _light(density + _band(field, um_per_px, rng, (30, 80)) * rng.uniform(1, 2) * above)


def bubble(field: Field, um_per_px: float, rng: np.random.Generator) -> Field:
    """An oval of 160 to 320 µm: pale and out of focus inside, with a grey rim."""
    height, width = field.shape[:2]
    y, x = np.mgrid[:height, :width]
    radius = rng.uniform(80, 160)
    centre_y, centre_x, squeeze = (
        rng.uniform(0.35, 0.65) * height,
        rng.uniform(0.35, 0.65) * width,
        rng.uniform(0.8, 1.25),
    )
    distance = np.hypot((y - centre_y) * squeeze, (x - centre_x) / squeeze) * um_per_px
    inside = np.clip((radius - distance) / 4 + 0.5, 0, 1)[..., None]
    rim = np.exp(-(((distance - radius) / rng.uniform(6, 12)) ** 2))[..., None] * rng.uniform(0.4, 0.9)
    density = _density(field)
    hazy = gaussian_filter(density, (12 / um_per_px, 12 / um_per_px, 0)) * rng.uniform(0.3, 0.7)
    return _light(density * (1 - inside) + hazy * inside + rim)


def pen(field: Field, um_per_px: float, rng: np.random.Generator, colour: str) -> Field:
    """A bent stroke of 150 to 300 µm in an ink of `INKS`, a little uneven."""
    stroke = _band(field, um_per_px, rng, (150, 300))
    noise = gaussian_filter(rng.standard_normal(field.shape[:2]).astype(np.float32), 20 / um_per_px)
    strength = np.clip(rng.uniform(0.8, 1.3) * (1 + 0.1 * noise / noise.std()), 0, None)
    return _light(_density(field) + stroke * strength[..., None] * np.array(INKS[colour], np.float32))


def _density(field: Field) -> NDArray[np.float32]:
    return np.asarray(-np.log10(np.maximum(field.astype(np.float32), 1) / 255), np.float32)


def _light(density: NDArray[np.float32]) -> Field:
    return np.rint(255 * 10**-density).clip(0, 255).astype(np.uint8)


def _band(
    field: Field, um_per_px: float, rng: np.random.Generator, width_um: tuple[float, float]
) -> NDArray[np.float32]:
    """Coverage 0 … 1, (height, width, 1), of a bent band through the field."""
    height, width = field.shape[:2]
    wide, angle = rng.uniform(*width_um), rng.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
    across = (y - height / 2) * np.cos(angle) - (x - width / 2) * np.sin(angle)
    side = max(height, width)
    bend = np.sin(along / side * np.pi * rng.uniform(0.5, 2) + rng.uniform(0, 6))
    centre = rng.uniform(-0.15, 0.15) * side + rng.uniform(-0.12, 0.12) * side * bend
    return np.clip((wide / 2 - np.abs(across - centre) * um_per_px) / 4 + 0.5, 0, 1)[..., None].astype(np.float32)
