"""The fast path: tiles of a TIFF decoded one by one, straight from their offsets, without stitching or a cache.

tifffile says where the tiles lie; simplejpeg decodes JPEG (see `jpeg_tile`), imagecodecs through tifffile the rest
(JPEG 2000, LZW, Deflate, ZSTD, WebP, none). Strips are tiles as wide as the image. JPEG tiles take a fifth of the
CPU time that openslide-python takes (2026-11; `benchmarks/canvas.py` has the whole way to a canvas).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
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

_JPEG = 7
_JPEG_2000 = {33005, 34712}
# 33003 (Aperio's JPEG 2000 in YCbCr with halved chroma) is left to OpenSlide.
_OTHER = {1, 5, 8, 32773, 32946, 50000, 50001, *_JPEG_2000}
_MINISWHITE, _MINISBLACK, _RGB, _YCBCR = 0, 1, 2, 6
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
# A tile is decoded whole. 2^28 px of RGBX are 1 GiB: no scanner makes such tiles, files of a single strip have them.
_MAX_TILE_PX = 2**28


@dataclass(frozen=True)
class _TiledLevel:
    """Where the tiles of one level lie in the file, row by row (plane by plane), and what decodes one."""

    level: Level
    columns: int
    rows: int
    planes: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    decode: Callable[[bytes, int], NDArray[np.uint8]]
    """Bytes and index -> uint8 (height, width, samples); 4 samples are RGBX."""


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
            self._tiled = _tiled_levels(path, header, background)
        except (InputError, UnsupportedError):
            raise
        # A damaged directory gives a tag any type: a list of sizes, a text.
        except Exception as error:
            raise UnsupportedError(f"a damaged directory ({one_line(error)})") from error
        self.levels = tuple(tiled.level for tiled in self._tiled)
        self._file: _SharedFile | None = _SharedFile(path)

    def close(self) -> None:
        self._file = None

    def leaves_tiles_out(self) -> bool:
        """Whether some tile has no bytes: scanners skip blank glass, and each means something else by it."""
        return any(bool((tiled.counts == 0).any()) for tiled in self._tiled)

    def fullest_tiles(self, level: int, n: int) -> list[tuple[int, int]]:
        """(column, row) of the `n` tiles with the most bytes: those with the most in them."""
        tiled = self._tiled[level]
        area = tiled.columns * tiled.rows
        order = np.argsort(tiled.counts[:area], kind="stable")[::-1][:n]
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
        if tiled.counts[index] == 0:
            fill(target, self.background)
            return
        for plane in range(tiled.planes):
            at = index + plane * area
            pixels = tiled.decode(file.read(int(tiled.offsets[at]), int(tiled.counts[at])), at)
            part = pixels[top : top + height, left : left + width]
            if part.shape[:2] != (height, width):
                raise ValueError(
                    f"the tile holds {pixels.shape[1]} × {pixels.shape[0]} px, fewer than its {left + width} × "
                    f"{top + height}"
                )
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
    if page.samplesperpixel not in (1, 3, 4):
        raise InputError(f"{path}: {page.samplesperpixel} samples per pixel; only grey, RGB and RGBA are read")


def _tiled_levels(path: Path, header: TiffHeader, background: Rgb) -> tuple[_TiledLevel, ...]:
    first, file_bytes = header.pages[0], path.stat().st_size
    return tuple(
        _tiled_level(path, page, index, first, background, file_bytes) for index, page in enumerate(header.pages)
    )


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
    if tile_w * tile_h > _MAX_TILE_PX:
        raise InputError(
            f"{path}: level {index} is one piece of {tile_w} × {tile_h} px that would have to be decoded whole; "
            f"convert it to a tiled TIFF (`vips tiffsave --tile --pyramid`)"
        )
    columns, rows = -(-width_px // tile_w), -(-height_px // tile_h)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    _check_table(path, index, offsets, counts, columns * rows * planes, file_bytes)
    level = Level(
        index=index,
        size_px=(width_px, height_px),
        downsample=(first.imagewidth / width_px + first.imagelength / height_px) / 2,
        tile_px=(tile_w, tile_h),
        compression=getattr(page.compression, "name", str(page.compression)).lower(),
    )
    return _TiledLevel(level, columns, rows, planes, offsets, counts, _decoder(page, (tile_w, tile_h), background))


def _check_table(
    path: Path, index: int, offsets: NDArray[np.int64], counts: NDArray[np.int64], expected: int, file_bytes: int
) -> None:
    if len(offsets) < expected or len(counts) < expected:
        raise InputError(
            f"{path}: damaged or cut off: level {index} needs {expected} tiles, its table names "
            f"{min(len(offsets), len(counts))}; copy or download it again"
        )
    beyond = int(((offsets[:expected] + counts[:expected] > file_bytes) & (counts[:expected] > 0)).sum())
    # One such tile is a damaged tile (filled and counted when it is read); a file that was cut off loses many.
    if beyond > 1:
        raise InputError(
            f"{path}: cut off: {beyond} of {expected} tiles of level {index} lie beyond the end of the file "
            f"({file_bytes} bytes); copy or download it again"
        )


def _decoder(
    page: tifffile.TiffPage, tile_px: tuple[int, int], background: Rgb
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
    if photometric not in (_MINISWHITE, _MINISBLACK, _RGB):
        raise UnsupportedError(f"photometric {getattr(page.photometric, 'name', photometric)}")
    if samples == 4 and page.planarconfig == 2:
        raise UnsupportedError("separate planes of RGBA")
    return _GenericTiles(page, compression, photometric, tile_px, background)


class _GenericTiles:
    """Decodes whatever tifffile and imagecodecs know; puts RGBA on the background."""

    def __init__(
        self, page: tifffile.TiffPage, compression: int, photometric: int, tile_px: tuple[int, int], background: Rgb
    ) -> None:
        self._decode: Callable[..., Any] = page.decode
        self._jpeg_2000 = compression in _JPEG_2000
        self._invert = photometric == _MINISWHITE
        self._tile_px = tile_px
        self._background = background
        extra = page.extrasamples[0] if page.extrasamples and page.samplesperpixel == 4 else None
        self._alpha = int(extra) if extra is not None else None

    def __call__(self, data: bytes, index: int) -> NDArray[np.uint8]:
        if self._jpeg_2000:
            check_jpeg_2000(data, self._tile_px)
        decoded = self._decode(data, index)[0]
        pixels: NDArray[np.uint8] = np.asarray(decoded)[0]
        if self._invert:
            pixels = np.invert(pixels)
        if pixels.shape[2] == 4:
            pixels = self._on_background(pixels)
        return pixels

    def _on_background(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        colour = pixels[..., :3]
        if self._alpha not in (_ASSOCIATED_ALPHA, _ALPHA):
            return colour
        alpha = pixels[..., 3:].astype(np.float32) / 255
        premultiplied = colour * (alpha if self._alpha == _ALPHA else 1.0)
        on_background = premultiplied + (1 - alpha) * np.asarray(self._background, np.float32)
        return np.clip(np.rint(on_background), 0, 255).astype(np.uint8)


def check_jpeg_2000(data: bytes, tile_px: tuple[int, int]) -> None:
    """Raises `ValueError` for a codestream that is cut off or declares a size other than the tile's.

    OpenJPEG fills what is missing with a guess and says nothing; the end marker and the size are what can be checked.
    """
    if not data.startswith(b"\xff\x4f\xff\x51"):
        if data[4:8] == b"jP  ":
            return  # a JP2 file around the codestream: left to the decoder
        raise ValueError(f"no JPEG 2000: the tile begins with {data[:4].hex(' ')}")
    x1, y1, x0, y0 = (int.from_bytes(data[i : i + 4], "big") for i in (8, 12, 16, 20))
    if (x1 - x0) * (y1 - y0) > tile_px[0] * tile_px[1]:
        raise ValueError(f"JPEG 2000 of {x1 - x0} × {y1 - y0} px in a tile of {tile_px[0]} × {tile_px[1]}")
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("the JPEG 2000 stream has no end: cut off")
