"""Blocks of tiles that are decoded one by one, directly from their offsets, without stitching or a cache.

The fast path of tiled TIFF and of DICOM: a table of offsets per level, one `pread` and one decoder call per tile.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError, one_line
from longvit.slides.pixel_reader import BadTile, Block, Level, PixelReader, Rgb, fill, fill_outside
from longvit.slides.tiled_level import TiledLevel

_FILE = 2**48
"""Offsets of the second file of a slide begin here, those of the third at twice that, and so on."""


def offset_in(file_index: int, offset: int) -> int:
    """Offset in a table of tiles for a position in one file of a slide; in the first file they are equal."""
    return file_index * _FILE + offset


class TiledReader(PixelReader):
    """Levels and blocks of tables of tiles in one or more files."""

    def __init__(self, path: Path, background: Rgb, tiled: Sequence[TiledLevel], files: Sequence[Path]) -> None:
        self.path = path
        self.background = background
        self._tiled = tuple(tiled)
        self.levels = tuple(one.level for one in tiled)
        self._files: tuple[SharedFile, ...] | None = tuple(SharedFile(file) for file in files)

    def close(self) -> None:
        self._files = None

    def n_tiles(self, level: int) -> int:
        """Number of tiles of a level."""
        return self._tiled[level].columns * self._tiled[level].rows

    def fullest_tiles(self, level: int, n: int) -> list[tuple[int, int]]:
        """(column, row) of the `n` tiles with the most bytes, which hold the most content."""
        tiled = self._tiled[level]
        counts = tiled.table.counts[: tiled.columns * tiled.rows].copy()
        places = []
        for _ in range(min(n, len(counts))):
            index = len(counts) - 1 - int(counts[::-1].argmax())
            counts[index] = -1
            places.append((index % tiled.columns, index // tiled.columns))
        return places

    def fullest_tile(self) -> bytes | None:
        """Stored bytes of the tile of level 0 with the most of them; None where they cannot be read."""
        tiled, files = self._tiled[0], self._files
        ((column, row),) = self.fullest_tiles(0, 1)
        at = row * tiled.columns + column
        try:
            return self.tile_bytes(files or (), int(tiled.table.offsets[at]), int(tiled.table.counts[at]))
        except (ValueError, OSError):
            return None

    def reductions(self, level: int) -> tuple[int, ...]:
        return self._tiled[level].decoder.reductions

    def read_block(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        return self.read_reduced_block(level, 1, x_px, y_px, out)

    def read_reduced_block(self, level: int, reduction: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        tiled, files = self._tiled[level].reduced(reduction), self._files
        if files is None:
            raise InputError(f"{self.path}: the slide is closed; open it again with open_slide")
        left, top, right, bottom = fill_outside(out, x_px, y_px, tiled.level.size_px, self.background)
        if right <= left or bottom <= top:
            return []
        tile_w, tile_h = tiled.level.tile_px
        bad = []
        for row in range((y_px + top) // tile_h, (y_px + bottom - 1) // tile_h + 1):
            y0, y1 = max(row * tile_h, y_px + top), min((row + 1) * tile_h, y_px + bottom)
            for column in range((x_px + left) // tile_w, (x_px + right - 1) // tile_w + 1):
                x0, x1 = max(column * tile_w, x_px + left), min((column + 1) * tile_w, x_px + right)
                target = out[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px]
                try:
                    self._read_tile(files, tiled, column, row, x0 - column * tile_w, y0 - row * tile_h, target)
                except InputError:
                    raise
                # Decoders raise errors of any type on damaged bytes; only this tile is lost.
                except Exception as error:
                    fill(target, self.background)
                    bad.append(_bad_tile(self._tiled[level].level, column, row, error))
        return bad

    def _read_tile(
        self,
        files: Sequence[SharedFile],
        tiled: TiledLevel,
        column: int,
        row: int,
        left: int,
        top: int,
        target: Block,
    ) -> None:
        """Copies the part of one tile that begins at (left, top) into `target`."""
        height, width = target.shape[:2]
        area = tiled.columns * tiled.rows
        index = row * tiled.columns + column
        places = range(index, index + tiled.planes * area, area)
        table = tiled.table
        if not any(table.counts[at] or table.offsets[at] for at in places):
            fill(target, self.background)
            return
        for plane, at in enumerate(places):
            offset, count = int(table.offsets[at]), int(table.counts[at])
            fault = table.fault(at)
            if fault is not None or not count:
                raise ValueError(fault or "one of its planes was never written")
            pixels = tiled.decode(self.tile_bytes(files, offset, count), at)
            _check_size(pixels, tiled.level, left + width, top + height)
            part = pixels[top : top + height, left : left + width]
            if tiled.planes > 1:
                target[..., plane] = part[..., 0]
            elif part.shape[2] == 4:
                target[...] = part
            else:
                target[..., :3] = part  # one grey sample goes to all three

    def tile_bytes(self, files: Sequence[SharedFile], offset: int, count: int) -> bytes:
        """Stored bytes of a tile for its decoder. Raises `ValueError` where they are damaged."""
        index, at = self.file_of(offset), offset % _FILE
        if not 0 <= index < len(files):
            raise ValueError(f"its {count} bytes extend beyond the end of the file")
        return files[index].read(at, count)

    @staticmethod
    def file_of(offset: int) -> int:
        """Index of the file of an offset."""
        return offset // _FILE


class SharedFile:
    """One file descriptor for all threads (pread moves no shared position); closed when the last reader releases it.

    Closing it earlier could give its number to another file while a thread still reads from it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        try:
            data = self._bytes(offset, count)
        except OSError as error:
            if error.errno == errno.EIO:  # a bad sector: costs this tile
                raise
            # A missing drive must not turn every tile into a bad one, and the slide blank.
            raise InputError(f"{self._path}: cannot be read any more ({error.strerror or error})") from error
        if len(data) != count:
            raise ValueError(f"its {count} bytes extend beyond the end of the file")
        return data

    def _bytes(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, count, offset)
        with self._lock:  # Windows: the position is shared by all threads
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, count)


def _bad_tile(level: Level, column: int, row: int, error: Exception) -> BadTile:
    tile_w, tile_h = level.tile_px
    width_px, height_px = level.size_px
    return BadTile(
        level=level.index,
        x_level0_px=round(column * tile_w * level.downsample),
        y_level0_px=round(row * tile_h * level.downsample),
        width_px=min(tile_w, width_px - column * tile_w),
        height_px=min(tile_h, height_px - row * tile_h),
        message=one_line(error),
    )


def _check_size(pixels: NDArray[np.uint8], level: Level, min_width_px: int, min_height_px: int) -> None:
    """Raises `ValueError` where the decoded pixels do not have the size of the tile."""
    height, width = pixels.shape[:2]
    if height < min_height_px or width < min_width_px:
        raise ValueError(f"the tile holds {width} × {height} px, fewer than its {min_width_px} × {min_height_px}")
    tile_w, tile_h = level.tile_px
    if height > tile_h or width > tile_w:
        raise ValueError(f"the tile holds {width} × {height} px, more than {tile_w} × {tile_h}")
