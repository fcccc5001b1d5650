"""Open slides of the viewer: at most eight at once, closed when others need the place and no request uses them."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from longvit.errors import InputError, describe_error
from longvit.processes.cpu_count import cpu_count
from longvit.slides.pixel_reader import Block
from longvit.slides.placement import Box
from longvit.slides.reader import Slide, open_slide
from longvit.viewer.preview import preview, sample_grid
from longvit.viewer.pyramid import TILE_PX, Pyramid, SlidePixels
from longvit.viewer.tile_images import jpeg

MOST_OPEN = 8
_OVERVIEW_PX = 4096
"""Longest side of the finest level of an overview."""
_SLOW_RATIO = 4.0
"""Stored pixels per pixel of a tile, along a side, from which a tile takes long enough to come from the overview."""
_RETRY_S = 20.0
"""Time after which a slide that could not be opened is tried again."""


class OpenedSlide:
    """A slide with its pyramid; its coarse tiles are kept as JPEG where the file has no coarse levels."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.digest = slide.identity()
        self.pyramid = Pyramid(slide.bounds)
        self.pixels = SlidePixels(slide)
        self._overview: dict[tuple[int, int, int], bytes] | None = None
        self._overview_lock = threading.Lock()

    def tile(self, level: int, x: int, y: int) -> bytes:
        """JPEG of a tile that the pyramid has."""
        if level <= self.overview_level:
            return self._overview_tiles()[level, x, y]
        return jpeg(self.tile_pixels(level, x, y))

    def tile_pixels(self, level: int, x: int, y: int) -> Block:
        """Pixels of a tile read from the file, uint8 RGBX."""
        return self.pixels.area(self.pyramid.box(level, x, y), *self.pyramid.size(level, x, y))

    @cached_property
    def overview_level(self) -> int:
        """Level of the overview, from which it and all coarser tiles are made; -1 where the file has coarse levels."""
        pyramid = self.pyramid
        slow = [
            level
            for level in range(pyramid.max_level + 1)
            if max(pyramid.level_size(level)) <= _OVERVIEW_PX
            and self.pixels.stored_ratio(2.0 ** (pyramid.max_level - level)) >= _SLOW_RATIO
        ]
        return max(slow, default=-1)

    @cached_property
    def sample_grid(self) -> tuple[int, int] | None:
        """Grid of the preview; None where the slide has none."""
        return None if self.overview_level < 0 else sample_grid(self.pixels, self.pyramid, self.overview_level)

    def preview(self) -> Block:
        """Blurred image of the whole slide, uint8 RGBX; the slide must have a `sample_grid`."""
        assert self.sample_grid is not None
        return preview(self.pixels, self.pyramid, self.overview_level, self.sample_grid)

    def thumbnail(self, side_px: int) -> Block:
        """The whole slide, uint8 RGBX, with a longest side of `side_px`."""
        bounds = self.pyramid.bounds
        scale = side_px / max(bounds.width, bounds.height)
        width, height = (max(1, round(side * scale)) for side in (bounds.width, bounds.height))
        if self.overview_level < 0:
            return self.pixels.area(bounds, width, height)
        import simplejpeg

        whole = simplejpeg.decode_jpeg(self._overview_tiles()[0, 0, 0])
        image = Image.fromarray(whole).resize((width, height), Image.Resampling.BOX).convert("RGBX")
        return np.asarray(image)

    def _overview_tiles(self) -> dict[tuple[int, int, int], bytes]:
        with self._overview_lock:
            if self._overview is None:
                self._overview = self._made_overview()
            return self._overview

    def _made_overview(self) -> dict[tuple[int, int, int], bytes]:
        """All tiles of the overview's level, read once in threads, and those of the coarser levels, reduced from it."""
        pyramid = self.pyramid
        tiles: dict[tuple[int, int, int], bytes] = {}
        with ThreadPoolExecutor(cpu_count(), thread_name_prefix="overview") as pool:
            pixels = self._overview_pixels(pool)
            for level in range(self.overview_level, -1, -1):
                places = list(np.ndindex(*pyramid.tiles(level)))
                parts = (pixels[y * TILE_PX : (y + 1) * TILE_PX, x * TILE_PX : (x + 1) * TILE_PX] for x, y in places)
                tiles |= {(level, x, y): data for (x, y), data in zip(places, pool.map(jpeg, parts), strict=True)}
                image = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
                pixels = np.asarray(image.reduce(2))
        return tiles

    def _overview_pixels(self, pool: ThreadPoolExecutor) -> Block:
        """Pixels of the overview's level, uint8 RGBX. Blocks end at borders of the file's tiles: none is decoded twice
        where the slide has no offset."""
        pyramid, step = self.pyramid, 2 ** (self.pyramid.max_level - self.overview_level)
        width, height = pyramid.level_size(self.overview_level)
        pixels = np.empty((height, width, 4), np.uint8)

        def read(block: tuple[int, int, int, int]) -> None:
            x, y, x_end, y_end = block
            box = Box(pyramid.bounds.x + x * step, pyramid.bounds.y + y * step, (x_end - x) * step, (y_end - y) * step)
            pixels[y:y_end, x:x_end] = self.pixels.area(box, x_end - x, y_end - y)

        tile_width, tile_height = self.pixels.tile_size(step)
        columns, rows = pairwise(_edges(width, tile_width)), list(pairwise(_edges(height, tile_height)))
        list(pool.map(read, [(x, y, x_end, y_end) for x, x_end in columns for y, y_end in rows]))
        return pixels


