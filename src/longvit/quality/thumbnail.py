"""Thumbnail of a checked slide: what was found is outlined, each kind in its own colour."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvit.quality.overview import Overview

SIDE_PX = 360
COLOURS = {"tissue": (0, 150, 70), "folds": (230, 120, 0), "bubbles": (0, 150, 220), "pen": (200, 0, 160)}
"""Outline of each kind; the three artefacts differ in brightness too."""


def draw_thumbnail(overview: Overview, artefacts: Mapping[str, NDArray[np.bool_]]) -> bytes:
    """JPEG of the overview with outlines; `artefacts`: a key of `COLOURS` -> mask of the overview."""
    height, width = overview.tissue.mask.shape
    scale = SIDE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.rint(np.moveaxis(overview.rgb, 0, 2) * 255).astype(np.uint8)
    shown = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    for name, mask in {"tissue": overview.tissue.mask, **artefacts}.items():
        small = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
        if name != "tissue":  # a thin band stays visible
            small |= np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        shown[_outline(small, 1 if name == "tissue" else 2)] = COLOURS[name]
    data = io.BytesIO()
    Image.fromarray(shown).save(data, "JPEG", quality=85)
    return data.getvalue()


def _outline(mask: NDArray[np.bool_], thick_px: int) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion

    return np.asarray(mask & ~binary_erosion(mask, iterations=thick_px))
