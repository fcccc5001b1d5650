"""Tile reading in a child process: a `ReadProcess` that reads a slide's tiles in blocks.

The child decodes ahead as far as the pipe takes. It is ended and replaced where it dies, or sends nothing for too long.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from longvit.slide_jobs.read_process import ReadProcess
from longvit.slide_jobs.reading import SlideFailedError
from longvit.slide_jobs.tile_reader import TilesRequest

if TYPE_CHECKING:
    from longvit.slides.tile_reading import TilePixels

SILENCE_S = 600.0
"""Time limit of a block of tiles, which takes seconds, from a slow network too."""


class TileProcess(ReadProcess):
    """A `TileReader` whose work is done by a child process. A slide without a new block for `silence_s` is given up."""

    def __init__(self, silence_s: float | None = SILENCE_S, threads: int | None = None) -> None:
        super().__init__(silence_s, threads)
        self.bad_tiles = self.file_tiles = 0

    def tiles(self, request: TilesRequest) -> Generator[TilePixels]:
        from longvit.slides.tile_reading import TilePixels

        self.bad_tiles = self.file_tiles = 0
        is_done = False
        side_px = request.grid.settings.tile_px
        try:
            child = self._start()
            child.send(request)
            while True:
                kind, *content = child.receive(self._deadline())
                if kind == "failed":
                    is_done = True
                    raise SlideFailedError(*content)
                if kind == "end":
                    self.bad_tiles, self.file_tiles = content
                    is_done = True
                    return
                (numbers,) = content
                pixels = np.empty((len(numbers), side_px, side_px, 3), np.uint8)
                child.receive_into(pixels, self._deadline())
                yield TilePixels(numbers, pixels)
        except TimeoutError:
            text = f"{request.path}: no tile read within {self._timeout_s:g} s, given up"
            raise SlideFailedError("read", text, "time") from None
        except (EOFError, OSError):
            is_done = True
            text = f"{request.path}: the process that read its tiles died ({self._end()})"
            raise SlideFailedError("read", text, "death") from None
        except MemoryError as error:  # no memory in this process for what the child has read
            raise SlideFailedError.from_error("read", error) from error
        finally:
            if not is_done:  # the child still sends tiles
                self._end()
