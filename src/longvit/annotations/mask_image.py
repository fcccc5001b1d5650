"""Mask image of a slide: a PNG that covers the scanned area; pixels that are not black are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError, one_line
from longvit.slides.placement import Box
from longvit.slides.png_file import decode_png, read_png_header

_MOST_PX = 100_000_000
_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class MaskImage:
    """Mask (height, width) over `bounds` (level-0 px); a point takes the value of the pixel that contains it."""

    mask: NDArray[np.bool_] = field(repr=False)
    bounds: Box

    def inside(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """(len(y), len(x)): True where the point (x[column], y[row]), in level-0 px, is kept."""
        height, width = self.mask.shape
        column = np.floor((x - self.bounds.x) * (width / self.bounds.width)).astype(np.int64)
        row = np.floor((y - self.bounds.y) * (height / self.bounds.height)).astype(np.int64)
        is_column, is_row = (column >= 0) & (column < width), (row >= 0) & (row < height)
        result = np.zeros((len(y), len(x)), bool)
        result[np.ix_(is_row, is_column)] = self.mask[np.ix_(row[is_row], column[is_column])]
        return result

    def extent(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the kept pixels."""
        height, width = self.mask.shape
        columns, rows = np.flatnonzero(self.mask.any(0)), np.flatnonzero(self.mask.any(1))
        to_x, to_y = self.bounds.width / width, self.bounds.height / height
        return (
            self.bounds.x + float(columns[0]) * to_x,
            self.bounds.y + float(rows[0]) * to_y,
            self.bounds.x + float(columns[-1] + 1) * to_x,
            self.bounds.y + float(rows[-1] + 1) * to_y,
        )


def read_mask_image(path: Path, data: bytes, bounds: Box) -> MaskImage:
    """Mask of a PNG: black and transparent pixels are outside.

    Raises `InputError` for a damaged or too large file, for other proportions than those of `bounds`, and for a mask
    that keeps nothing.
    """
    try:
        if not data.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError("it is not a PNG")
        header = read_png_header(path)
        if header.width_px * header.height_px > _MOST_PX:
            raise InputError(f"{path}: a mask of {header.width_px} × {header.height_px} px; at most {_MOST_PX:,} px")
        _require_proportions(path, header.width_px, header.height_px, bounds)
        if header.depth > 8:
            raise ValueError(f"{header.depth} bits per sample; save it with 8")
        mask = np.asarray(decode_png(data, _BLACK)[..., :3].any(-1))
    except InputError:
        raise
    # The decoder fails in many ways; in each the file is unusable.
    except Exception as error:
        raise InputError(f"{path}: not a mask, or damaged ({one_line(error)}); write it again") from error
    if not mask.any():
        raise InputError(f"{path}: the mask is black, so it keeps nothing of the slide")
    return MaskImage(mask, bounds)


def _require_proportions(path: Path, width_px: int, height_px: int, bounds: Box) -> None:
    scale = max(width_px / bounds.width, height_px / bounds.height)
    if abs(bounds.width * scale - width_px) > 1 or abs(bounds.height * scale - height_px) > 1:
        raise InputError(
            f"{path}: a mask of {width_px} × {height_px} px has other proportions than the slide of "
            f"{bounds.width:g} × {bounds.height:g} px; it must cover the whole slide"
        )
