"""Positions of the frames of a DICOM file: in a fixed order (TILED_FULL), or stated for each frame (TILED_SPARSE).

Sources: DICOM PS3.3 C.7.6.17.3 (the order) and C.8.12.6.1 (the stated positions).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.dicom_dataset import Dataset
from longvit.slides.dicom_header import damaged

SHARED, PER_FRAME = 0x52009229, 0x52009230
"""Functional groups of all frames, and of each frame."""
_ORGANISATION = 0x00209311
_MEASURES, _BETWEEN_PLANES, _ORIGIN = 0x00289110, 0x00180088, 0x00480008
_IDENTIFIER, _IDENTIFICATION, _PATHS, _PLANES = 0x00480106, 0x00480207, 0x00480302, 0x00480303
_POSITION, _LEFT, _TOP, _Z = 0x0048021A, 0x0048021E, 0x0048021F, 0x0040074A
_DEFAULT_PLANE_MM = 0.001
_LEAST_REACH = 8
"""Tiles that reach less than this part of a width or height: the size is damaged."""


class Positions(NamedTuple):
    """Tile, focal plane and optical path that each frame shows; arrays of one length."""

    columns: NDArray[np.int64]
    rows: NDArray[np.int64]
    z_mm: NDArray[np.float64]
    path_of: NDArray[np.int64]
    """Index of the optical path, in the order of OpticalPathSequence."""


class Tiles(NamedTuple):
    """Size of a level and of its tiles, width and height in pixels."""

    size_px: tuple[int, int]
    tile_px: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of columns and rows."""
        (width_px, height_px), (tile_w, tile_h) = self.size_px, self.tile_px
        return -(-width_px // tile_w), -(-height_px // tile_h)


def is_sparse(path: Path, dataset: Dataset) -> bool:
    """True if each frame states its position. Raises `InputError` for another organisation."""
    organisation = dataset.text(_ORGANISATION)
    if organisation not in ("", "TILED_FULL", "TILED_SPARSE"):
        raise InputError(
            f"{path}: its frames are organised as {organisation[:32]!r}; only TILED_FULL and TILED_SPARSE are read"
        )
    return organisation == "TILED_SPARSE" or (not organisation and PER_FRAME in dataset)


def positions_in_order(
    path: Path, dataset: Dataset, frames: int, tiles: Tiles, before: int | None
) -> tuple[int, Positions]:
    """Number of frames of the level, and positions of those of this file: by optical path, plane, row, column.

    `before`: frames of the level in earlier parts of a concatenation; None for a level in one file. Raises
    `InputError` where the sizes need another number of frames.
    """
    columns, rows = tiles.grid
    planes, n_paths = dataset.integer(_PLANES) or 1, dataset.integer(_PATHS) or 1
    expected = columns * rows * planes * n_paths
    if (frames != expected) if before is None else (before + frames > expected):
        (width_px, height_px), (tile_w, tile_h) = tiles
        raise damaged(
            path,
            f"{width_px} × {height_px} px in tiles of {tile_w} × {tile_h} need {expected} frames, it states {frames}",
        )
    at = (before or 0) + np.arange(frames, dtype=np.int64)
    tile, volume = at % (columns * rows), at // (columns * rows)
    _check_order(path, dataset, tile % columns * tiles.tile_px[0], tile // columns * tiles.tile_px[1])
    groups = dataset.first(SHARED)
    measures = None if groups is None else groups.first(_MEASURES)
    step_mm = ([] if measures is None else measures.decimals(_BETWEEN_PLANES)) or [_DEFAULT_PLANE_MM]
    origin = dataset.first(_ORIGIN)
    base_mm = ([] if origin is None else origin.decimals(_Z)) or [0.0]
    z_mm = base_mm[0] + (volume % planes).astype(np.float64) * step_mm[0]
    return expected, Positions(tile % columns, tile // columns, z_mm, volume // planes)


def _check_order(path: Path, dataset: Dataset, lefts: NDArray[np.int64], tops: NDArray[np.int64]) -> None:
    """Raises `InputError` where frames in a fixed order also state positions, which are others."""
    for frame, item in enumerate(dataset.items(PER_FRAME)):
        position = item.first(_POSITION)
        if position is None or frame >= len(lefts):  # stated for none
            return
        stated = position.signed(_LEFT), position.signed(_TOP)
        if stated != (lefts[frame] + 1, tops[frame] + 1):
            raise damaged(
                path,
                f"its frames are in the order of TILED_FULL, in which frame {frame + 1} is at "
                f"({lefts[frame] + 1}, {tops[frame] + 1}); it states ({stated[0]}, {stated[1]})",
            )


def stated_positions(path: Path, dataset: Dataset, frames: int, tiles: Tiles, identifiers: list[str]) -> Positions:
    """Positions that a file states for each frame; `identifiers` are those of the optical paths.

    Raises `InputError` for another number of positions, one outside the level, and tiles that are not on one grid.
    """
    lefts, tops, path_of = (np.zeros(frames, np.int64) for _ in range(3))
    z_mm = np.zeros(frames, np.float64)
    default = _identifier(dataset.first(SHARED)) or next(iter(identifiers), "")
    n = 0
    for n, item in enumerate(dataset.items(PER_FRAME), 1):
        position = item.first(_POSITION)
        left, top = (None, None) if position is None else (position.signed(_LEFT), position.signed(_TOP))
        identifier = _identifier(item) or default
        if position is None or left is None or top is None or n > frames:
            raise damaged(path, f"its list of {frames} frames has no position for frame {n}, or more frames")
        if identifiers and identifier not in identifiers:
            raise damaged(path, f"frame {n} has the optical path {identifier[:16]!r}, which is not described")
        lefts[n - 1], tops[n - 1] = left - 1, top - 1
        z_mm[n - 1] = (position.decimals(_Z) or [0.0])[0]
        path_of[n - 1] = identifiers.index(identifier) if identifiers else 0
    if n != frames:
        raise damaged(path, f"it states {frames} frames, its list of positions has {n}")
    (width_px, height_px), (tile_w, tile_h) = tiles
    outside = (lefts < 0) | (tops < 0) | (lefts >= width_px) | (tops >= height_px)
    if bool(outside.any()):
        at = int(outside.argmax())
        raise damaged(path, f"frame {at + 1} is at ({lefts[at] + 1}, {tops[at] + 1}) of {width_px} × {height_px} px")
    right, bottom = int(lefts.max()) + tile_w, int(tops.max()) + tile_h
    if right * _LEAST_REACH < width_px or bottom * _LEAST_REACH < height_px:
        raise damaged(path, f"its tiles reach only to ({right}, {bottom}) of {width_px} × {height_px} px")
    if bool((lefts % tile_w).any()) or bool((tops % tile_h).any()):
        raise InputError(
            f"{path}: its tiles are not on a grid of {tile_w} × {tile_h} px: damaged, or tiles that overlap, which are "
            f"not read"
        )
    return Positions(lefts // tile_w, tops // tile_h, z_mm, path_of)


def _identifier(group: Dataset | None) -> str:
    item = None if group is None else group.first(_IDENTIFICATION)
    return "" if item is None else item.text(_IDENTIFIER)
