"""Table of tile positions of one TIFF level, and the detection of impossible entries.

A tile of 0 bytes at offset 0 was never written: blank glass that a scanner skipped. Other entries that no decoder could
read correctly are damage: 0 bytes at an offset, bytes without an offset, two overlapping tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.pixel_reader import MAX_TILE_PX

_NO_BYTES, _NO_PLACE, _OVERLAP, _APART = 1, 2, 4, 8
_FAULTS = {
    _NO_BYTES: "0 bytes at an offset in the file",
    _NO_PLACE: "bytes without an offset in the file",
    _OVERLAP: "its bytes overlap those of another tile",
    _APART: "its bytes touch no other tile's, in a damaged table",
}
# Some writers round a byte count up to an even number.
_TOLERANCE_BYTES = 1
PADDING_BYTES = 4  # bytes by which a writer may pad a tile
_COMPRESSION, _TILE_WIDTH, _TILE_LENGTH = 259, 322, 323
NO_COMPRESSION = 1
_SUBSAMPLING, _YCBCR = 530, 6
_FEW = 4
_FIRST_BYTE = 8  # after the header of the file


Places = NDArray[np.int64]


@dataclass
class TileTable:
    """Offsets and byte counts, plane by plane, row by row."""

    offsets: Places
    counts: Places
    faults: NDArray[np.uint8]
    """Bits of faults; not 0: this tile cannot be right."""

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Tiles that were never written."""
        return (self.counts == 0) & (self.offsets == 0)

    def fault(self, index: int) -> str | None:
        """Description of the fault in a tile's entry, or None."""
        value = int(self.faults[index])
        return next((text for bit, text in _FAULTS.items() if value & bit), None) if value else None


def tile_table(path: Path, level: int, places: tuple[Places, Places], expected: int, file_bytes: int) -> TileTable:
    """Checked table of one level. Raises `InputError` where it does not fit the size or the file was truncated."""
    offsets, counts = places
    if len(offsets) != expected or len(counts) != expected:
        n_entries = len(offsets) if len(offsets) != expected else len(counts)
        raise InputError(
            f"{path}: damaged or cut off: level {level} needs {expected} tiles, its table names {n_entries}; copy or "
            f"download it again"
        )
    beyond = int(((offsets + counts > file_bytes) & (counts > 0)).sum())
    # One such tile is a damaged tile (filled and counted when it is read); a truncated file loses many.
    if beyond > 1:
        raise InputError(
            f"{path}: cut off: {beyond} of {expected} tiles of level {level} are beyond the end of the file "
            f"({file_bytes} bytes); copy or download it again"
        )
    faults = np.zeros(expected, np.uint8)
    faults[(counts <= 0) & (offsets != 0)] |= _NO_BYTES
    faults[(counts > 0) & (offsets < _FIRST_BYTE)] |= _NO_PLACE
    return TileTable(offsets, counts, faults)


def mark_overlaps(tables: list[TileTable], metadata: list[tuple[int, int]] | None = None) -> None:
    """Marks the tiles of all levels that partly overlap another tile or the file's `metadata`.

    `metadata`: (start, end) of directories and of the values they point at. Tiles may share one whole range.
    """
    used = [np.flatnonzero((table.counts > 0) & (table.offsets >= _FIRST_BYTE)) for table in tables]
    starts = [table.offsets[index] for table, index in zip(tables, used, strict=True)]
    ends = [start + table.counts[index] for table, index, start in zip(tables, used, starts, strict=True)]
    metadata_ranges = np.asarray(metadata or [], np.int64).reshape(-1, 2)
    if _are_disjoint(starts, ends, metadata_ranges):
        return
    starts, ends = [*starts, metadata_ranges[:, 0]], [*ends, metadata_ranges[:, 1]]
    start, end = np.concatenate(starts), np.concatenate(ends)
    places, inverse = np.unique(np.stack([start, end], axis=1), axis=0, return_inverse=True)
    # Ordered by start: a range overlaps an earlier one, or the next one begins inside it.
    farthest = np.maximum.accumulate(places[:, 1])
    overlaps = np.zeros(len(places), bool)
    overlaps[1:] = places[1:, 0] < farthest[:-1] - _TOLERANCE_BYTES
    overlaps[:-1] |= places[:-1, 1] - _TOLERANCE_BYTES > places[1:, 0]
    is_overlapping = overlaps[inverse.reshape(-1)]
    borders = np.cumsum([len(index) for index in used])
    for table, index, fault in zip(tables, used, np.split(is_overlapping, borders)[:-1], strict=True):
        table.faults[index[fault]] |= _OVERLAP
    _mark_apart(tables, places)