def _edges(length: int, tile: float) -> list[int]:
    """Borders of blocks of at most `TILE_PX` that hold whole tiles, from 0 to `length`."""
    side = TILE_PX // tile * tile if tile <= TILE_PX else TILE_PX
    return [*(round(n * side) for n in range(math.ceil(length / side))), length]


@dataclass
class _Entry:
    """A slide that is open, or the reason why it is not."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    opened: OpenedSlide | None = None
    error: InputError | None = None
    failed_at: float = 0.0
    users: int = 0


class OpenSlides:
    """Slides by number, opened on first use. Threads may share it.

    `path_of(number)` gives the path and the resolution stated for it; it raises `InputError` for a slide without a
    file.
    """

    def __init__(self, path_of: Callable[[int], tuple[Path, float | None]], most_open: int = MOST_OPEN) -> None:
        self._path_of = path_of
        self._most_open = most_open
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def open_count(self) -> int:
        """Number of slides that are open."""
        with self._lock:
            return sum(entry.opened is not None for entry in self._entries.values())

    @contextmanager
    def use(self, number: int) -> Iterator[OpenedSlide]:
        """The open slide, which stays open meanwhile; raises `InputError` in one line where it cannot be opened."""
        with self._lock:
            entry = self._entries.setdefault(number, _Entry())
            self._entries.move_to_end(number)
            entry.users += 1
        try:
            yield self._opened(number, entry)
        finally:
            with self._lock:
                entry.users -= 1
                surplus = self._surplus()
            for other in surplus:
                other.slide.close()

    def close(self) -> None:
        """Closes all slides."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            if entry.opened is not None:
                entry.opened.slide.close()

    def _opened(self, number: int, entry: _Entry) -> OpenedSlide:
        with entry.lock:
            if entry.error is not None and time.monotonic() - entry.failed_at < _RETRY_S:
                raise entry.error
            if entry.opened is None:
                entry.error = None
                try:
                    path, mpp = self._path_of(number)
                    entry.opened = OpenedSlide(open_slide(path, mpp=mpp))
                except Exception as error:  # a damaged file fails in many ways; each is its reason
                    failure = error if isinstance(error, InputError) else InputError(describe_error(error))
                    entry.error, entry.failed_at = failure, time.monotonic()
                    raise failure from error
            return entry.opened

    def _surplus(self) -> list[OpenedSlide]:
        """Takes the slides above the limit that no request uses out of the list, the longest unused first."""
        idle = [number for number, entry in self._entries.items() if not entry.users]
        taken = []
        for number in idle[: max(0, len(self._entries) - self._most_open)]:
            entry = self._entries.pop(number)
            if entry.opened is not None:
                taken.append(entry.opened)
        return taken
