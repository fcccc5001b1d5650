"""The fast path: tiles of a TIFF decoded one by one, straight from their offsets, without stitching or a cache.

tifffile says where the tiles lie; simplejpeg decodes JPEG (see `jpeg_tile`), imagecodecs through tifffile the rest
(JPEG 2000, LZW, Deflate, ZSTD, WebP, none). Strips are tiles as wide as the image. JPEG tiles take a fifth of the
CPU time that openslide-python takes (2026-11; `benchmarks/canvas.py` has the whole way to a canvas).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.jpeg_tile import JpegTiles
from longvit.slides.pixel_reader import (
    BadTile,
    Block,
    Level,
    PixelReader,
    Rgb,
    UnsupportedError,
    fill,
    fill_outside,
    one_line,
)
from longvit.slides.tiff_header import TiffHeader
from longvit.slides.tile_table import MAX_TILE_PX, TileTable, is_unwritten, mark_overlaps, swapped, tile_table

_JPEG = 7
_JPEG_2000 = {33005, 34712}
_WEBP = 50001
# 33003 (Aperio's JPEG 2000 in YCbCr with halved chroma) is left to OpenSlide.
_OTHER = {1, 5, 8, 32773, 32946, 50000, 50001, *_JPEG_2000}
_NONE = 1
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_PHOTOMETRIC, _COLOUR_MAP = 262, 320
# A strip of plain bytes needs no decoding: a large one is read in pieces of about so many pixels.
_PIECE_PX = 2**20
_ROWS_AT_ONCE = 64
_WORD = 4  # bytes by which a writer may pad a tile


@dataclass(frozen=True)
class _TiledLevel:
    """Where the tiles of one level lie in the file, row by row (plane by plane), and what decodes one."""

    level: Level
    columns: int
    rows: int
    planes: int
    table: TileTable
    decode: Callable[[bytes, int], NDArray[np.uint8]]
    """Bytes and index -> uint8 (height, width, samples); 4 samples are RGBX."""

    def written(self) -> NDArray[np.bool_]:
        """Which tiles have bytes, (rows, columns)."""
        return ~self.table.empty[: self.rows * self.columns].reshape(self.rows, self.columns)


class TiledTiffReader(PixelReader):
    """Levels and blocks of a tiled (or stripped) TIFF of 8-bit RGB, RGBA or grey.

    Raises `UnsupportedError` for what only OpenSlide may read, `InputError` for what nobody reads rightly (16 bits,
    separate channels, a table of tiles that does not fit the file).
    """

    name = "tiff"
    version = ", ".join(f"{name} {version_of(name)}" for name in ("tifffile", "simplejpeg", "imagecodecs"))

    def __init__(self, path: Path, header: TiffHeader, background: Rgb) -> None:
        self.path = path
        self.background = background
        try:
            _check_pixels(path, header)
            every = _tiled_levels(path, header, background)
            mark_overlaps([tiled.table for tiled in every])
            self._tiled = _written_levels(path, every)
        except (InputError, UnsupportedError):
            raise
        # A damaged directory gives a tag any type: a list of sizes, a text.
        except Exception as error:
            raise UnsupportedError(f"a damaged directory ({one_line(error)})") from error
        self.levels = tuple(tiled.level for tiled in self._tiled)
        unwritten_px = {tiled.level.size_px for tiled in every} - {level.size_px for level in self.levels}
        self.left_out_px = unwritten_px | set(header.left_out_px)
        """The sizes of the levels that are in the file and are not used."""
        self._leaves_tiles_out = any(bool((tiled.table.counts == 0).any()) for tiled in every)
        self.notes = tuple(_notes(every, unwritten_px))
        self._file: _SharedFile | None = _SharedFile(path)

    def close(self) -> None:
        self._file = None

    def leaves_tiles_out(self) -> bool:
        """Whether some tile has no bytes: scanners skip blank glass, and each means something else by it."""
        return self._leaves_tiles_out

    def n_tiles(self, level: int) -> int:
        """How many tiles a level has."""
        return self._tiled[level].columns * self._tiled[level].rows

    def fullest_tiles(self, level: int, n: int) -> list[tuple[int, int]]:
        """(column, row) of the `n` tiles with the most bytes: those with the most in them."""
        tiled = self._tiled[level]
        area = tiled.columns * tiled.rows
        order = np.argsort(tiled.table.counts[:area], kind="stable")[::-1][:n]
        return [(int(index % tiled.columns), int(index // tiled.columns)) for index in order]

    def read_block(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        tiled, file = self._tiled[level], self._file
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
                # Decoders raise whatever they like on damaged bytes; each of them costs this one tile.
                except Exception as error:
                    fill(target, self.background)
                    bad.append(_bad_tile(tiled.level, column, row, error))
        return bad

    def _read_tile(
        self, file: _SharedFile, tiled: _TiledLevel, column: int, row: int, left: int, top: int, target: Block
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
    """One descriptor for all threads (pread moves no shared position); closed when the last reader lets go of it.

    Closing it at once could hand its number to another file while a thread still reads from it.
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
            # A drive that is gone would make every tile a bad one, and the slide blank.
            raise InputError(f"{self._path}: cannot be read any more ({error.strerror or error})") from error
        if len(data) != count:
            raise ValueError(f"its {count} bytes reach beyond the end of the file")
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


