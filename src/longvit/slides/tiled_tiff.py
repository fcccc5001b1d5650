"""Fast path: tiles of a TIFF decoded one by one, directly from their offsets, without stitching or a cache.

tifffile reads the positions of the tiles; `tile_decoding` decodes them (JPEG, JPEG 2000, LZW, Deflate, ZSTD, WebP,
none). Strips are tiles as wide as the image. JPEG tiles take a fifth of the CPU time of openslide-python (2026-11;
`benchmarks/canvas.py` measures the whole way to a canvas).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from importlib.metadata import version as version_of
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError, one_line
from longvit.slides.pixel_format import check_jpeg_colours, check_pixel_format
from longvit.slides.pixel_reader import (
    BadTile,
    Block,
    Level,
    PixelReader,
    Rgb,
    UnsupportedError,
    fill,
    fill_outside,
)
from longvit.slides.tiff_header import TiffHeader
from longvit.slides.tile_decoding import JPEG
from longvit.slides.tile_table import mark_overlaps, metadata_of, shared, swapped
from longvit.slides.tiled_level import TiledLevel, tiled_levels, written_levels

_TAIL_BYTES = 96  # 32 pixels


class TiledTiffReader(PixelReader):
    """Levels and blocks of a tiled (or stripped) TIFF of 8-bit RGB, RGBA or grey.

    Raises `UnsupportedError` for formats that only OpenSlide may read. Raises `InputError` for pixels that no reader
    reads correctly: 16 bits, separate channels, a table of tiles that does not fit the file.
    """

    name = "tiff"
    version = ", ".join(f"{name} {version_of(name)}" for name in ("tifffile", "simplejpeg", "imagecodecs"))

    def __init__(self, path: Path, header: TiffHeader, background: Rgb) -> None:
        self.path = path
        self.background = background
        try:
            check_pixel_format(path, header)
            all_levels, unread_px = tiled_levels(path, header, background)
            mark_overlaps([tiled.table for tiled in all_levels], metadata_of(header.directories))
            self._tiled = written_levels(path, all_levels)
        except (InputError, UnsupportedError):
            raise
        # In a damaged directory a tag has any type: a list of sizes, a text.
        except Exception as error:
            raise UnsupportedError(f"a damaged directory ({one_line(error)})") from error
        self.levels = tuple(tiled.level for tiled in self._tiled)
        unwritten_px = {tiled.level.size_px for tiled in all_levels} - {level.size_px for level in self.levels}
        self.left_out_px = unwritten_px | set(header.left_out_px) | set(unread_px)
        """Sizes of the levels in the file that are not used."""
        self._leaves_tiles_out = any(bool(tiled.table.empty.any()) for tiled in all_levels)
        self._file: _SharedFile | None = _SharedFile(path)
        self._check_jpeg_colours(header)
        self.notes = (*unread_px.values(), *_notes(all_levels, unwritten_px), *_zeros_note(self._file, all_levels))

    def close(self) -> None:
        self._file = None

    def _check_jpeg_colours(self, header: TiffHeader) -> None:
        page, file = header.pages[0], self._file
        if page.compression != JPEG or page.samplesperpixel != 3 or page.planarconfig == 2 or file is None:
            return
        tiled = self._tiled[0]
        ((column, row),) = self.fullest_tiles(0, 1)
        at = row * tiled.columns + column
        try:
            tile = file.read(int(tiled.table.offsets[at]), int(tiled.table.counts[at]))
        except (ValueError, OSError):
            return  # a damaged tile: it is counted when it is read
        check_jpeg_colours(self.path, page, tile)

    def leaves_tiles_out(self) -> bool:
        """True if some tile was never written. Scanners skip blank glass, and formats fill it in different ways."""
        return self._leaves_tiles_out

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

    def reductions(self, level: int) -> tuple[int, ...]:
        return self._tiled[level].decoder.reductions

    def read_block(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        return self.read_reduced_block(level, 1, x_px, y_px, out)

    def read_reduced_block(self, level: int, reduction: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        tiled, file = self._tiled[level].reduced(reduction), self._file
        if file is None:
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
                    self._read_tile(file, tiled, column, row, x0 - column * tile_w, y0 - row * tile_h, target)
                except InputError:
                    raise
                # Decoders raise errors of any type on damaged bytes; only this tile is lost.
                except Exception as error:
                    fill(target, self.background)
                    bad.append(_bad_tile(self._tiled[level].level, column, row, error))
        return bad

    def _read_tile(
        self, file: _SharedFile, tiled: TiledLevel, column: int, row: int, left: int, top: int, target: Block
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
            pixels = tiled.decode(file.read(offset, count), at)
            _check_size(pixels, tiled.level, left + width, top + height)
            part = pixels[top : top + height, left : left + width]
            if tiled.planes > 1:
                target[..., plane] = part[..., 0]
            elif part.shape[2] == 4:
                target[...] = part
            else:
                target[..., :3] = part  # one grey sample goes to all three


class _SharedFile:
    """One file descriptor for all threads (pread moves no shared position); closed when the last reader releases it.

    Closing it earlier could give its number to another file while a thread still reads from it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        try:
            data = os.pread(self._descriptor, count, offset)
        except OSError as error:
            if error.errno == errno.EIO:  # a bad sector: costs this tile
                raise
            # A missing drive must not turn every tile into a bad one, and the slide blank.
            raise InputError(f"{self._path}: cannot be read any more ({error.strerror or error})") from error
        if len(data) != count:
            raise ValueError(f"its {count} bytes extend beyond the end of the file")
        return data


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


