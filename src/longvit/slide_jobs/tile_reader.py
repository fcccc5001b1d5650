"""Tile readers: the pixels of a slide's tiles in blocks, one slide after another."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from longvit.processes.child import send_array
from longvit.slide_jobs.reading import ReadSettings, SlideFailedError

if TYPE_CHECKING:
    from longvit.slides.tile_reading import TilePixels
    from longvit.slides.tiles import TileGrid


@dataclass(frozen=True)
class TilesRequest:
    """Tiles of one slide to read."""

    path: Path
    grid: TileGrid
    settings: ReadSettings


class TileReader(Protocol):
    """Reads the tiles of one slide at a time."""

    bad_tiles: int
    """Tiles of the last slide's file that could not be decoded and are background; known at its end."""
    file_tiles: int
    """Tiles of the last slide's file."""

    def tiles(self, request: TilesRequest) -> Generator[TilePixels]:
        """All tiles of the grid, see `read_tiles`. Raises `SlideFailedError`."""

    def stop(self) -> None:
        """Ends the reader's process, if it has one."""


class ThreadTiles:
    """Reads tiles in threads of this process."""

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
            raise SlideFailedError.from_error("open", error) from error
        with slide, closing(read_tiles(slide, request.grid, threads=self._threads)) as blocks:
            try:
                yield from blocks
            except Exception as error:
                raise SlideFailedError.from_error("read", error) from error
            self.bad_tiles, self.file_tiles = len(slide.bad_tiles), pieces_read(slide, request.grid)

    def stop(self) -> None:
        pass


def serve_tiles(request: TilesRequest, pipe: Connection, threads: int | None) -> None:
    """Reads the tiles of one slide in a child process and sends them to its parent (`tile_process.TileProcess`)."""
    reader = ThreadTiles(threads)
    try:
        for block in reader.tiles(request):
            pipe.send(("tiles", block.numbers))
            send_array(pipe, block.pixels)
    except SlideFailedError as error:
        pipe.send(("failed", error.stage, str(error), error.cause))
        return
    pipe.send(("end", reader.bad_tiles, reader.file_tiles))