def _check_size(pixels: NDArray[np.uint8], level: Level, least_width_px: int, least_height_px: int) -> None:
    """Raises `ValueError` where decoded bytes are not one tile: what they show belongs elsewhere."""
    height, width = pixels.shape[:2]
    if height < least_height_px or width < least_width_px:
        raise ValueError(
            f"the tile holds {width} × {height} px, fewer than its {least_width_px} × {least_height_px}"
        )
    tile_w, tile_h = level.tile_px
    if height > tile_h or width > tile_w:
        raise ValueError(f"the tile holds {width} × {height} px, more than {tile_w} × {tile_h}")


def _check_pixels(path: Path, header: TiffHeader) -> None:
    page = header.pages[0]
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise InputError(
            f"{path}: {page.bitspersample} bits per sample ({page.dtype}); only 8-bit RGB or grey is read, since the "
            f"range of deeper pixels is not known: convert it (`vips cast`, then `vips tiffsave --tile --pyramid`)"
        )
    if header.planes > 1:
        raise InputError(
            f"{path}: {header.planes} separate planes (channels, depths or times); only one RGB or grey image is read: "
            f"export it as RGB (bfconvert, QuPath)"
        )
    samples, photometric = page.samplesperpixel, page.photometric
    if samples not in (1, 3, 4):
        raise InputError(f"{path}: {samples} samples per pixel; only grey, RGB and RGBA are read")
    missing = _PHOTOMETRIC not in page.tags
    one = photometric in (_MINISWHITE, _MINISBLACK, _PALETTE)
    several = not one and photometric not in (4, 32803, 34892)  # masks and raw sensors have one sample
    if missing or (samples == 1 and not one) or (samples > 1 and not several):
        says = "is missing" if missing else f"says {getattr(photometric, 'name', photometric)}"
        raise InputError(
            f"{path}: {samples} samples per pixel, but its tag PhotometricInterpretation {says}: which colours they are "
            f"is not known; damaged (copy or download it again), or export it as RGB (`vips colourspace`, QuPath)"
        )


def _tiled_levels(path: Path, header: TiffHeader, background: Rgb) -> list[_TiledLevel]:
    first, file_bytes = header.pages[0], path.stat().st_size
    return [_tiled_level(path, page, index, first, background, file_bytes) for index, page in enumerate(header.pages)]


