"""Placement of a canvas on its slide: the one coordinate type.

Coordinates are continuous: pixel i covers [i, i + 1), so the centre of canvas pixel (0, 0) is (0.5, 0.5). Slide
coordinates are level-0 pixels of the whole file, including the offset of the bounds, as in the usual `coords` tables.
QuPath subtracts the bounds, see `Box`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from longvit.errors import InputError

Fit = Literal["stretch", "pad"]


@dataclass(frozen=True)
class Box:
    """A rectangle: corner and size, in the pixels of its owner (level-0 px for `Slide.bounds`).

    >>> from longvit.slides.placement import Box
    >>> Box(10, 20, width=300, height=200).right
    310
    """

    x: float
    """Left edge."""
    y: float
    """Upper edge."""
    width: float
    """Size along x."""
    height: float
    """Size along y."""

    @property
    def right(self) -> float:
        """x of the right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """y of the lower edge."""
        return self.y + self.height


@dataclass(frozen=True)
class Placement:
    """Mapping of `bounds` (level-0 px) onto a square canvas of `side_px`.

    "stretch" maps the bounds onto the whole canvas, as in the paper. "pad" keeps the aspect ratio, centres the slide
    and leaves background on two sides.

    >>> from longvit.slides.placement import Box, Placement
    >>> placement = Placement(Box(0, 0, 4000, 2000), side_px=100, fit="pad")
    >>> placement.image_box, placement.to_level0(50, 50)
    (Box(x=0, y=25, width=100, height=50), (2000.0, 1000.0))
    """

    bounds: Box
    """Area of the slide, in level-0 px."""
    side_px: int
    """Side of the canvas in its pixels."""
    fit: Fit = "stretch"
    """`stretch` or `pad`."""

    def __post_init__(self) -> None:
        check_side_and_fit(self.side_px, self.fit)
        if self.bounds.width <= 0 or self.bounds.height <= 0:
            raise InputError(f"an empty slide area of {self.bounds.width} × {self.bounds.height} px has no canvas")

    @property
    def image_box(self) -> Box:
        """Part of the canvas that the slide covers, in whole canvas px; the rest is background."""
        if self.fit == "stretch":
            return Box(0, 0, self.side_px, self.side_px)
        scale = self.side_px / max(self.bounds.width, self.bounds.height)
        width_px = max(1, round(self.bounds.width * scale))
        height_px = max(1, round(self.bounds.height * scale))
        return Box((self.side_px - width_px) // 2, (self.side_px - height_px) // 2, width_px, height_px)

    @property
    def downsample(self) -> tuple[float, float]:
        """Level-0 px per canvas px, along x and y."""
        box = self.image_box
        return self.bounds.width / box.width, self.bounds.height / box.height

    def to_level0(self, x_canvas_px: Any, y_canvas_px: Any) -> tuple[Any, Any]:
        """Converts canvas px (numbers or arrays) to level-0 px as floats; padding maps outside the bounds."""
        box = self.image_box
        scale_x, scale_y = self.downsample
        return self.bounds.x + (x_canvas_px - box.x) * scale_x, self.bounds.y + (y_canvas_px - box.y) * scale_y

    def to_canvas(self, x_level0_px: Any, y_level0_px: Any) -> tuple[Any, Any]:
        """Converts level-0 px (numbers or arrays) to canvas px as floats; points outside the bounds fall outside the
        image box."""
        box = self.image_box
        scale_x, scale_y = self.downsample
        return box.x + (x_level0_px - self.bounds.x) / scale_x, box.y + (y_level0_px - self.bounds.y) / scale_y


def check_side_and_fit(side_px: int, fit: str) -> None:
    """Raises `InputError` for a side that is not a positive whole number and for an unknown fit."""
    if isinstance(side_px, bool) or int(side_px) != side_px or side_px < 1:
        raise InputError(f"a canvas side of {side_px} px is not a positive whole number")
    if fit not in get_args(Fit):
        raise InputError(f"fit {fit!r} is unknown; take one of {', '.join(get_args(Fit))}")
