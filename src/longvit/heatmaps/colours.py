"""Colours of a heat map: red for and blue against a class, or yellow to red; safe for colour-blind readers.

The scale ends at the 99th percentile of the absolute score, as in the plots of the package.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longvit.heatmaps.heat_map import HeatMap
from longvit.interpret import PERCENTILE

Rgb = tuple[int, int, int]
TOP_RGB: Rgb = (178, 24, 43)
BOTTOM_RGB: Rgb = (33, 102, 172)
_MOST_ALPHA = 200
"""Opacity of the strongest scores, so that the slide stays visible below them."""


def colour_limit(heat_map: HeatMap) -> float:
    """Absolute score at the end of the colour scale; above 0."""
    finite = heat_map.scores[np.isfinite(heat_map.scores)]
    return float(np.percentile(np.abs(finite), PERCENTILE)) or 1e-12 if len(finite) else 1e-12


def coloured(heat_map: HeatMap) -> NDArray[np.uint8]:
    """The raster in opaque colours, uint8 (H, W, 3); white where there is no score."""
    share = heat_map.raster / np.float32(colour_limit(heat_map))
    table = _table(heat_map.is_signed)
    index = (share + 1) / 2 if heat_map.is_signed else share
    missing = ~np.isfinite(index)
    rgb = table[(np.where(missing, 0, index).clip(0, 1) * (len(table) - 1)).round().astype(np.uint8)]
    rgb[missing] = 255
    return rgb


def transparent(heat_map: HeatMap) -> NDArray[np.uint8]:
    """The raster in colours whose opacity grows with the absolute score, uint8 (H, W, 4)."""
    share = np.abs(heat_map.raster) / np.float32(colour_limit(heat_map))
    alpha = np.nan_to_num(share, nan=0.0).clip(0, 1) * _MOST_ALPHA
    return np.dstack([coloured(heat_map), alpha.round().astype(np.uint8)])


def _table(is_signed: bool) -> NDArray[np.uint8]:
    """256 colours, uint8 (256, 3)."""
    from matplotlib import colormaps

    colours = colormaps["RdBu_r" if is_signed else "YlOrRd"](np.linspace(0, 1, 256))
    return (np.asarray(colours)[:, :3] * 255).round().astype(np.uint8)
