"""Reading of one slide: request, canvas or `SlideFailedError`. Imports nothing of the model.

`ThreadReader` reads in the calling thread. `read_process.ReadProcess` reads the same pixels in a process that can be
ended.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from longvit.annotations.settings import AnnotationSettings
from longvit.errors import describe_error, is_out_of_memory

if TYPE_CHECKING:
    from longvit.annotations.area_file import AreaFile
    from longvit.slides.canvas import Canvas
    from longvit.slides.reader import Slide

Stage = Literal["fetch", "open", "read", "model"]
Cause = Literal["slide", "passing", "death", "time"]
"""Cause of a failure: the slide itself; something temporary (a network folder, memory); a process that died; time."""

IsWanted = Callable[[str], bool]
"""Called with the content hash of an open slide; False: its canvas is not needed."""
OnProgress = Callable[[int, int], None]
"""Called with (tiles read, tiles in all) from time to time."""


@dataclass(frozen=True)
class ReadSettings(AnnotationSettings):
    """Settings for reading slides, and the annotations that limit them.

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
    decode: Literal["exact", "reduced"] = "exact"
    """Decoding of the canvas: reduced lets the JPEG decoder reduce the tiles. It is faster and differs by half a grey
    level on average. Published numbers are exact."""


@dataclass(frozen=True)
class ReadRequest:
    """A canvas of one slide to read."""

    path: Path
    side_px: int
    fit: Literal["stretch", "pad"]
    settings: ReadSettings
    area: AreaFile | None = None
    """Annotations of the slide; None: the whole slide."""
    is_blanked: bool = True
    """The canvas is background outside the annotated area. False: it shows the whole slide, and tiles are left out."""
    coarsest_mpp: float | None = None
    """Upper limit of µm per canvas pixel: the side grows beyond `side_px` to meet it. Needs a slide with resolution."""
    most_px: int | None = None
    """Upper limit of that side."""


class SlideFailedError(Exception):
    """One slide failed at a named stage; the run continues."""

    def __init__(self, stage: Stage, text: str, cause: Cause = "slide") -> None:
        super().__init__(text)
        self.stage, self.cause = stage, cause

    @classmethod
    def from_error(cls, stage: Stage, error: BaseException) -> SlideFailedError:
        """An error on one line, with its cause: temporary, or the slide."""
        return cls(stage, describe_error(error), "passing" if _is_temporary(error) else "slide")

    def at(self, attempt: int) -> SlideFailedError:
        """The same error with the number of attempts in its text."""
        return self if attempt < 2 else SlideFailedError(self.stage, f"{self}; tried {attempt} times", self.cause)


class Reader(Protocol):
    """Reader of canvases, one at a time."""

    def read(self, request: ReadRequest, is_wanted: IsWanted, on_progress: OnProgress | None = None) -> Canvas | None:
        """Canvas of the request, None where `is_wanted` returns False. Raises `SlideFailedError`."""

    def stop(self) -> None:
        """Ends a read in progress, from any thread; nothing can be read afterwards."""


class ThreadReader:
    """Reader in the calling thread; it stops between two strips."""

    def __init__(self, threads: int | None = None) -> None:
        self._stopping, self._threads = threading.Event(), threads

    def read(self, request: ReadRequest, is_wanted: IsWanted, on_progress: OnProgress | None = None) -> Canvas | None:
        def between_strips(done: int, total: int) -> None:
            if self._stopping.is_set():
                raise InterruptedError("stopped")
            if on_progress is not None:
                on_progress(done, total)

        return read(request, is_wanted, between_strips, self._threads)

    def stop(self) -> None:
        self._stopping.set()


def read(
    request: ReadRequest, is_wanted: IsWanted, on_progress: OnProgress, threads: int | None = None
) -> Canvas | None:
    """Opens a slide and makes its canvas if `is_wanted`. Raises `SlideFailedError`."""
    from longvit.slides.reader import open_slide

    settings = request.settings
    try:
        slide = open_slide(request.path, mpp=settings.mpp, reader=settings.reader)
        side_px = _side_px(slide, request)
        identity = slide.identity()
    except Exception as error:
        raise SlideFailedError.from_error("open", error) from error
    with slide:
        if not is_wanted(identity):
            return None
        try:
            area = None
            if request.area is not None and request.is_blanked:
                area = request.area.read(slide.bounds)
            return slide.canvas(
                side_px,
                request.fit,
                decode=settings.decode,
                progress=on_progress,
                max_bad_tiles=settings.max_bad_tiles,
                threads=threads,
                area=area,
            )
        except Exception as error:
            raise SlideFailedError.from_error("read", error) from error


def _side_px(slide: Slide, request: ReadRequest) -> int:
    if request.coarsest_mpp is None:
        return request.side_px
    mpp, bounds = slide.require_mpp(), slide.bounds
    longest_um = max(bounds.width * mpp.x, bounds.height * mpp.y)
    wanted_px = math.ceil(longest_um / request.coarsest_mpp)
    return max(request.side_px, wanted_px if request.most_px is None else min(wanted_px, request.most_px))


def with_mpp(settings: ReadSettings, mpp: float | None) -> ReadSettings:
    """Settings of a slide, with the resolution that the slide list gives for it."""
    return settings if mpp is None else replace(settings, mpp=mpp)


def _is_temporary(error: BaseException) -> bool:
    """True where a retry makes sense: lack of memory, and the system's errors except for a file that does not exist or
    may not be read. Errors from a file's content are permanent."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InterruptedError | FileNotFoundError | PermissionError | IsADirectoryError):
            return False
        if is_out_of_memory(seen) or (isinstance(seen, OSError) and seen.errno is not None):
            return True
        seen = seen.__cause__
    return False
