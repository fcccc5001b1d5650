"""Canvas cache: a slide's raster of side_px × side_px as an ordinary tiled TIFF in a folder, made once.

A file's name holds a hash of the slide's content, of its annotations, and of every setting that affects the pixels. A
changed slide, another side or another fit is therefore another file, and cohorts may share the folder. Files are
written atomically. Processes may share the folder at the same time, also from several machines. Each makes only
canvases that no other process has leased (`leases`), and waits for the rest.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longvit.annotations.area_file import AreaFile, find_area_file
from longvit.annotations.settings import AnnotationSettings
from longvit.data.cohort import SlideRow
from longvit.data.problems import Problem
from longvit.errors import InputError, describe_error
from longvit.files import make_folder
from longvit.json_file import read_json_object
from longvit.processes.leases import Leases
from longvit.progress import Progress

# Canvases above this are made one at a time: two of 32,768² would hold 6 GB.
_LARGE_BYTES = 2**29
# Polling interval for canvases that another process makes.
_POLL_S = 0.5


@dataclass(frozen=True)
class CanvasSettings:
    """Settings of a canvas, beside the slide."""

    side_px: int
    """Side of the square raster."""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch` fills the square, as in the paper; `pad` keeps the slide's proportions."""
    reader: Literal["auto", "openslide", "tiff"] = "auto"
    """Reader that decodes the slide."""
    max_bad_tiles: int | None = None
    """A slide with more unreadable tiles is left out; None: unreadable tiles are filled with background and
    reported."""
    decode: Literal["exact", "reduced"] = "exact"
    """`reduced` lets the JPEG decoder reduce the tiles (`Slide.canvas`)."""
    annotations: AnnotationSettings = field(default_factory=AnnotationSettings)
    """Annotations outside of which a canvas is background."""


@dataclass(frozen=True)
class CachedCanvases:
    """Canvas files of a cohort."""

    paths: dict[str, Path]
    """slide_id -> TIFF; a slide with a problem at `open` or `read` is absent."""
    identities: dict[str, str]
    """slide_id -> content hash of the slide from which the canvas was made."""
    problems: tuple[Problem, ...]
    made: int
    """Number of canvases made by this call; the others existed, or another process made them."""


