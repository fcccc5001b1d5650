"""Air bubbles under the cover slip: smooth areas inside a closed grey rim.

The rim refracts light of every colour, so it darkens all channels about equally. No stain does: haematoxylin absorbs
blue 0.4 times as much as green, eosin hardly any red (Ruifrok and Johnston 2001). Inside, the tissue is out of focus
and has little texture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longvit.quality.overview import Artefact, Overview, artefact_of

_GREY_OD, _GREY_EVENNESS = 0.15, 0.55
"""Least optical density of the rim in every channel, and least ratio of the lowest to the highest channel."""
_GAP_UM = 12.0
"""Gaps of the rim up to twice this are closed."""
_LEAST_UM2 = 5_000.0
"""Smallest bubble: 80 µm across."""
_LEAST_OVAL = 0.9
"""Smallest area as a fraction of the ellipse with the same second moments; an oval has 1, a hole in keratin 0.84."""
_TEXTURE = 0.7
"""Largest mean texture inside, and largest spread of the density, as fractions of the tissue's."""


def find_bubbles(overview: Overview) -> Artefact:
    """Bubbles of a slide, each with its rim. The score is the area of the largest, in units of the smallest counted."""
    from scipy.ndimage import binary_closing, binary_erosion, binary_fill_holes, find_objects, label

    density = overview.optical_density
    low, high = density.min(0), density.max(0)
    rim = (low > _GREY_OD) & (low > _GREY_EVENNESS * high)
    rim = np.asarray(binary_closing(rim, _disc(_GAP_UM, overview.px_um)))
    enclosed, n = label(np.asarray(binary_fill_holes(rim)) & ~rim)
    found, largest = np.zeros_like(rim), 0.0
    if n:
        texture, tissue = _texture(density[1]), overview.tissue.mask
        usual = float(texture[tissue].mean()) if tissue.any() else 0.0
        usual_spread = float(density[1][tissue].std()) if tissue.any() else 0.0
        for number, box in enumerate(find_objects(enclosed), 1):
            inside = enclosed[box] == number
            area = float(inside.sum()) * overview.px_um2
            if area < _LEAST_UM2 or _ovalness(inside) < _LEAST_OVAL:
                continue
            core = binary_erosion(inside, iterations=2)  # the rim itself has texture
            core = core if core.any() else inside
            if texture[box][core].mean() > _TEXTURE * usual or density[1][box][core].std() > _TEXTURE * usual_spread:
                continue
            found[box] |= inside
            largest = max(largest, area / _LEAST_UM2)
    if found.any():
        found = _with_rim(found, rim, overview.px_um)
    return artefact_of(overview, found, largest)


def _ovalness(mask: NDArray[np.bool_]) -> float:
    """Area of the mask as a fraction of the ellipse with the same second moments, 0 … 1."""
    moments = np.cov(np.argwhere(mask).T.astype(float))
    return float(mask.sum() / (4 * np.pi * np.sqrt(max(float(np.linalg.det(moments)), 1e-9))))


def _texture(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Absolute difference from the mean of the neighbours."""
    from scipy.ndimage import uniform_filter

    return np.abs(plane - uniform_filter(plane, 3, mode="nearest"))


def _with_rim(found: NDArray[np.bool_], rim: NDArray[np.bool_], px_um: tuple[float, float]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_dilation

    return np.asarray(found | (binary_dilation(found, _disc(3 * _GAP_UM, px_um)) & rim))


def _disc(radius_um: float, px_um: tuple[float, float]) -> NDArray[np.bool_]:
    rows, columns = (max(1, round(radius_um / um)) for um in px_um)
    y, x = np.ogrid[-rows : rows + 1, -columns : columns + 1]
    return np.asarray((y / rows) ** 2 + (x / columns) ** 2 <= 1)
