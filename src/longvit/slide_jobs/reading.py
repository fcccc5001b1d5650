"""Reading one slide of a list: what is asked, what comes back, what can go wrong. Imports nothing of the model.

`ThreadReader` reads where it is called; `read_process.ReadProcess` does the same in a process that can be ended, with
the same pixels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from longvit.errors import InputError, is_out_of_memory

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas
    from longvit.slides.reader import Slide

Stage = Literal["open", "read", "model"]
Cause = Literal["slide", "passing", "death", "time"]
"""Whose fault it is: the slide's own; something that may pass (a network folder, memory); a process died; too slow."""

Wanted = Callable[[str], bool]
"""Told the identity of a slide once it is open: whether its canvas is still wanted."""
Heard = Callable[[int, int], None]
"""Told (tiles read, tiles in all) now and then."""


@dataclass(frozen=True)
class ReadSettings:
    """Settings for reading slides.

    >>> import longvit
    >>> longvit.ReadSettings(mpp=0.25, max_bad_tiles=0).reader
    'auto'
    """

    mpp: float | None = None
    """µm per pixel of the largest level, instead of the file's own value. A column mpp of a CSV takes precedence."""
    reader: Literal["auto", "openslide", "tiff"] = "auto"
    """Reader that decodes: tiff is the fast path for tiled TIFF and SVS; auto chooses per slide."""
    max_bad_tiles: int | None = None
    """Treat a slide with more unreadable tiles than this as a problem. Without it, unreadable tiles are filled with
    background and counted."""


@dataclass(frozen=True)
class ReadRequest:
    """Which canvas of which slide."""

    path: Path
    side_px: int
    fit: Literal["stretch", "pad"]
    settings: ReadSettings
    coarsest_mpp: float | None = None
    """The side is larger than `side_px` where a pixel would have more µm; a slide without resolution fails."""


class SlideFailedError(Exception):
    """One slide failed at a named stage; the run goes on."""

    def __init__(self, stage: Stage, text: str, cause: Cause = "slide") -> None:
        super().__init__(text)
        self.stage, self.cause = stage, cause

    @classmethod
    def of(cls, stage: Stage, error: BaseException) -> SlideFailedError:
        """An error in one line, and whether it may pass."""
        text = " ".join(str(error).split()) or "no further word"
        line = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
        return cls(stage, line, "passing" if _may_pass(error) else "slide")

    def at(self, attempt: int) -> SlideFailedError:
        """The same, saying how often it was tried."""
        return self if attempt < 2 else SlideFailedError(self.stage, f"{self}; tried {attempt} times", self.cause)


class Reader(Protocol):
    """Reads canvases, one at a time."""

    def read(self, request: ReadRequest, is_wanted: Wanted, hear: Heard | None = None) -> Canvas | None:
        """The canvas, or None where `is_wanted` says so. Raises `SlideFailedError`."""

    def stop(self) -> None:
        """Ends what is being read, from any thread; nothing can be read afterwards."""


class ThreadReader:
    """Reads in the calling thread; stops between two strips."""

    def __init__(self, threads: int | None = None) -> None:
        self._stopping, self._threads = threading.Event(), threads

    def read(self, request: ReadRequest, is_wanted: Wanted, hear: Heard | None = None) -> Canvas | None:
        def between_strips(done: int, total: int) -> None:
            if self._stopping.is_set():
                raise InterruptedError("stopped")
            if hear is not None:
                hear(done, total)

        return read(request, is_wanted, between_strips, self._threads)

    def stop(self) -> None:
        self._stopping.set()


def read(request: ReadRequest, is_wanted: Wanted, hear: Heard, threads: int | None = None) -> Canvas | None:
    """Opens a slide, asks whether its canvas is wanted, and makes it. Raises `SlideFailedError`."""
    from longvit.slides.reader import open_slide

    settings = request.settings
    try:
        slide = open_slide(request.path, mpp=settings.mpp, reader=settings.reader)
        side_px = _side_px(slide, request)
        identity = slide.identity()
    except Exception as error:
        raise SlideFailedError.of("open", error) from error
    with slide:
        if not is_wanted(identity):
            return None
        try:
            return slide.canvas(
                side_px, request.fit, progress=hear, max_bad_tiles=settings.max_bad_tiles, threads=threads
            )
        except Exception as error:
            raise SlideFailedError.of("read", error) from error


def _side_px(slide: Slide, request: ReadRequest) -> int:
    if request.coarsest_mpp is None:
        return request.side_px
    mpp, bounds = slide.require_mpp(), slide.bounds
    longest_um = max(bounds.width * mpp.x, bounds.height * mpp.y)
    return max(request.side_px, math.ceil(longest_um / request.coarsest_mpp))


def with_mpp(settings: ReadSettings, mpp: float | None) -> ReadSettings:
    """The settings for a slide whose list states its own resolution."""
    return settings if mpp is None else replace(settings, mpp=mpp)


def _may_pass(error: BaseException) -> bool:
    """Whether trying again makes sense: the system's errors, but for a file that is not there or not allowed, and
    memory. What a file's content causes does not pass."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InterruptedError | FileNotFoundError | PermissionError | IsADirectoryError):
            return False
        if is_out_of_memory(seen) or (isinstance(seen, OSError) and seen.errno is not None):
            return True
        seen = seen.__cause__
    return False
