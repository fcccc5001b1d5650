"""Kept area of a slide: the annotations of the kept classes without those of the excluded ones.

Two rules decide, both by the centre of a pixel or tile in level-0 pixels:

- A pixel of a canvas outside the kept area is background.
- A tile whose centre is outside the kept area is left out.

Annotations of the class `Tissue` take the place of the tissue mask that is found in a slide's thumbnail. Where they are
kept, the tissue fraction alone decides about a tile, as without annotations. So the outline of the tissue that `longvit
tiles` writes gives the same tiles when it is read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvit.annotations.mask_image import MaskImage
from longvit.annotations.polygons import Polygons
from longvit.slides.kept_area import KeptPoints
from longvit.slides.placement import Box

TISSUE = "Tissue"
"""Class of the annotations that replace the tissue mask."""


@dataclass(frozen=True)
class SlideArea:
    """Kept area of one slide, in level-0 px."""

    kept: Polygons | MaskImage | None
    """None: everywhere, since the file has excluded annotations only."""
    excluded: Polygons | None
    tissue: Polygons | None
    """Annotated tissue; None where the file has none."""
    is_tissue_kept: bool
    record: Mapping[str, Any] = field(repr=False)
    """Provenance, ready for JSON."""

    def inside(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """(len(y), len(x)): True where the point (x[column], y[row]) is kept; both in increasing order."""
        inside = np.ones((len(y), len(x)), bool) if self.kept is None else self.kept.inside(x, y)
        return inside if self.excluded is None else inside & ~self.excluded.inside(x, y)

    def extent(self, bounds: Box) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the kept area within the bounds, in level-0 px, without regard to holes."""
        whole = (bounds.x, bounds.y, bounds.right, bounds.bottom)
        if self.kept is None:
            return whole
        left, top, right, bottom = self.kept.extent()
        return max(left, whole[0]), max(top, whole[1]), min(right, whole[2]), min(bottom, whole[3])

    @property
    def for_tiles(self) -> KeptPoints:
        """Area that the centre of a tile must be in."""
        return SlideArea(None, self.excluded, None, False, {}) if self.is_tissue_kept else self
