"""Levels of a tiled TIFF: the table and the decoder of the tiles of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.pixel_reader import MAX_TILE_PX, Level, Rgb, UnsupportedError
from longvit.slides.tiff_header import TiffHeader
from longvit.slides.tile_decoding import JPEG_2000, TileDecoder, tile_decoder
from longvit.slides.tile_table import NO_COMPRESSION, TileTable, is_unwritten, places_of, tile_table

# Largest number of pixel bytes per stored byte: the codec's longest runs (LZW, Deflate, PackBits), with a margin.
_MAX_PER_BYTE = {NO_COMPRESSION: 1, 5: 1500, 8: 1100, 32946: 1100, 32773: 65}
# An uncompressed strip needs no decoding: a large one is read in pieces of about this many pixels.
_PIECE_PX = 2**20


@dataclass(frozen=True)
class TiledLevel:
    """One level: its tiles row by row (plane by plane), their table and their decoder."""

    level: Level
    columns: int
    rows: int
    planes: int
    table: TileTable
    decoder: TileDecoder

    def reduced(self, reduction: int) -> TiledLevel:
        """The same tiles, reduced while they are decoded."""
        return self if reduction == 1 else replace(self, level=self.level.reduced(reduction))

    def decode(self, data: bytes, index: int) -> NDArray[np.uint8]:
        """Bytes and index of a tile -> uint8 (height, width, samples); 4 samples are RGBX."""
        if self.level.reduction == 1 or self.decoder.decode_reduced is None:
            return self.decoder.decode(data, index)
        return self.decoder.decode_reduced(data, self.level.reduction)

    def written(self) -> NDArray[np.bool_]:
        """Mask of tiles that have bytes, (rows, columns)."""
        return ~self.table.empty[: self.rows * self.columns].reshape(self.rows, self.columns)


def tiled_levels(
    path: Path, header: TiffHeader, background: Rgb
) -> tuple[list[TiledLevel], dict[tuple[int, int], str]]:
    """Levels of a TIFF, and a note for the size of each that cannot be read although level 0 can."""
    first, file_bytes = header.pages[0], path.stat().st_size
    levels: list[TiledLevel] = []
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
) -> TiledLevel:
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
    # OpenJPEG takes four bytes per sample beside the pixels.
    max_px = MAX_TILE_PX // 2 if int(page.compression) in JPEG_2000 else MAX_TILE_PX
    if tile_w * tile_h > max_px:
        raise InputError(
            f"{path}: level {index} is one piece of {tile_w} × {tile_h} px that would have to be decoded whole, and "
            f"may have at most {max_px} px (0.8 GB of memory); convert it to a tiled TIFF "
            f"(`vips tiffsave --tile --pyramid`)"
        )
    level = Level(
        index=index,
        size_px=(width_px, height_px),
        downsample=(first.imagewidth / width_px + first.imagelength / height_px) / 2,
        tile_px=(tile_w, tile_h),
        compression=getattr(page.compression, "name", str(page.compression)).lower(),
    )
    decoder = tile_decoder(page, (tile_w, tile_h), background, pieces is not None)
    return TiledLevel(level, columns, rows, planes, table, decoder)


def _check_lengths(path: Path, page: tifffile.TiffPage, index: int, tile_px: tuple[int, int], table: TileTable) -> None:
    """Raises `InputError` where several tiles have too few bytes for their pixels, given the codec.

    A damaged width of strips costs minutes and gigabytes, and no table of tiles contradicts it.
    """
    max_per_byte = _MAX_PER_BYTE.get(int(page.compression))
    if max_per_byte is None:
        return
    tile_w, tile_h = tile_px
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    rows = tile_h if page.is_tiled else min(tile_h, page.imagelength % tile_h or tile_h)  # the last strip is lower
    needed = tile_w * rows * samples // max_per_byte
    short = int(((table.counts > 0) & (table.counts < needed)).sum())
    if short > 1:
        raise InputError(
            f"{path}: damaged: {short} of {len(table.counts)} tiles of level {index} have too few bytes for "
            f"{tile_w} × {tile_h} px; copy or download it again"
        )


def _pieces(page: tifffile.TiffPage, strip_h: int, planes: int, table: TileTable) -> tuple[int, TileTable] | None:
    """Pieces of one large uncompressed strip (ImageJ writes such), each of some rows; None for anything else."""
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


def written_levels(path: Path, levels: list[TiledLevel]) -> list[TiledLevel]:
    """Levels without those that lack tiles where a finer one has some, renumbered."""
    if not bool(levels[0].written().any()):
        raise InputError(
            f"{path}: not one of the {levels[0].columns * levels[0].rows} tiles of level 0 was ever written: an "
            f"aborted conversion or copy; make or copy it again"
        )
    kept = [levels[0]]
    for tiled in levels[1:]:
        finer = kept[-1]
        scale = np.divide(finer.level.size_px, tiled.level.size_px)
        coarse_px = np.asarray(tiled.level.tile_px) * scale
        if not is_unwritten(tiled.written(), finer.written(), coarse_px, np.asarray(finer.level.tile_px, np.float64)):
            kept.append(replace(tiled, level=replace(tiled.level, index=len(kept))))
    return kept
