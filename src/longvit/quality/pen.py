"""Pen marks in blue, green, red and black, on glass and on tissue.

The rules are those of the tissue mask (`longvit.slides.tissue`), with additions for ink that lies on tissue, where the
optical densities of ink and stain add up. All use ratios of the optical densities R, G and B. Haematoxylin has
(0.65, 0.70, 0.29), eosin (0.07, 0.99, 0.11) (Ruifrok and Johnston 2001).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longvit.quality.overview import Artefact, Overview, artefact_of
from longvit.slides.tissue import INK_UM2, is_black, is_ink, large_pieces

COLOURS = ("blue", "green", "red", "black")
_DARK_RED_OD, _RED_OVER_GREEN = 0.75, 1.08
"""On tissue, blue and green ink absorb more red than any nucleus at this scale, and still more red than green."""
_RED_OD, _RED_OF_GREEN, _BLUE_OF_GREEN = 0.7, 0.4, 0.75
"""Red ink absorbs this much green and blue, at most this fraction in red, and blue almost as much as green. Blood and
bone are paler, eosin absorbs less blue."""
_NEUTRAL = 0.75
"""Black ink absorbs all channels alike: least ratio of the lowest to the highest. Green ink on tissue is as dark."""


def find_pen(overview: Overview) -> dict[str, Artefact]:
    """Pen marks by colour. The score is the area, in units of the smallest mark that counts (`INK_UM2`)."""
    pieces = {}
    for colour, mask in _masks(overview.smooth).items():
        mask = large_pieces(mask, INK_UM2, overview.px_um)
        pieces[colour] = artefact_of(overview, mask, float(mask.sum()) * overview.px_um2 / INK_UM2)
    return pieces


def _masks(rgb: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    red, green, blue = -np.log10(np.maximum(rgb, np.float32(1 / 255)))
    neutral = np.minimum(np.minimum(red, green), blue) > _NEUTRAL * np.maximum(np.maximum(red, green), blue)
    black = is_black(rgb) & neutral
    red_ink = (np.minimum(green, blue) > _RED_OD) & (red < _RED_OF_GREEN * green) & (blue > _BLUE_OF_GREEN * green)
    cold = (is_ink(rgb) & (red > green)) | ((red > _DARK_RED_OD) & (red > _RED_OVER_GREEN * green))
    cold &= ~black
    return {
        "blue": cold & (blue <= green),
        "green": cold & (blue > green),
        "red": red_ink & ~black,
        "black": black,
    }