def _tiled_level(
    path: Path, page: tifffile.TiffPage, index: int, first: tifffile.TiffPage, background: Rgb, file_bytes: int
) -> _TiledLevel:
    width_px, height_px = page.imagewidth, page.imagelength
    if page.is_tiled:
        tile_w, tile_h = page.tilewidth, page.tilelength
    else:
        tile_w, tile_h = width_px, min(page.rowsperstrip, height_px)
    if tile_w < 1 or tile_h < 1:
        raise InputError(f"{path}: damaged: level {index} declares tiles of {tile_w} × {tile_h} px")
    columns, rows = -(-width_px // tile_w), -(-height_px // tile_h)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    table = tile_table(path, index, offsets, counts, columns * rows * planes, file_bytes)
    pieces = _pieces(page, tile_h, planes, table)
    if pieces is not None:
        tile_h, table = pieces
        rows = -(-height_px // tile_h)
    # OpenJPEG takes four bytes a sample beside the pixels.
    most_px = MAX_TILE_PX // 2 if int(page.compression) in _JPEG_2000 else MAX_TILE_PX
    if tile_w * tile_h > most_px:
        raise InputError(
            f"{path}: level {index} is one piece of {tile_w} × {tile_h} px that would have to be decoded whole, and may "
            f"have at most {most_px} px (0.8 GB of memory); convert it to a tiled TIFF "
            f"(`vips tiffsave --tile --pyramid`)"
        )
    level = Level(
        index=index,
        size_px=(width_px, height_px),
        downsample=(first.imagewidth / width_px + first.imagelength / height_px) / 2,
        tile_px=(tile_w, tile_h),
        compression=getattr(page.compression, "name", str(page.compression)).lower(),
    )
    decode = _decoder(page, (tile_w, tile_h), background, pieces is not None)
    return _TiledLevel(level, columns, rows, planes, table, decode)


def _pieces(
    page: tifffile.TiffPage, strip_h: int, planes: int, table: TileTable
) -> tuple[int, TileTable] | None:
    """One large strip of plain bytes (ImageJ writes such) as pieces of some rows; None for anything else."""
    row_bytes = page.imagewidth * (1 if planes > 1 else page.samplesperpixel)
    plain = page.compression == _NONE and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
    if not plain or page.imagewidth * strip_h <= _PIECE_PX or strip_h != page.imagelength:
        return None
    if bool(table.faults.any()) or not bool((table.counts == row_bytes * strip_h).all()):
        return None
    piece_h = max(1, _PIECE_PX // page.imagewidth)
    tops = np.arange(0, strip_h, piece_h)
    heights = np.minimum(piece_h, strip_h - tops)
    offsets = (table.offsets[:, None] + tops * row_bytes).reshape(-1)
    counts = np.tile(heights * row_bytes, planes)
    return piece_h, TileTable(offsets, counts, np.zeros(len(offsets), np.uint8))


def _written_levels(path: Path, every: list[_TiledLevel]) -> list[_TiledLevel]:
    """The levels without those that lack tiles over places where a finer one has some, numbered anew."""
    if not bool(every[0].written().any()):
        raise InputError(
            f"{path}: not one of the {every[0].columns * every[0].rows} tiles of level 0 was ever written: a conversion "
            f"or copy that broke off; make or copy it again"
        )
    kept = [every[0]]
    for tiled in every[1:]:
        finer = kept[-1]
        scale = np.divide(finer.level.size_px, tiled.level.size_px)
        coarse_px = np.asarray(tiled.level.tile_px) * scale
        if not is_unwritten(tiled.written(), finer.written(), coarse_px, np.asarray(finer.level.tile_px, np.float64)):
            kept.append(replace(tiled, level=replace(tiled.level, index=len(kept))))
    return kept


def _notes(every: list[_TiledLevel], unwritten_px: set[tuple[int, int]]) -> Iterator[str]:
    for tiled in every:
        name = f"level {tiled.level.index} ({tiled.level.size_px[0]} × {tiled.level.size_px[1]} px)"
        n_empty = int(tiled.table.empty.sum())
        if tiled.level.size_px in unwritten_px:
            yield (
                f"{n_empty} of {len(tiled.table.counts)} tiles of {name} were never written, though the finer level has "
                f"pixels there: that level is not used"
            )
        elif n_empty and tiled.level.index == 0:
            yield f"{n_empty} of {len(tiled.table.counts)} tiles of {name} were never written: they are background"
        astray = swapped(tiled.table)
        if astray:
            yield (
                f"the tiles of {name} lie in the order of the file but for {len(astray)} (tile {astray[0]}): edited, or "
                f"places that were swapped by damage"
            )


def _decoder(
    page: tifffile.TiffPage, tile_px: tuple[int, int], background: Rgb, in_pieces: bool
) -> Callable[[bytes, int], NDArray[np.uint8]]:
    compression, photometric, samples = int(page.compression), int(page.photometric), page.samplesperpixel
    if compression == _JPEG:
        if samples == 4 or photometric not in (_MINISBLACK, _RGB, _YCBCR):
            raise UnsupportedError(f"JPEG tiles of {samples} samples, photometric {photometric}")
        colour = "grey" if samples == 1 or page.planarconfig == 2 else "rgb" if photometric == _RGB else "ycbcr"
        if page.planarconfig == 2 and photometric == _YCBCR:
            raise UnsupportedError("separate planes of YCbCr")
        tiles = JpegTiles(page.jpegtables, colour, tile_px)
        return lambda data, index: tiles.decode(data)
    if compression not in _OTHER:
        raise UnsupportedError(f"compression {getattr(page.compression, 'name', compression)}")
    if photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE):
        raise UnsupportedError(f"photometric {getattr(page.photometric, 'name', photometric)}")
    if samples == 4 and page.planarconfig == 2:
        raise UnsupportedError("separate planes of RGBA")
    return _GenericTiles(page, tile_px, background, in_pieces)


def _colours(page: tifffile.TiffPage) -> NDArray[np.uint8]:
    """The palette as uint8 (256, 3), rounded as libtiff does."""
    table = np.asarray(page.tags.valueof(_COLOUR_MAP, ()), np.uint32)
    if table.size != 3 * 256:
        raise UnsupportedError(f"a palette of {table.size} values instead of 768")
    return (table.reshape(3, 256).T * 255 // 65535).astype(np.uint8)


class _GenericTiles:
    """Decodes whatever tifffile and imagecodecs know; puts RGBA on the background."""

    def __init__(
        self, page: tifffile.TiffPage, tile_px: tuple[int, int], background: Rgb, in_pieces: bool
    ) -> None:
        self._decode: Callable[..., Any] = page.decode
        self._in_pieces = in_pieces
        self._samples = 1 if page.planarconfig == 2 else page.samplesperpixel
        self._jpeg_2000 = int(page.compression) in _JPEG_2000
        self._webp = int(page.compression) == _WEBP
        self._plain_bytes = tile_px[0] * tile_px[1] * self._samples if int(page.compression) == _NONE else None
        self._invert = int(page.photometric) == _MINISWHITE
        self._colours = _colours(page) if int(page.photometric) == _PALETTE else None
        self._tile_px = tile_px
        self._background = background
        extra = page.extrasamples[0] if page.extrasamples and page.samplesperpixel == 4 else None
        self._alpha = int(extra) if extra is not None else None

    def __call__(self, data: bytes, index: int) -> NDArray[np.uint8]:
        if self._jpeg_2000:
            check_jpeg_2000(data, self._tile_px)
        if self._webp:
            check_webp(data, self._tile_px)
        if self._plain_bytes is not None and len(data) > self._plain_bytes + _WORD:
            raise ValueError(f"{len(data)} bytes for a tile of {self._plain_bytes}")
        pixels: NDArray[np.uint8]
        if self._in_pieces:
            pixels = np.frombuffer(data, np.uint8).reshape(-1, self._tile_px[0], self._samples)
        else:
            pixels = np.asarray(self._decode(data, index)[0])[0]
        if self._invert:
            pixels = np.invert(pixels)
        if self._colours is not None:
            pixels = self._colours[pixels[..., 0]]
        if pixels.shape[2] == 4:
            pixels = self._on_background(pixels)
        return pixels

    def _on_background(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._alpha not in (_ASSOCIATED_ALPHA, _ALPHA):
            return pixels[..., :3]
        out = np.empty((*pixels.shape[:2], 3), np.uint8)
        background = np.asarray(self._background, np.float32)
        for y in range(0, len(pixels), _ROWS_AT_ONCE):  # floats of a whole strip would take ten times its bytes
            part = pixels[y : y + _ROWS_AT_ONCE]
            alpha = part[..., 3:].astype(np.float32) / 255
            premultiplied = part[..., :3] * (alpha if self._alpha == _ALPHA else 1.0)
            on_background = premultiplied + (1 - alpha) * background
            out[y : y + _ROWS_AT_ONCE] = np.clip(np.rint(on_background), 0, 255)
        return out


def check_jpeg_2000(data: bytes, tile_px: tuple[int, int]) -> None:
    """Raises `ValueError` for a codestream that is cut off or declares a size other than the tile's.

    OpenJPEG fills what is missing with a guess and says nothing; the end marker and the size are what can be checked.
    """
    start = data.find(b"\xff\x4f\xff\x51") if data[4:8] == b"jP  " else 0  # in a JP2 file the codestream lies further in
    if start < 0 or not data.startswith(b"\xff\x4f\xff\x51", start):
        raise ValueError(f"no JPEG 2000: the tile begins with {data[:4].hex(' ')}")
    x1, y1, x0, y0 = (int.from_bytes(data[start + i : start + i + 4], "big") for i in (8, 12, 16, 20))
    if (x1 - x0) * (y1 - y0) > tile_px[0] * tile_px[1]:
        raise ValueError(f"JPEG 2000 of {x1 - x0} × {y1 - y0} px in a tile of {tile_px[0]} × {tile_px[1]}")
    samples = int.from_bytes(data[start + 40 : start + 42], "big")
    if not 1 <= samples <= 4:
        raise ValueError(f"JPEG 2000 of {samples} samples per pixel")
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("the JPEG 2000 stream has no end: cut off")


def check_webp(data: bytes, tile_px: tuple[int, int]) -> None:
    """Raises `ValueError` for a picture of another size than the tile's: 16,383 px a side would be decoded whole."""
    kind, size = data[12:16], (0, 0)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if kind == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8 ":
            size = (int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF)
        elif kind == b"VP8X":
            size = (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if size == (0, 0):
        raise ValueError(f"no WebP: the tile begins with {data[:4].hex(' ')}")
    if size[0] > tile_px[0] or size[1] > tile_px[1]:
        raise ValueError(f"WebP of {size[0]} × {size[1]} px in a tile of {tile_px[0]} × {tile_px[1]}")
