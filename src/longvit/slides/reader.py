"""`open_slide`: a slide with its size, levels, resolution and its source, bounds and pixels.

slide = open_slide("a.svs")
slide.size_px, slide.levels, slide.mpp, slide.reader
region = slide.read_region(1000, 2000, 0, 512, 512)
canvas = slide.canvas(4096)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.content_hash import content_identity
from longvit.slides.file_kind import Kind
from longvit.slides.mpp import Mpp, MppSearch, resolve_mpp
from longvit.slides.pixel_reader import BadTile, Block, Level, Rgb
from longvit.slides.placement import Box, Fit
from longvit.slides.reader_selection import Opened, ReaderName, open_with_best_reader

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas
    from longvit.slides.kept_area import KeptArea
    from longvit.slides.strips import Decode, Strip


def open_slide(path: str | os.PathLike[str], *, mpp: float | None = None, reader: ReaderName = "auto") -> Slide:
    """Opens a slide: SVS, NDPI, MRXS, SCN, BIF, tiled TIFF, OME-TIFF, DICOM (a file or its folder), PNG or JPEG.

    `mpp`: µm per level-0 pixel, overrides the file's value. `reader`: "auto" uses the fast path where it agrees with
    OpenSlide; "openslide" and "tiff" force one. Colours are as stored (no ICC profile is applied). Of several images in
    a TIFF the largest is the slide. An orientation (TIFF, EXIF) is applied. `Slide.notes` and the log report both.
    Raises `InputError`, in one line, for a file that is not a readable slide.

    >>> import longvit
    >>> with longvit.open_slide("examples/CMU-1-Small-Region.svs") as slide:
    ...     slide.size_px, slide.mpp.x
    ((2220, 2967), 0.499)
    """
    slide = Slide(path, mpp=mpp, reader=reader)
    slide.opened()
    return slide


class Slide:
    """An open slide. Threads may read at once; a copy in another process (pickle, fork) opens the file again.

    Made by `open_slide`; a context manager closes it.
    """

    def __init__(self, path: str | os.PathLike[str], *, mpp: float | None = None, reader: ReaderName = "auto") -> None:
        self.path = Path(path)
        self._mpp_given = mpp
        self._reader_wanted = reader
        self._opened: tuple[int, Opened, MppSearch] | None = None
        # State opened by a parent process: kept and never used, since closing it here could wait for locks of
        # threads that exist only in the parent.
        self._inherited: list[Any] = []
        self._bad: dict[tuple[int, int, int], BadTile] = {}
        self._closed = False

    def opened(self) -> tuple[Opened, MppSearch]:
        """The state that this process opened, on first use."""
        state = self._opened
        if self._closed:
            raise InputError(f"{self.path}: the slide is closed; open it again with open_slide")
        if state is None or state[0] != os.getpid():
            if state is not None:
                self._inherited.append(state)
            opened = open_with_best_reader(self.path, self._reader_wanted)
            search = resolve_mpp(self._mpp_given, opened.candidates)
            # Two threads may both get here: the later wins, and the other's handle closes after its last use.
            state = self._opened = (os.getpid(), opened, search)
        return state[1], state[2]

    def __reduce__(self) -> tuple[Callable[..., Slide], tuple[Any, ...]]:
        return _closed_slide, (str(self.path), self._mpp_given, self._reader_wanted)

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; using the slide afterwards is an `InputError`."""
        state, self._opened, self._closed = self._opened, None, True
        if state is not None and state[0] == os.getpid():
            state[1].reader.close()

    def __repr__(self) -> str:
        if self._opened is None:
            return f"Slide({str(self.path)!r})"
        width_px, height_px = self.size_px
        return f"Slide({str(self.path)!r}, {width_px} × {height_px} px, {len(self.levels)} levels, {self.reader})"

    def _repr_html_(self) -> str:
        """Thumbnail with name, size and resolution, for notebooks."""
        from longvit.slides.slide_thumbnail import html

        return html(self)

    @property
    def kind(self) -> Kind:
        """Family of the file."""
        return self.opened()[0].kind

    @property
    def vendor(self) -> str:
        """Format as OpenSlide names it ("aperio", "hamamatsu", "dicom"), or "ome-tiff", "png", "jpeg"."""
        return self.opened()[0].vendor

    @property
    def reader(self) -> str:
        """Reader that decodes: "tiff" or "dicom" (the fast paths), "openslide" or "image"."""
        return self.opened()[0].reader.name

    @property
    def reader_version(self) -> str:
        """Library of the reader, with its version."""
        return self.opened()[0].reader.version

    @property
    def reader_reason(self) -> str:
        """Reason for the selection of this reader."""
        return self.opened()[0].reason

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about this file: the image used, levels not used, possible damage."""
        return self.opened()[0].notes

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height at level 0."""
        return self.levels[0].size_px

    @property
    def levels(self) -> tuple[Level, ...]:
        """Resolutions in the file, largest first."""
        return self.opened()[0].reader.levels

    @property
    def mpp(self) -> Mpp | None:
        """µm per level-0 pixel with its source; None where the file has no plausible value."""
        return self.opened()[1].mpp

    @property
    def mpp_search(self) -> MppSearch:
        """Result of the search for the resolution, with every candidate."""
        return self.opened()[1]

    def require_mpp(self) -> Mpp:
        """The resolution, or an `InputError` with the file, the places searched, and the two ways out."""
        return self.opened()[1].require(self.path)

    @property
    def properties(self) -> Mapping[str, str]:
        """OpenSlide's properties; empty where it does not open the file. Of DICOM: the lens, and the orientation on the
        glass."""
        return self.opened()[0].properties

    @property
    def bounds(self) -> Box:
        """Part of level 0 that was scanned (stated by MRXS and some SCN); elsewhere the whole slide."""
        width_px, height_px = self.size_px
        whole = Box(0, 0, width_px, height_px)
        names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
        try:
            x, y, width, height = (int(self.properties[name]) for name in names)
        except (KeyError, ValueError):
            return whole
        left, top = max(0, x), max(0, y)
        right, bottom = min(width_px, x + width), min(height_px, y + height)
        return Box(left, top, right - left, bottom - top) if right > left and bottom > top else whole

    @property
    def background(self) -> Rgb:
        """Colour of empty glass: the file's value, else white."""
        return self.opened()[0].reader.background

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """Tiles that this process could not decode so far, each once."""
        return tuple(sorted(self._bad.values()))

    def identity(self) -> str:
        """Content hash, 32 hex digits. It is fast (size, head, tail, samples) and equal for a copy elsewhere."""
        return content_identity(self.opened()[0].files)

    def file_bytes(self) -> int:
        """Size of all files of the slide."""
        return sum(path.stat().st_size for path in self.opened()[0].files)

    def read_region(
        self, x_level0_px: int, y_level0_px: int, level: int, width_px: int, height_px: int
    ) -> NDArray[np.uint8]:
        """Pixels as uint8 (height, width, 3), RGB, of size (width_px, height_px) in pixels of `level`.

        The corner is in level-0 px and is rounded to the nearest pixel of the level. Pixels outside the slide and
        transparent pixels are background. A tile that cannot be decoded is background too and is recorded in
        `bad_tiles`. Raises `InputError` for a level that does not exist and for an empty size.

        >>> import longvit
        >>> slide = longvit.open_slide("examples/CMU-1-Small-Region.svs")
        >>> slide.read_region(1000, 500, level=0, width_px=300, height_px=200).shape
        (200, 300, 3)
        """
        levels = self.levels
        if not 0 <= level < len(levels):
            raise InputError(f"{self.path}: no level {level}; it has levels 0 to {len(levels) - 1}")
        if width_px < 1 or height_px < 1:
            raise InputError(f"{self.path}: a region of {width_px} × {height_px} px is empty")
        downsample = levels[level].downsample
        block = np.empty((height_px, width_px, 4), np.uint8)
        self.read_block(level, round(x_level0_px / downsample), round(y_level0_px / downsample), block)
        return np.ascontiguousarray(block[..., :3])

    def read_block(self, level: int, x_px: int, y_px: int, out: Block, *, reduction: int = 1) -> list[BadTile]:
        """Fills `out` (uint8 RGBX, any strides) from (x_px, y_px) **in pixels of `level`**; returns the bad tiles.

        `reduction`: one of `reductions(level)`; corner and pixels are then those of the level reduced by it.
        """
        bad = self.opened()[0].reader.read_reduced_block(level, reduction, x_px, y_px, out)
        for tile in bad:
            self._bad.setdefault((tile.level, tile.x_level0_px, tile.y_level0_px), tile)
        return bad

    def reductions(self, level: int) -> tuple[int, ...]:
        """Factors by which a level can be reduced while it is decoded: (1, 2, 4, 8) for JPEG tiles of a TIFF or
        DICOM."""
        return self.opened()[0].reader.reductions(level)

    def canvas(
        self,
        side_px: int,
        fit: Fit = "stretch",
        *,
        decode: Decode = "exact",
        progress: Callable[[int, int], None] | bool | None = None,
        max_bad_tiles: int | None = None,
        threads: int | None = None,
        area: KeptArea | None = None,
    ) -> Canvas:
        """The whole slide as a square raster; see `longvit.slides.canvas.canvas`.

        >>> import longvit
        >>> slide = longvit.open_slide("examples/CMU-1-Small-Region.svs")
        >>> slide.canvas(256, fit="pad").pixels.shape
        (256, 256, 3)
        """
        from longvit.slides.canvas import canvas

        return canvas(
            self,
            side_px,
            fit,
            decode=decode,
            progress=progress,
            max_bad_tiles=max_bad_tiles,
            threads=threads,
            area=area,
        )

    def strips(
        self,
        side_px: int,
        fit: Fit = "stretch",
        *,
        decode: Decode = "exact",
        rows: tuple[int, int] | None = None,
        strip_px: int | None = None,
        threads: int | None = None,
        area: KeptArea | None = None,
    ) -> Iterator[Strip]:
        """The canvas, or its rows [first, end), top to bottom; see `longvit.slides.strips.canvas_strips`.

        >>> import longvit
        >>> slide = longvit.open_slide("examples/CMU-1-Small-Region.svs")
        >>> sum(len(strip.pixels) for strip in slide.strips(256, rows=(64, 128)))
        64
        """
        from longvit.slides.strips import canvas_strips

        return canvas_strips(
            self, side_px, fit, decode=decode, rows=rows, strip_px=strip_px, threads=threads, area=area
        )


def _closed_slide(path: str, mpp: float | None, reader: ReaderName) -> Slide:
    """A slide that opens on first use, for pickle."""
    return Slide(path, mpp=mpp, reader=reader)
