"""Slide reading in a child process that can be ended: a decoder that crashes or hangs costs one slide, not the run.

The process loads slide readers only, not the model (some 0.4 s), and serves one slide after another. Messages and
pixels share one pipe; pixels are received straight into the array that the model gets.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np

from longvit.processes.child import ChildProcess, connect_to_parent, send_array
from longvit.slide_jobs.reading import IsWanted, OnProgress, ReadRequest, SlideFailedError, Stage, read

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas

_MODULE = "longvit.slide_jobs.read_process"
_START_S = 120.0
_PROGRESS_EVERY_S = 0.5


class ReadProcess:
    """A `Reader` whose work is done by a child process. A slide that takes longer than `timeout_s` is given up."""

    def __init__(self, timeout_s: float | None = None, threads: int | None = None) -> None:
        self._timeout_s, self._threads = timeout_s, threads
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self._is_ready = False
        self._spawn()  # the child loads its libraries while the caller loads the model

    @property
    def process(self) -> int | None:
        """Number of the child process."""
        return self._child.pid if self._child else None

    def read(self, request: ReadRequest, is_wanted: IsWanted, on_progress: OnProgress | None = None) -> Canvas | None:
        """As `Reader.read`. A child that dies or is late raises `SlideFailedError`; the next slide gets a new child."""
        stage: Stage = "open"
        try:
            child = self._start()
            deadline = self._deadline()
            child.send(request)
            while True:
                kind, *content = child.receive(deadline)
                if kind == "opened":
                    stage = "read"
                    child.send(is_wanted(content[0]))
                elif kind == "progress":
                    if on_progress is not None:
                        on_progress(*content)
                elif kind == "failed":
                    raise SlideFailedError(*content)
                elif kind == "unwanted":
                    return None
                else:
                    return _receive_canvas(child, content[0], deadline)
        except TimeoutError:
            self._end()
            text = f"{request.path}: not read within {self._timeout_s:g} s (--timeout-s), given up"
            raise SlideFailedError(stage, text, "time") from None
        except (EOFError, OSError):
            if self._stopping.is_set():
                raise SlideFailedError(stage, "stopped") from None
            text = f"{request.path}: the process that read it died ({self._end()})"
            raise SlideFailedError(stage, text, "death") from None
        except MemoryError as error:  # no memory in this process for what the child has read and still sends
            self._end()
            raise SlideFailedError.from_error(stage, error) from error

    def stop(self) -> None:
        """Kills the child, from any thread; nothing can be read afterwards."""
        self._stopping.set()
        with self._lock:
            if self._child is not None:
                self._child.kill()

    def _spawn(self) -> ChildProcess:
        """The running child, or a new one. Raises `EOFError` after `stop`."""
        with self._lock:
            if self._stopping.is_set():
                raise EOFError
            if self._child is None or self._child.process.poll() is not None:
                self._child = ChildProcess(_MODULE, self._threads or 0)
                self._is_ready = False
            return self._child

    def _start(self) -> ChildProcess:
        """A child that has loaded its libraries."""
        child = self._spawn()
        if not self._is_ready:
            try:
                kind, *content = child.receive(time.monotonic() + _START_S)
            except TimeoutError:
                raise EOFError from None
            if kind == "failed":
                self._end()
                raise SlideFailedError(*content)
            self._is_ready = True
        return child

    def _deadline(self) -> float | None:
        return None if self._timeout_s is None else time.monotonic() + self._timeout_s

    def _end(self) -> str:
        """Ends the child and describes how it ended."""
        with self._lock:
            child, self._child = self._child, None
            if child is None:
                return "stopped"
            child.wait(0.2)  # a child that died by itself has an exit status
            child.close()
            return child.exit_status()


def _receive_canvas(child: ChildProcess, canvas: Canvas, deadline: float | None) -> Canvas:
    pixels = np.empty((canvas.side_px, canvas.side_px, 3), np.uint8)
    child.receive_into(pixels, deadline)
    return replace(canvas, pixels=pixels)


def _serve(pipe: Connection, threads: int | None) -> None:
    # All that a read needs is loaded before the time limit of the first slide starts.
    try:
        import scipy.sparse  # noqa: F401

        import longvit.slides.canvas
        import longvit.slides.reader  # noqa: F401
        from longvit.slide_jobs.tile_reader import TilesRequest, serve_tiles
    except (ImportError, MemoryError, OSError) as error:
        failed = SlideFailedError.from_error("open", error)
        pipe.send(("failed", "open", f"the process that reads slides cannot start: {failed}", failed.cause))
        return
    pipe.send(("ready",))
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        if isinstance(request, TilesRequest):
            serve_tiles(request, pipe, threads)
        else:
            _serve_canvas(request, pipe, threads)


def _serve_canvas(request: ReadRequest, pipe: Connection, threads: int | None) -> None:
    last_sent = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > _PROGRESS_EVERY_S:
            last_sent = time.monotonic()
            pipe.send(("progress", done, total))

    def is_wanted(identity: str) -> bool:
        pipe.send(("opened", identity))
        return bool(pipe.recv())

    try:
        canvas = read(request, is_wanted, on_progress, threads)
    except SlideFailedError as error:
        pipe.send(("failed", error.stage, str(error), error.cause))
        return
    if canvas is None:
        pipe.send(("unwanted",))
        return
    pipe.send(("canvas", replace(canvas, pixels=np.empty((0, 0, 3), np.uint8))))
    send_array(pipe, canvas.pixels)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
        _serve(connect_to_parent(), int(sys.argv[2]) or None)