def _zeros_note(file: _SharedFile, all_levels: list[TiledLevel]) -> Iterator[str]:
    """Note on uncompressed pixels that end in zeros: an aborted copy preallocated to full length looks like that.

    It reads the last row of pixels inside the image; the rest of a tile may be padded with zeros.
    """
    plain = [tiled for tiled in all_levels if tiled.level.compression == "none" and bool(tiled.table.counts.any())]
    if not plain:
        return
    tiled = max(plain, key=lambda t: int((t.table.offsets + t.table.counts).max()))
    index = int((tiled.table.offsets + tiled.table.counts).argmax())
    offset, count = int(tiled.table.offsets[index]), int(tiled.table.counts[index])
    row, column = divmod(index % (tiled.columns * tiled.rows), tiled.columns)
    (width, height), (tile_width, tile_height) = tiled.level.size_px, tiled.level.tile_px
    shown_width, shown_height = (
        min(tile_width, width - column * tile_width),
        min(tile_height, height - row * tile_height),
    )
    stored_height = tile_height if count % (tile_width * tile_height) == 0 else shown_height  # a last strip is lower
    samples = max(1, count // (tile_width * stored_height))
    row_bytes = tile_width * samples
    start = offset + max(0, min(shown_height, count // row_bytes) - 1) * row_bytes
    shown_bytes = min(shown_width * samples, offset + count - start)
    try:
        tail = file.read(start, shown_bytes)
    except ValueError:
        return  # beyond the end of the file: that tile is counted when it is read
    if len(tail) >= _TAIL_BYTES and not any(tail):
        yield f"the last row of its pixels ({len(tail)} bytes) is zeros: black, or an aborted copy"


def _notes(all_levels: list[TiledLevel], unwritten_px: set[tuple[int, int]]) -> Iterator[str]:
    for tiled in all_levels:
        name = f"level {tiled.level.index} ({tiled.level.size_px[0]} × {tiled.level.size_px[1]} px)"
        n_empty = int(tiled.table.empty.sum())
        if tiled.level.size_px in unwritten_px:
            yield (
                f"{n_empty} of {len(tiled.table.counts)} tiles of {name} were never written, though the finer level "
                f"has pixels there: that level is not used"
            )
        elif n_empty and tiled.level.index == 0:
            yield f"{n_empty} of {len(tiled.table.counts)} tiles of {name} were never written: they are background"
        if shared(tiled.table):
            yield f"tile {shared(tiled.table)[0]} of {name} has the offset of another one: both blank, or damaged"
        out_of_order = swapped(tiled.table)
        if out_of_order:
            yield (
                f"the tiles of {name} are in file order except {len(out_of_order)} (tile {out_of_order[0]}): edited, "
                f"or offsets swapped by damage"
            )
