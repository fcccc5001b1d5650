"""Where a thumbnail shows tissue: stained, so more saturated than glass, and neither as bright as glass nor black.

The threshold on saturation is Otsu's (1979), as in CLAM and most of the field's pipelines, but between two bounds: on
bare glass Otsu's parts noise, and where all is tissue it parts the tissue.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Saturation (max − min) / max of 8-bit levels. Glass is seldom above 0.04, the palest eosin not below 0.08.
_SATURATION = (0.06, 0.15)
# Glass has its darkest channel above this; pen and the rim of the scanner have their brightest below that.
_GLASS, _BLACK = 225, 40


def tissue_mask(thumbnail: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """uint8 (height, width, 3), RGB → bool (height, width), True on tissue; all False on a blank slide."""
    brightest, darkest = thumbnail.max(axis=-1), thumbnail.min(axis=-1)
    saturation = (255.0 * (brightest - darkest) / np.maximum(brightest, 1)).astype(np.uint8)
    low, high = (255 * bound for bound in _SATURATION)
    threshold = min(max(otsu(saturation), low), high)
    return np.asarray((saturation > threshold) & (darkest < _GLASS) & (brightest > _BLACK))


def otsu(values: NDArray[np.uint8]) -> int:
    """The level that parts `values` with the largest variance between the two classes, ≤ it and > it."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))
