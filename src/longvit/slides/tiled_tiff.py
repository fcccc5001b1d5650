"""The fast path: tiles of a TIFF decoded one by one, straight from their offsets, without stitching or a cache.

tifffile says where the tiles lie; `tile_decoding` decodes them (JPEG, JPEG 2000, LZW, Deflate, ZSTD, WebP, none).
Strips are tiles as wide as the image. JPEG tiles take a fifth of the CPU time that openslide-python takes (2026-11;
`benchmarks/canvas.py` has the whole way to a canvas).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from longvit.errors import InputError, one_line
from longvit.slides.jpeg_file import jpeg_facts
from longvit.slides.pixel_reader import (
    MAX_TILE_PX,
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
from longvit.slides.tile_decoding import (
    JPEG,
    JPEG_2000,
    MINISBLACK,
    MINISWHITE,
    PALETTE,
    RGB,
    YCBCR,
    tile_decoder,
)
from longvit.slides.tile_table import (
    NO_COMPRESSION,
    TileTable,
    is_unwritten,
    mark_overlaps,
    metadata_of,
    places_of,
    shared,
    swapped,
    tile_table,
)

_PHOTOMETRIC, _COLOUR_MAP, _EXTRA_SAMPLES, _SUBSAMPLING = 262, 320, 338, 530
_TAIL_BYTES = 96  # 32 pixels
# How many bytes of pixels one byte can hold: of runs as long as the codec has them (LZW, Deflate, PackBits), with room.
_MOST_PER_BYTE = {NO_COMPRESSION: 1, 5: 1500, 8: 1100, 32946: 1100, 32773: 65}
# A strip of plain bytes needs no decoding: a large one is read in pieces of about so many pixels.
_PIECE_PX = 2**20


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
            every, unread_px = _tiled_levels(path, header, background)
            mark_overlaps([tiled.table for tiled in every], metadata_of(header.directories))
            self._tiled = _written_levels(path, every)
        except (InputError, UnsupportedError):
            raise
        # A damaged directory gives a tag any type: a list of sizes, a text.
        except Exception as error:
            raise UnsupportedError(f"a damaged directory ({one_line(error)})") from error
        self.levels = tuple(tiled.level for tiled in self._tiled)
        unwritten_px = {tiled.level.size_px for tiled in every} - {level.size_px for level in self.levels}
        self.left_out_px = unwritten_px | set(header.left_out_px) | set(unread_px)
        """The sizes of the levels that are in the file and are not used."""
        self._leaves_tiles_out = any(bool(tiled.table.empty.any()) for tiled in every)
        self._file: _SharedFile | None = _SharedFile(path)
        self._check_colours(header)
        self.notes = (*unread_px.values(), *_notes(every, unwritten_px), *_zeros_at_the_end(self._file, every))

    def close(self) -> None:
        self._file = None

    def _check_colours(self, header: TiffHeader) -> None:
        """Raises `InputError` where the fullest JPEG tile shows that the tag for the colours is wrong."""
        page, file = header.pages[0], self._file
        if page.compression != JPEG or page.samplesperpixel != 3 or page.planarconfig == 2 or file is None:
            return
        tiled = self._tiled[0]
        ((column, row),) = self.fullest_tiles(0, 1)
        at = row * tiled.columns + column
        try:
            facts = jpeg_facts(file.read(int(tiled.table.offsets[at]), int(tiled.table.counts[at])))
        except (ValueError, OSError):
            return  # a damaged tile: it is counted when it is read
        says = {RGB: "RGB", YCBCR: "YCbCr"}.get(int(page.photometric))
        if facts is not None and facts.colours is not None and says is not None and facts.colours != says:
            raise InputError(
                f"{self.path}: damaged, or written wrongly: its tag PhotometricInterpretation says {says}, its JPEG "
                f"tiles are {facts.colours}; copy or download it again, or convert it (`vips tiffsave --tile`)"
            )

    def leaves_tiles_out(self) -> bool:
        """Whether some tile was never written: scanners skip blank glass, and each means something else by it."""
        return self._leaves_tiles_out

    def n_tiles(self, level: int) -> int:
        """How many tiles a level has."""
        return self._tiled[level].columns * self._tiled[level].rows

    def fullest_tiles(self, level: int, n: int) -> list[tuple[int, int]]:
        """(column, row) of the `n` tiles with the most bytes: those with the most in them."""
        tiled = self._tiled[level]
        counts = tiled.table.counts[: tiled.columns * tiled.rows].copy()
        places = []
        for _ in range(min(n, len(counts))):
            index = len(counts) - 1 - int(counts[::-1].argmax())
            counts[index] = -1
            places.append((index % tiled.columns, index // tiled.columns))
        return places

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
        raise ValueError(f"the tile holds {width} × {height} px, fewer than its {least_width_px} × {least_height_px}")
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
    if photometric == YCBCR and page.compression != JPEG and _SUBSAMPLING not in page.tags:
        raise InputError(
            f"{path}: its tag PhotometricInterpretation says YCbCr, its tag YCbCrSubSampling is missing: damaged, or "
            f"written wrongly; copy or download it again, or export it as RGB (`vips colourspace`, QuPath)"
        )
    if photometric in (MINISWHITE, MINISBLACK) and _COLOUR_MAP in page.tags:
        raise InputError(
            f"{path}: it has a palette (ColorMap), but its tag PhotometricInterpretation says grey: damaged, or "
            f"written wrongly; copy or download it again, or export it as RGB (`vips colourspace`, QuPath)"
        )
    if samples == 4 and photometric == RGB and _EXTRA_SAMPLES not in page.tags:
        raise InputError(
            f"{path}: 4 samples per pixel, but its tag ExtraSamples is missing: whether the fourth is transparency is "
            f"not known; damaged (copy or download it again), or keep three samples (`vips extract_band a.tif b.tif 0 "
            f"--n 3`)"
        )
    missing = _PHOTOMETRIC not in page.tags
    one = photometric in (MINISWHITE, MINISBLACK, PALETTE)
    several = not one and photometric not in (4, 32803, 34892)  # masks and raw sensors have one sample
    if missing or (samples == 1 and not one) or (samples > 1 and not several):
        says = "is missing" if missing else f"says {getattr(photometric, 'name', photometric)}"
        raise InputError(
            f"{path}: {samples} samples per pixel, but its tag PhotometricInterpretation {says}: which colours they "
            f"are is not known; damaged (copy or download it again), or export it as RGB (`vips colourspace`, QuPath)"
        )


def _tiled_levels(
    path: Path, header: TiffHeader, background: Rgb
) -> tuple[list[_TiledLevel], dict[tuple[int, int], str]]:
    """The levels, and the sizes of those that cannot be read though level 0 can, with what is said of it."""
    first, file_bytes = header.pages[0], path.stat().st_size
    levels: list[_TiledLevel] = []
    unread_px: dict[tuple[int, int], str] = {}
    for index, page in enumerate(header.pages):
        try:
            levels.append(_tiled_level(path, page, index, first, background, file_bytes))
        except UnsupportedError as error:
            if index == 0:
                raise
            size_px = (page.imagewidth, page.imagelength)
            unread_px[size_px] = f"its level of {size_px[0]} × {size_px[1]} px is not used: it has {error}"
    return levels, unread_px


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
    table = tile_table(path, index, places_of(page), columns * rows * planes, file_bytes)
    _check_lengths(path, page, index, (tile_w, tile_h), table)
    pieces = _pieces(page, tile_h, planes, table)
    if pieces is not None:
        tile_h, table = pieces
        rows = -(-height_px // tile_h)
    # OpenJPEG takes four bytes a sample beside the pixels.
    most_px = MAX_TILE_PX // 2 if int(page.compression) in JPEG_2000 else MAX_TILE_PX
    if tile_w * tile_h > most_px:
        raise InputError(
            f"{path}: level {index} is one piece of {tile_w} × {tile_h} px that would have to be decoded whole, and "
            f"may have at most {most_px} px (0.8 GB of memory); convert it to a tiled TIFF "
            f"(`vips tiffsave --tile --pyramid`)"
        )
    level = Level(
        index=index,
        size_px=(width_px, height_px),
        downsample=(first.imagewidth / width_px + first.imagelength / height_px) / 2,
        tile_px=(tile_w, tile_h),
        compression=getattr(page.compression, "name", str(page.compression)).lower(),
    )
    decode = tile_decoder(page, (tile_w, tile_h), background, pieces is not None)
    return _TiledLevel(level, columns, rows, planes, table, decode)


def _check_lengths(path: Path, page: tifffile.TiffPage, index: int, tile_px: tuple[int, int], table: TileTable) -> None:
    """Raises `InputError` where several tiles have fewer bytes than the codec can pack their pixels into.

    A damaged width of strips makes pixels of minutes and gigabytes, and no table of tiles contradicts it.
    """
    at_most = _MOST_PER_BYTE.get(int(page.compression))
    if at_most is None:
        return
    tile_w, tile_h = tile_px
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    rows = tile_h if page.is_tiled else min(tile_h, page.imagelength % tile_h or tile_h)  # the last strip is lower
    needed = tile_w * rows * samples // at_most
    short = int(((table.counts > 0) & (table.counts < needed)).sum())
    if short > 1:
        raise InputError(
            f"{path}: damaged: {short} of {len(table.counts)} tiles of level {index} have too few bytes for "
            f"{tile_w} × {tile_h} px; copy or download it again"
        )


def _pieces(page: tifffile.TiffPage, strip_h: int, planes: int, table: TileTable) -> tuple[int, TileTable] | None:
    """One large strip of plain bytes (ImageJ writes such) as pieces of some rows; None for anything else."""
    row_bytes = page.imagewidth * (1 if planes > 1 else page.samplesperpixel)
    plain = page.compression == NO_COMPRESSION and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
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
            f"{path}: not one of the {every[0].columns * every[0].rows} tiles of level 0 was ever written: a "
            f"conversion or copy that broke off; make or copy it again"
        )
    kept = [every[0]]
    for tiled in every[1:]:
        finer = kept[-1]
        scale = np.divide(finer.level.size_px, tiled.level.size_px)
        coarse_px = np.asarray(tiled.level.tile_px) * scale
        if not is_unwritten(tiled.written(), finer.written(), coarse_px, np.asarray(finer.level.tile_px, np.float64)):
            kept.append(replace(tiled, level=replace(tiled.level, index=len(kept))))
    return kept


def _zeros_at_the_end(file: _SharedFile, every: list[_TiledLevel]) -> Iterator[str]:
    """Plain bytes have no end that a decoder misses: a copy that broke off in a file of full length ends in zeros.

    Looked at is the last row of pixels that the image shows; behind it a tile may be filled up with zeros.
    """
    plain = [tiled for tiled in every if tiled.level.compression == "none" and bool(tiled.table.counts.any())]
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
        yield f"the last row of its pixels ({len(tail)} bytes) is zeros: black, or a copy that broke off"


def _notes(every: list[_TiledLevel], unwritten_px: set[tuple[int, int]]) -> Iterator[str]:
    for tiled in every:
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
            yield f"tile {shared(tiled.table)[0]} of {name} has the place of another one: both blank, or damaged"
        astray = swapped(tiled.table)
        if astray:
            yield (
                f"the tiles of {name} lie in the order of the file but for {len(astray)} (tile {astray[0]}): edited, "
                f"or places that were swapped by damage"
            )
