"""Settings of synthetic slides, and what each task asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longvit.config import check_bounds, check_choices
from longvit.errors import InputError

SyntheticTask = Literal["share", "any", "border", "arrangement"]
CLASSES: dict[str, tuple[str, str]] = {
    "share": ("below", "above"),
    "any": ("none", "some"),
    "border": ("inside", "border"),
    "arrangement": ("mixed", "apart"),
}
"""Task -> its two classes; the second is the positive one."""
ONE_SOURCE = ("share", "any")
"""Tasks whose two classes hold different fields: all fields of a slide are then of one source."""
_TIFF_STEP_PX = 16


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """Settings of a set of synthetic slides.

    >>> from longvit.synthetic import SyntheticSettings
    >>> SyntheticSettings(task="border", side_px=4096, square_px=256, block_px=1024).squares
    16
    """

    task: SyntheticTask = "border"
    """Task: the property of a slide that its label states.

    - share: whether the fraction of tumour squares is above one half (0.6 … 0.8) or below (0.2 … 0.4).
    - any: whether there is tumour at all (in `tumour_squares` squares).
    - border: whether the tumour blocks are at the border of the slide or inside.
    - arrangement: whether the blocks of two tissues are apart (in two halves) or mixed (a chessboard).

    In border and arrangement the two slides of a pair consist of the same blocks at other places."""
    side_px: int = 4096
    """Side of a slide; a multiple of `block_px`."""
    square_px: int = 256
    """Side of a square, which is cut from one field; a multiple of 16."""
    block_px: int = 1024
    """Side of a block of squares of one tissue; a multiple of `square_px`. Used by border and arrangement."""
    pairs: int = 40
    """Pairs of slides, one of each class: from the same patients, with the same colours."""
    tumour_squares: int = 1
    """Tumour squares of a positive slide of task any."""
    halves: int = 4
    """Halves of the slide that may hold the tumour of task arrangement when it is apart: the first of top, left, bottom
    and right. With 1 or 2 the place of each block tells the classes, which is learned early. With 3 or 4 only the
    places of the blocks to each other do."""
    patients: int = 4
    """Patients of each tissue in a slide, where a fold has as many."""
    folds: int = 4
    """Number of folds, where the fields state none."""
    mpp: float = 1.0
    """µm per pixel that is written into the slides."""
    seed: int = 0
    """Seed of the fields, places and colours."""

    def __post_init__(self) -> None:
        check_choices(self)
        bounds = dict.fromkeys(("side_px", "square_px", "block_px", "pairs", "tumour_squares", "patients"), (1, 2**20))
        check_bounds(self, {**bounds, "halves": (1, 4), "folds": (2, 1000), "seed": (0, 2**31 - 1)})
        if self.square_px % _TIFF_STEP_PX:
            raise InputError(f"square_px {self.square_px}: a multiple of {_TIFF_STEP_PX}, the step of a TIFF's tiles")
        if self.block_px % self.square_px or self.side_px % self.block_px:
            raise InputError(
                f"side_px {self.side_px}, block_px {self.block_px}, square_px {self.square_px}: each must be a "
                f"multiple of the next"
            )
        if not self.mpp > 0:
            raise InputError(f"mpp {self.mpp:g}: more than 0")
        if self.task == "border" and self.blocks < 3:
            raise InputError(f"task border: at least 3 × 3 blocks, not {self.blocks} × {self.blocks}")
        if self.task == "arrangement" and self.blocks % 2:
            raise InputError(f"task arrangement: an even number of blocks a side, not {self.blocks}")
        if self.task == "any" and self.tumour_squares > self.squares**2:
            raise InputError(f"tumour_squares {self.tumour_squares}: the slide has {self.squares**2} squares")
        if self.task == "share" and self.squares < 4:
            raise InputError(f"task share: at least 4 × 4 squares, not {self.squares} × {self.squares}")

    @property
    def squares(self) -> int:
        """Squares a side."""
        return self.side_px // self.square_px

    @property
    def blocks(self) -> int:
        """Blocks a side."""
        return self.side_px // self.block_px
