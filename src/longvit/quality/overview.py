"""Overview of a slide: its colours relative to the glass at the resolution of the tissue mask, in which artefacts are
searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longvit.slides.tissue import Tissue, TissueSettings, tissue_image, tissue_in

if TYPE_CHECKING:
    from longvit.slides.mpp import Mpp
    from longvit.slides.placement import Box

MPP = 8.0
"""µm per pixel of an overview."""


@dataclass(frozen=True)
class Overview:
    """Low-resolution image of a slide with its tissue mask, both (height, width)."""

    rgb: NDArray[np.float32]
    """Planes (3, height, width), 0 … 1, relative to the glass."""
    smooth: NDArray[np.float32]
    """The planes after the Gaussian filter of the tissue mask, whose width is about that of a cell."""
    tissue: Tissue

    @property
    def px_um(self) -> tuple[float, float]:
        """Height and width of a pixel in µm, rows first."""
        width_um, height_um = self.tissue.px_um
        return height_um, width_um

    @property
    def px_um2(self) -> float:
        """Area of a pixel in µm²."""
        return self.px_um[0] * self.px_um[1]

    @cached_property
    def optical_density(self) -> NDArray[np.float32]:
        """Optical density -log10(I / I_glass) of each plane, (3, height, width)."""
        return np.asarray(-np.log10(np.maximum(self.rgb, np.float32(1 / 255))), np.float32)


@dataclass(frozen=True)
class Artefact:
    """Artefact of one kind on a slide."""

    mask: NDArray[np.bool_]
    """(height, width) of the overview."""
    share: float
    """Area of the mask as a fraction of tissue and artefact together, 0 … 1."""
    score: float
    """Strength of the most suspicious place; at the threshold it is 1."""


def overview_of(pixels: NDArray[np.uint8], bounds: Box, mpp: Mpp, background: tuple[int, int, int]) -> Overview:
    """Overview of `bounds` (level-0 px) from an image of it, uint8 (height, width, 3), of any size.

    `mpp`: µm per level-0 px. `background`: fill colour of areas that were not scanned.
    """
    settings = TissueSettings(mpp=MPP)
    image = tissue_image(pixels, bounds, mpp, background, settings)
    return Overview(image.rgb, image.smooth, tissue_in(image, bounds, settings))


def artefact_of(overview: Overview, mask: NDArray[np.bool_], score: float) -> Artefact:
    """Artefact with its share of the tissue."""
    whole = int((overview.tissue.mask | mask).sum())
    return Artefact(mask, float(mask.sum()) / whole if whole else 0.0, float(score))