def _mark_apart(tables: list[TileTable], places: Places) -> None:
    """Marks the few tiles that touch no other range (start, end), in a table with faults whose tiles otherwise touch.

    Damage to a table hits several tiles: one may have received the offset of another.
    """
    starts, ends = np.unique(places[:, 0]), np.unique(places[:, 1])
    for table in tables:
        used = np.flatnonzero((table.counts > 0) & (table.faults == 0))
        if not table.faults.any() or len(used) < _FEW:
            continue
        start, end = table.offsets[used], table.offsets[used] + table.counts[used]
        before = ends[np.maximum(np.searchsorted(ends, start, "right") - 1, 0)]
        after = starts[np.minimum(np.searchsorted(starts, end - _TOLERANCE_BYTES), len(starts) - 1)]
        touches = (np.abs(start - before) <= PADDING_BYTES) | (np.abs(after - end) <= PADDING_BYTES)
        touches |= (start < _FIRST_BYTE + PADDING_BYTES) | (end >= ends[-1])
        if len(used) - touches.sum() <= len(used) // _FEW:
            table.faults[used[~touches]] |= _APART


def _are_disjoint(starts: list[Places], ends: list[Places], metadata: Places) -> bool:
    """Fast test of the ordinary case, without sorting: each level in file order, not interleaved with others."""
    for start, end in zip(starts, ends, strict=True):
        if bool((end[:-1] > start[1:]).any()):
            return False
        # The tile that begins before a directory ends, if any, has to end before it begins.
        before = np.searchsorted(start, metadata[:, 1]) - 1
        if bool((end[before[before >= 0]] > metadata[before >= 0, 0]).any()):
            return False
    spans = sorted((int(start[0]), int(end[-1])) for start, end in zip(starts, ends, strict=True) if len(start))
    return all(after[0] >= before[1] for before, after in pairwise(spans))


def metadata_of(pages: Iterable[tifffile.TiffPage]) -> list[tuple[int, int]]:
    """(start, end) of the directories and of the values stored outside them, in file order."""
    ranges = set()
    for page in pages:
        tag_places = [(tag.offset, tag.valueoffset, tag.valuebytecount) for tag in page.tags]
        tags = [place[0] for place in tag_places]
        ranges.add((page.offset, max(tags, default=page.offset) + 12))
        ranges |= {(at, at + count) for tag, at, count in tag_places if at > _FIRST_BYTE and not tag <= at < tag + 20}
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def shared(table: TileTable) -> list[int]:
    """Tiles with the offset of an earlier one, if there are few: blank tiles that a writer stored once."""
    if bool((table.offsets[1:] > table.offsets[:-1]).all()):
        return []
    used = np.flatnonzero(table.counts > 0)
    _, first = np.unique(table.offsets[used], return_index=True)
    again = np.setdiff1d(np.arange(len(used)), first)
    return [int(used[at]) for at in again] if 0 < len(again) <= 2 else []


def swapped(table: TileTable) -> list[int]:
    """Tiles out of order in a table that is otherwise in file order; at most a few.

    A table written in parallel has no order, and an edited file has its new tiles at the end. So this may be no damage.
    """
    if bool((table.offsets[1:] > table.offsets[:-1]).all()):
        return []
    used = np.flatnonzero((table.counts > 0) & (table.offsets >= _FIRST_BYTE) & (table.faults == 0))
    offsets = table.offsets[used]
    back = np.flatnonzero(offsets[1:] < offsets[:-1])
    if not 0 < len(back) <= 2 or len(used) < 4:
        return []
    return [int(used[at + 1]) for at in back]


def places_of(page: tifffile.TiffPage) -> tuple[Places, Places]:
    """Offsets and byte counts of the tiles or strips of one directory."""
    return np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)


