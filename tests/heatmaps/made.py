"""Canvases and contributions with known numbers, for tests of heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from longvit.interpret import Contributions
from longvit.slides.canvas import Canvas, CanvasSource
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box, Placement

PLACEMENTS: dict[str, tuple[Box, int, Any]] = {
    "stretch": (Box(0, 0, 256, 256), 256, "stretch"),
    "non-square": (Box(0, 0, 2220, 2967), 256, "stretch"),
    "pad": (Box(0, 0, 2220, 2967), 256, "pad"),
    "bounds": (Box(1013, 77, 4001, 2999), 256, "stretch"),
    "pad and bounds": (Box(1013, 77, 4001, 2999), 192, "pad"),
}
"""Slides in level-0 px, canvas side, fit."""


def made_canvas(name: str, *, mpp: Mpp | None = Mpp(0.25, 0.5, "explicit")) -> Canvas:  # noqa: B008
    """A canvas of noise. Its resolution differs along x and y, so that an exchange is seen."""
    bounds, side_px, fit = PLACEMENTS[name]
    size = (int(bounds.right) + 7, int(bounds.bottom) + 3)
    source = CanvasSource(f"{name}.svs", "0" * 32, size, "made", mpp, "made", "1", (255, 255, 255))
    pixels = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    return Canvas(pixels, Placement(bounds, side_px, fit), 0, 1, (), source)


def made_contributions(side_patches: int, seed: int = 0, **changed: Any) -> Contributions:
    """Contributions of every patch, all different."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.linspace(-1, 1, side_patches**2)).astype(np.float32).reshape(side_patches, side_patches)
    settings = {"constant": 0.25, "score": 0.5, "probability": 0.6, "class_name": "tumour", "others": "benign"}
    return Contributions(values, **(settings | changed))  # type: ignore[arg-type]
