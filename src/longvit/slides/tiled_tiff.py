"""Fast path of tiled TIFF: its tiles decoded one by one, directly from their offsets (`tiled_reader`).

tifffile reads the positions of the tiles; `tile_decoding` decodes them (JPEG, JPEG 2000, LZW, Deflate, ZSTD, WebP,
none). Strips are tiles as wide as the image. JPEG tiles take a fifth of the CPU time of openslide-python (2026-11;
`benchmarks/canvas.py` measures the whole way to a canvas).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version as version_of
from pathlib import Path

from longvit.errors import InputError, one_line
from longvit.slides.pixel_format import check_jpeg_colours, check_pixel_format
from longvit.slides.pixel_reader import Rgb, UnsupportedError
from longvit.slides.tiff_header import TiffHeader
from longvit.slides.tile_decoding import JPEG
from longvit.slides.tile_table import mark_overlaps, metadata_of, shared, swapped
from longvit.slides.tiled_level import TiledLevel, tiled_levels, written_levels
from longvit.slides.tiled_reader import SharedFile, TiledReader

_TAIL_BYTES = 96  # 32 pixels


class TiledTiffReader(TiledReader):
    """Levels and blocks of a tiled (or stripped) TIFF of 8-bit RGB, RGBA or grey.

    Raises `UnsupportedError` for formats that only OpenSlide may read. Raises `InputError` for pixels that no reader
    reads correctly: 16 bits, separate channels, a table of tiles that does not fit the file.
    """

    name = "tiff"
    version = ", ".join(f"{name} {version_of(name)}" for name in ("tifffile", "simplejpeg", "imagecodecs"))

    def __init__(self, path: Path, header: TiffHeader, background: Rgb) -> None:
        try:
            check_pixel_format(path, header)
            all_levels, unread_px = tiled_levels(path, header, background)
            mark_overlaps([tiled.table for tiled in all_levels], metadata_of(header.directories))
            levels = written_levels(path, all_levels)
        except (InputError, UnsupportedError):
            raise
        # In a damaged directory a tag has any type: a list of sizes, a text.
        except Exception as error:
            raise UnsupportedError(f"a damaged directory ({one_line(error)})") from error
        super().__init__(path, background, levels, (path,))
        unwritten_px = {tiled.level.size_px for tiled in all_levels} - {level.size_px for level in self.levels}
        self.left_out_px = unwritten_px | set(header.left_out_px) | set(unread_px)
        """Sizes of the levels in the file that are not used."""
        self._leaves_tiles_out = any(bool(tiled.table.empty.any()) for tiled in all_levels)
        self._check_jpeg_colours(header)
        file = SharedFile(path)
        self.notes = (*unread_px.values(), *_notes(all_levels, unwritten_px), *_zeros_note(file, all_levels))

    def _check_jpeg_colours(self, header: TiffHeader) -> None:
        page = header.pages[0]
        if page.compression != JPEG or page.samplesperpixel != 3 or page.planarconfig == 2:
            return
        if (tile := self.fullest_tile()) is not None:  # a damaged tile is counted when it is read
            check_jpeg_colours(self.path, page, tile)

    def leaves_tiles_out(self) -> bool:
        """True if some tile was never written. Scanners skip blank glass, and formats fill it in different ways."""
        return self._leaves_tiles_out


def _zeros_note(file: SharedFile, all_levels: list[TiledLevel]) -> Iterator[str]:
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