def check_directories(path: Path, pages: Iterable[tifffile.TiffPage], file_bytes: int) -> None:
    """Raises `InputError` for directories that would cost gigabytes, or show another image, in any reader.

    Refused are a tile of more bytes than the file (OpenSlide allocates that memory) and a tile size of 0 or of
    gigabytes. So is a table that does not fit the size of its image.
    """
    for page in pages:
        largest = max(page.databytecounts, default=0)
        if largest > file_bytes:
            raise InputError(
                f"{path}: damaged or cut off: a tile of {largest} bytes in a file of {file_bytes}; copy or download it "
                f"again"
            )
        sides = [page.tags.valueof(code) for code in (_TILE_WIDTH, _TILE_LENGTH)]
        if sides == [None, None] or page.is_ndpi:
            continue
        width_px, height_px = (side if isinstance(side, int) else 0 for side in sides)
        if width_px < 1 or height_px < 1 or width_px * height_px > MAX_TILE_PX:
            raise InputError(
                f"{path}: an image of {page.imagewidth} × {page.imagelength} px has tiles of {width_px} × {height_px} "
                f"px; a tile is decoded whole and may have at most {MAX_TILE_PX} px: damaged, or convert it to a tiled "
                f"TIFF (`vips tiffsave --tile --pyramid`)"
            )
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        expected = -(-page.imagewidth // width_px) * -(-page.imagelength // height_px) * planes * page.imagedepth
        if len(page.dataoffsets) != expected or len(page.databytecounts) != expected:
            raise InputError(
                f"{path}: damaged or cut off: an image of {page.imagewidth} × {page.imagelength} px needs {expected} "
                f"tiles, its table names {min(len(page.dataoffsets), len(page.databytecounts))}; copy or download it "
                f"again"
            )
        _check_plain_bytes(path, page, width_px * height_px)


def _check_plain_bytes(path: Path, page: tifffile.TiffPage, tile_px: int) -> None:
    """Raises `InputError` where the tag Compression says none, or is missing, but the byte counts contradict that."""
    if page.compression != NO_COMPRESSION or page.bitspersample != 8:
        return
    tile_bytes = tile_px * (1 if page.planarconfig == 2 else page.samplesperpixel)
    if page.photometric == _YCBCR:
        across, down = page.tags.valueof(_SUBSAMPLING, (2, 2))
        tile_bytes = tile_px + 2 * tile_px // (across * down)
    counts = np.asarray(page.databytecounts, np.int64)
    other = int(((counts > 0) & ((counts < tile_bytes) | (counts > tile_bytes + PADDING_BYTES))).sum())
    # A single such tile is a damaged tile.
    if other > 1 or (other and _COMPRESSION not in page.tags):
        stated = "says none" if _COMPRESSION in page.tags else "is missing"
        raise InputError(
            f"{path}: damaged: its tag Compression {stated}, but {other} of {len(counts)} tiles have more or fewer "
            f"than the {tile_bytes} bytes of plain pixels; copy or download it again"
        )


def doubts_of(pages: Iterable[tifffile.TiffPage]) -> Iterator[str]:
    """Notes about possible damage in the tables of a format that only OpenSlide reads, as clauses."""
    tiled = [page for page in pages if page.is_tiled]
    tables = []
    for page in tiled:
        offsets, counts = places_of(page)
        tables.append(TileTable(offsets, counts, np.zeros(len(offsets), np.uint8)))
    mark_overlaps(tables)
    for page, table in zip(tiled, tables, strict=True):
        name = f"its image of {page.imagewidth} × {page.imagelength} px"
        n_over, n_half = int((table.faults != 0).sum()), int(((table.counts == 0) != (table.offsets == 0)).sum())
        if n_over:
            yield f"{n_over} tiles of {name} overlap: possibly damaged"
        if n_half:
            yield f"{n_half} tiles of {name} have 0 bytes or no offset: possibly damaged"
        if swapped(table):
            yield f"tile {swapped(table)[0]} of {name} is out of order: offsets possibly swapped by damage"


def is_unwritten(
    coarse: NDArray[np.bool_], fine: NDArray[np.bool_], coarse_px: NDArray[np.float64], fine_px: NDArray[np.float64]
) -> bool:
    """True if a level lacks tiles where the next finer level has some.

    `coarse`, `fine`: masks of written tiles (row, column). `coarse_px`, `fine_px`: tile sizes (width, height) of each,
    in pixels of the finer level.
    """
    rows, columns = np.nonzero(~coarse)
    if not len(rows):
        return False
    # Written finer tiles above and left of each corner: a summed-area table.
    sums = np.zeros((fine.shape[0] + 1, fine.shape[1] + 1), np.int64)
    sums[1:, 1:] = fine.cumsum(0).cumsum(1)
    scale = coarse_px / fine_px
    # A finer tile that only touches the border, because of rounded sizes, does not count.
    margin = 1 / 16
    left = np.clip(np.floor(columns * scale[0] + margin), 0, fine.shape[1]).astype(int)
    right = np.clip(np.ceil((columns + 1) * scale[0] - margin), 0, fine.shape[1]).astype(int)
    top = np.clip(np.floor(rows * scale[1] + margin), 0, fine.shape[0]).astype(int)
    bottom = np.clip(np.ceil((rows + 1) * scale[1] - margin), 0, fine.shape[0]).astype(int)
    n_written = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return bool((n_written > 0).any())