def cache_canvases(
    rows: Iterable[SlideRow], settings: CanvasSettings, cache_dir: str | Path, *, workers: int = 2
) -> CachedCanvases:
    """Makes the missing canvases, `workers` at a time, each in a thread (decoding releases the GIL).

    Large canvases are made one at a time, since each uses several threads. Canvases that another process is making come
    last; if it died, they are made here. A slide that cannot be opened or read becomes a `Problem`, and so does one
    with unreadable tiles. `InputError` is raised only where nothing can be written. After an interruption, the same
    call makes the rest.
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
        leases.remove_expired(folder)
        to_make, made_elsewhere, has_logged = list(rows), list[tuple[SlideRow, Path]](), False
        try:
            while to_make or made_elsewhere:
                futures = {pool.submit(_make, row, settings, folder, leases, stopping): row for row in to_make}
                for future in as_completed(futures):
                    row, made = futures[future], future.result()
                    if isinstance(made, Path):
                        made_elsewhere.append((row, made))
                        continue
                    done[row.slide_id] = made
                    for problem in made.problems:
                        progress.log(f"problem: {problem.slide}: {problem.stage}: {problem.error}")
                    progress.advance(note=row.slide_id)
                if made_elsewhere and not has_logged:
                    progress.log(f"waiting for {len(made_elsewhere)} canvases that another process is making")
                    has_logged = True
                free = [leases.is_free(path) for _, path in made_elsewhere]
                to_make = [row for (row, _), is_free in zip(made_elsewhere, free, strict=True) if is_free]
                made_elsewhere = [entry for entry, is_free in zip(made_elsewhere, free, strict=True) if not is_free]
                if made_elsewhere and not to_make:
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
    """A cached canvas as uint8 (side, side, 3), or its part [first row, end row, first column, end column).

    For a part, only its tiles are read. Raises `InputError` with the way out where the file was damaged since.
    """
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
        raise InputError(f"{path}: this cached canvas is damaged; remove it to have it made again") from error


@dataclass(frozen=True)
class _Made:
    """Result for one slide: its canvas, or none, and its problems."""

    path: Path | None
    identity: str = ""
    problems: tuple[Problem, ...] = ()
    is_new: bool = False


def _make(
    row: SlideRow, settings: CanvasSettings, folder: Path, leases: Leases, stopping: threading.Event
) -> _Made | Path:
    """Makes the canvas of a slide; returns its path where another process is making it."""
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
            area_file = find_area_file(settings.annotations, row.slide_id)
            path = canvas_path(row.slide_id, row.path, identity, settings, folder, area_file)
            record = _record(path)
            if record is None:
                with leases.take(path) as is_ours:
                    if not is_ours:
                        return path
                    record = _record(path)  # another process may have finished it meanwhile
                    if record is None:
                        stage, is_new = "read", True
                        area = None if area_file is None else area_file.read(slide.bounds)
                        canvas = slide.canvas(
                            settings.side_px, settings.fit, decode=settings.decode, progress=stop, area=area
                        )
                        record = canvas.provenance()
                        stage = "write"
                        write_canvas(canvas, path)
    except Exception as error:
        if stopping.is_set() or stage == "write":  # a full disk is not a problem of the slide
            raise
        return _Made(None, problems=(Problem(row.slide_id, stage, describe_error(error)),))
    bad, tiles = len(record["bad_tiles"]), record["tiles"]
    if not bad:
        return _Made(path, identity, is_new=is_new)
    text = f"{row.path}: {bad} of {tiles} tiles cannot be read"
    if settings.max_bad_tiles is not None and bad > settings.max_bad_tiles:
        problem = Problem(row.slide_id, "read", f"{text}, more than the {settings.max_bad_tiles} allowed")
        return _Made(None, identity, (problem,), is_new)
    return _Made(path, identity, (Problem(row.slide_id, "tiles", f"{text}; filled with background"),), is_new)


def _record(path: Path) -> dict[str, Any] | None:
    """Record that `write_canvas` wrote beside a canvas (it is written last); None where the canvas must be made."""
    if not path.exists():
        return None
    try:
        record = read_json_object(path.with_name(f"{path.name}.json"))
        return record if {"bad_tiles", "tiles"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def canvas_path(
    slide_id: str,
    slide_path: Path,
    identity: str,
    settings: CanvasSettings,
    folder: Path,
    area_file: AreaFile | None = None,
) -> Path:
    """Path of a slide's canvas: in the folder of the cache, or the slide itself where it is such a canvas.

    `longvit canvas` and `longvit fetch` write canvases that are used as slides. Those of another side or fit, and all
    with annotations, are slides as any other.
    """
    if area_file is None and (record := _record(slide_path)) is not None:
        wanted = {"format": "longvit canvas", "side_px": settings.side_px, "fit": settings.fit}
        if wanted.items() <= record.items():
            return slide_path
    return folder / canvas_name(slide_id, identity, settings, area_file)


def canvas_name(slide_id: str, identity: str, settings: CanvasSettings, area_file: AreaFile | None = None) -> str:
    """File name of a canvas: `P01_1024px_stretch_0123456789abcdef.tif`."""
    from longvit.slides.resampling import FILTER_NAME

    key_parts: list[Any] = [FILTER_NAME, identity, settings.side_px, settings.fit, settings.reader]
    if settings.decode != "exact":  # names of exact canvases are those from before this setting
        key_parts.append(settings.decode)
    if area_file is not None:
        key_parts.append(area_file.key())
    key = hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()[:16]
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in slide_id)[:120]
    return f"{safe}_{settings.side_px}px_{settings.fit}_{key}.tif"
