"""The pixels of a slide's tiles, read in threads here, or in a process that may crash or hang.

A tile reader gives the tiles of one slide after another, in blocks. `TileProcess` is a `ReadProcess` that does so: its
child decodes ahead as far as the socket takes, and is ended and replaced where it dies, or gives nothing for too long.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from longvit.slide_jobs.read_process import ReadProcess, send_array
from longvit.slide_jobs.reading import ReadSettings, SlideFailedError

if TYPE_CHECKING:
    from longvit.slides.tile_reading import TilePixels
    from longvit.slides.tiles import TileGrid

SILENCE_S = 600.0
"""A block of tiles is read in seconds, from a slow network too."""


@dataclass(frozen=True)
class TilesRequest:
    """Which tiles of which slide."""

    path: Path
    grid: TileGrid
    settings: ReadSettings


class TileReader(Protocol):
    """Reads tiles of one slide at a time."""

    bad_tiles: int
    """How many tiles of the last slide's file could not be decoded and are background; known at its end."""
    file_tiles: int
    """Out of how many."""

    def tiles(self, request: TilesRequest) -> Generator[TilePixels]:
        """All tiles of the grid, see `read_tiles`. Raises `SlideFailedError`."""

    def stop(self) -> None:
        """Ends its process, if it has one."""


class ThreadTiles:
    """Reads here, in threads."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self.bad_tiles = self.file_tiles = 0

    def tiles(self, request: TilesRequest) -> Generator[TilePixels]:
        from longvit.slides.reader import open_slide
        from longvit.slides.tile_reading import pieces_read, read_tiles

        self.bad_tiles = self.file_tiles = 0
        settings = request.settings
        try:
            slide = open_slide(request.path, mpp=settings.mpp, reader=settings.reader)
        except Exception as error:
            raise SlideFailedError.of("open", error) from error
        with slide, closing(read_tiles(slide, request.grid, threads=self._threads)) as blocks:
            try:
                yield from blocks
            except Exception as error:
                raise SlideFailedError.of("read", error) from error
            self.bad_tiles, self.file_tiles = len(slide.bad_tiles), pieces_read(slide, request.grid)

    def stop(self) -> None:
        pass


class TileProcess(ReadProcess):
    """Reads in a child process. `silence_s`: one that gives nothing for so long is ended, and the slide given up."""

    def __init__(self, silence_s: float | None = SILENCE_S, threads: int | None = None) -> None:
        super().__init__(silence_s, threads)
        self.bad_tiles = self.file_tiles = 0

    def tiles(self, request: TilesRequest) -> Generator[TilePixels]:
        from longvit.slides.tile_reading import TilePixels

        self.bad_tiles = self.file_tiles = 0
        is_done = False
        side_px = request.grid.settings.tile_px
        try:
            self._start()
            self._connection.send(request)
            while True:
                kind, *content = self._receive(self._deadline())
                if kind == "failed":
                    is_done = True
                    raise SlideFailedError(*content)
                if kind == "end":
                    self.bad_tiles, self.file_tiles = content
                    is_done = True
                    return
                (numbers,) = content
                pixels = np.empty((len(numbers), side_px, side_px, 3), np.uint8)
                self._receive_into(pixels, self._deadline())
                yield TilePixels(numbers, pixels)
        except TimeoutError:
            text = f"{request.path}: no tile read within {self._timeout_s:g} s, given up"
            raise SlideFailedError("read", text, "time") from None
        except (EOFError, OSError):
            is_done = True
            text = f"{request.path}: the process that read its tiles died ({self._end()})"
            raise SlideFailedError("read", text, "death") from None
        except MemoryError as error:  # no room here for what the child has read
            raise SlideFailedError.of("read", error) from error
        finally:
            if not is_done:  # it has more to say, which nobody will hear
                self._end()


def serve_tiles(request: TilesRequest, connection: Connection, threads: int | None) -> None:
    """What the child does."""
    reader = ThreadTiles(threads)
    try:
        for block in reader.tiles(request):
            connection.send(("tiles", block.numbers))
            send_array(connection, block.pixels)
    except SlideFailedError as error:
        connection.send(("failed", error.stage, str(error), error.cause))
        return
    connection.send(("end", reader.bad_tiles, reader.file_tiles))
