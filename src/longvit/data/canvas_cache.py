"""Canvases made once: a slide's raster of side_px × side_px as an ordinary tiled TIFF in a folder.

A file's name holds a hash of the slide's content and of everything that decides the pixels, so a slide that changed,
another side or another fit is another file, and cohorts may share the folder. Files appear whole or not at all.
Processes may share it too, also at the same time and from several machines: each makes what no other one is making
(`claims`), and waits for the rest.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.data.problems import Problem
from longvit.errors import InputError
from longvit.files import make_folder
from longvit.json_file import read_json_object
from longvit.processes.leases import Leases
from longvit.progress import Progress

# Canvases above this are made one at a time: two of 32,768² would hold 6 GB.
_LARGE_BYTES = 2**29
# How often a canvas that another process makes is looked for.
_POLL_S = 0.5


@dataclass(frozen=True)
class CanvasSettings:
    """What decides a canvas, beside the slide."""

    side_px: int
    """Side of the square raster."""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch` fills the square, as in the paper; `pad` keeps the slide's proportions."""
    reader: Literal["auto", "openslide", "tiff"] = "auto"
    """Which reader decodes the slide."""
    max_bad_tiles: int | None = None
    """A slide with more unreadable tiles is left out; None: holes are filled with background and reported."""


@dataclass(frozen=True)
class CachedCanvases:
    """Where the canvases of a cohort lie."""

    paths: dict[str, Path]
    """slide_id -> TIFF; a slide with a problem at `open` or `read` is absent."""
    identities: dict[str, str]
    """slide_id -> content hash of the slide that the canvas was made of."""
    problems: tuple[Problem, ...]
    made: int
    """How many were made by this call; the others were there, or another process made them."""


def cache_canvases(
    rows: Iterable[SlideRow], settings: CanvasSettings, cache_dir: str | Path, *, workers: int = 2
) -> CachedCanvases:
    """Makes the canvases that are not there yet, `workers` at a time, each in a thread (decoding lets go of the GIL);
    large ones one at a time, since a canvas takes threads of its own. Those that another process is making come last;
    where it died, they are made here.

    A slide that cannot be opened or read becomes a `Problem`, one with unreadable tiles too; `InputError` only where
    nothing can be written. Interrupted and called again, it makes the rest.
    """
    rows = tuple(rows)
    if 3 * settings.side_px**2 > _LARGE_BYTES:
        workers = 1
    folder = make_folder(cache_dir)
    stopping = threading.Event()
    done: dict[str, _Made] = {}
    with (
        Progress("canvases", len(rows), unit="slides") as progress,
        Leases() as leases,
        ThreadPoolExecutor(max(1, workers), thread_name_prefix="canvas") as pool,
    ):
        leases.remove_dead(folder)
        to_make, elsewhere, has_said = list(rows), list[tuple[SlideRow, Path]](), False
        try:
            while to_make or elsewhere:
                futures = {pool.submit(_make, row, settings, folder, leases, stopping): row for row in to_make}
                for future in as_completed(futures):
                    row, made = futures[future], future.result()
                    if isinstance(made, Path):
                        elsewhere.append((row, made))
                        continue
                    done[row.slide_id] = made
                    for problem in made.problems:
                        progress.log(f"problem: {problem.slide}: {problem.stage}: {problem.error}")
                    progress.advance(note=row.slide_id)
                if elsewhere and not has_said:
                    progress.log(f"waiting for {len(elsewhere)} canvases that another process is making")
                    has_said = True
                free = [leases.is_free(path) for _, path in elsewhere]
                to_make = [row for (row, _), is_free in zip(elsewhere, free, strict=True) if is_free]
                elsewhere = [one for one, is_free in zip(elsewhere, free, strict=True) if not is_free]
                if elsewhere and not to_make:
                    time.sleep(_POLL_S)
        except BaseException:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    in_order = [(row.slide_id, done[row.slide_id]) for row in rows]
    return CachedCanvases(
        paths={slide_id: m.path for slide_id, m in in_order if m.path is not None},
        identities={slide_id: m.identity for slide_id, m in in_order if m.path is not None},
        problems=tuple(problem for _, m in in_order for problem in m.problems),
        made=sum(m.is_new for _, m in in_order),
    )


def read_pixels(path: str | Path, part: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A cached canvas as uint8 (side, side, 3), or the part [first row, end row, first column, end column) of it, for
    which only its tiles are read. `InputError` with the way out where the file was damaged since."""
    from longvit.slides.canvas import read_canvas
    from longvit.slides.reader import open_slide

    try:
        if part is None:
            return read_canvas(path).pixels
        top, bottom, left, right = part
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        with open_slide(path, reader="tiff") as canvas:
            if canvas.read_block(0, left, top, pixels):
                raise InputError("bad tiles")
        return pixels
    except InputError as error:
        raise InputError(f"{path}: this cached canvas is damaged; remove it to have it made anew") from error


@dataclass(frozen=True)
class _Made:
    path: Path | None
    identity: str = ""
    problems: tuple[Problem, ...] = ()
    is_new: bool = False


def _make(
    row: SlideRow, settings: CanvasSettings, folder: Path, leases: Leases, stopping: threading.Event
) -> _Made | Path:
    """The canvas of a slide; its path where another process is making it."""
    from longvit.slides.canvas import write_canvas
    from longvit.slides.reader import open_slide

    def stop(*_: Any) -> None:
        if stopping.is_set():
            raise InterruptedError("stopped")

    stop()
    stage, is_new = "open", False
    try:
        with open_slide(row.path, mpp=row.mpp, reader=settings.reader) as slide:
            identity = slide.identity()
            path = folder / canvas_name(row.slide_id, identity, settings)
            record = _record(path)
            if record is None:
                with leases.take(path) as is_ours:
                    if not is_ours:
                        return path
                    record = _record(path)  # another one has finished while we looked
                    if record is None:
                        stage, is_new = "read", True
                        canvas = slide.canvas(settings.side_px, settings.fit, progress=stop)
                        record = canvas.provenance()
                        stage = "write"
                        write_canvas(canvas, path)
    except Exception as error:
        if stopping.is_set() or stage == "write":  # a full disk is no slide's fault
            raise
        return _Made(None, problems=(Problem(row.slide_id, stage, _line(error)),))
    bad, tiles = len(record["bad_tiles"]), record["tiles"]
    if not bad:
        return _Made(path, identity, is_new=is_new)
    text = f"{row.path}: {bad} of {tiles} tiles cannot be read"
    if settings.max_bad_tiles is not None and bad > settings.max_bad_tiles:
        problem = Problem(row.slide_id, "read", f"{text}, more than the {settings.max_bad_tiles} allowed")
        return _Made(None, identity, (problem,), is_new)
    return _Made(path, identity, (Problem(row.slide_id, "tiles", f"{text}; filled with background"),), is_new)


def _record(path: Path) -> dict[str, Any] | None:
    """What `write_canvas` noted beside a canvas (it comes last); None where the canvas is to be made."""
    if not path.exists():
        return None
    try:
        record = read_json_object(path.with_name(f"{path.name}.json"))
        return record if {"bad_tiles", "tiles"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def canvas_name(slide_id: str, identity: str, settings: CanvasSettings) -> str:
    """`P01_1024px_stretch_0123456789abcdef.tif`."""
    from longvit.slides.resampling import FILTER_NAME

    deciding = [FILTER_NAME, identity, settings.side_px, settings.fit, settings.reader]
    key = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in slide_id)[:120]
    return f"{safe}_{settings.side_px}px_{settings.fit}_{key}.tif"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no further word"
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
