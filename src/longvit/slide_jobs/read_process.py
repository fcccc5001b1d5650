"""A process that reads slides and can be ended: a decoder that crashes or hangs costs one slide, not the run.

It loads readers only, not the model (some 0.4 s), and serves one slide after another. Messages and pixels go through
one socket; pixels straight into the array that the model gets. It ends by itself when the process that started it is
gone: its standard input, a pipe that nobody writes to, ends then.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.processes.child import end_with_parent, how_it_ended
from longvit.slide_jobs.reading import Heard, ReadRequest, SlideFailedError, Stage, Wanted, read

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas

_MODULE = "longvit.slide_jobs.read_process"
_START_S = 120.0
_CHUNK_BYTES = 2**24
_HEAR_EVERY_S = 0.5


class ReadProcess:
    """A `Reader` whose work is done by a child process. `timeout_s`: a slide that takes longer is given up."""

    def __init__(self, timeout_s: float | None = None, threads: int | None = None) -> None:
        self._timeout_s, self._threads = timeout_s, threads
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._spawn()  # loads its libraries while the caller loads the model

    @property
    def process(self) -> int | None:
        """The number of the child process."""
        return self._process.pid if self._process else None

    def read(self, request: ReadRequest, is_wanted: Wanted, hear: Heard | None = None) -> Canvas | None:
        """As `Reader.read`; a dead or late child is a `SlideFailedError`, and the next slide gets a new one."""
        stage: Stage = "open"
        try:
            self._start()
            deadline = self._deadline()
            self._connection.send(request)
            while True:
                kind, *content = self._receive(deadline)
                if kind == "opened":
                    stage = "read"
                    self._connection.send(is_wanted(content[0]))
                elif kind == "heard":
                    if hear is not None:
                        hear(*content)
                elif kind == "failed":
                    raise SlideFailedError(*content)
                elif kind == "unwanted":
                    return None
                else:
                    return self._receive_canvas(content[0], deadline)
        except TimeoutError:
            self._end()
            text = f"{request.path}: not read within {self._timeout_s:g} s (--timeout-s), given up"
            raise SlideFailedError(stage, text, "time") from None
        except (EOFError, OSError):
            if self._stopping.is_set():
                raise SlideFailedError(stage, "stopped") from None
            text = f"{request.path}: the process that read it died ({self._end()})"
            raise SlideFailedError(stage, text, "death") from None
        except MemoryError as error:  # no room here for what the child has read, and still wants to send
            self._end()
            raise SlideFailedError.of(stage, error) from error

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                _kill(self._process)

    def _spawn(self) -> None:
        with self._lock:
            if self._stopping.is_set():
                raise EOFError
            if self._process is not None and self._process.poll() is None:
                return
            self._connection, theirs = multiprocessing.Pipe()
            command = [sys.executable, "-m", _MODULE, str(theirs.fileno()), str(self._threads or 0)]
            # A session of its own: Ctrl-C is for the parent to hear.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], start_new_session=True
            )
            theirs.close()
            self._is_ready = False

    def _start(self) -> None:
        """A child that is ready to read."""
        self._spawn()
        if not self._is_ready:
            try:
                kind, *content = self._receive(time.monotonic() + _START_S)
            except TimeoutError:
                raise EOFError from None
            if kind == "failed":
                self._end()
                raise SlideFailedError(*content)
            self._is_ready = True

    def _receive(self, deadline: float | None) -> Any:
        self._wait(deadline)
        return self._connection.recv()

    def _receive_canvas(self, canvas: Canvas, deadline: float | None) -> Canvas:
        side_px = canvas.side_px
        pixels = np.empty((side_px, side_px, 3), np.uint8)
        self._receive_into(pixels, deadline)
        return replace(canvas, pixels=pixels)

    def _receive_into(self, array: NDArray[np.uint8], deadline: float | None) -> None:
        rest = array.reshape(-1).data
        while rest:
            self._wait(deadline)
            n = os.readv(self._connection.fileno(), [rest[:_CHUNK_BYTES]])
            if n == 0:
                raise EOFError
            rest = rest[n:]

    def _deadline(self) -> float | None:
        return None if self._timeout_s is None else time.monotonic() + self._timeout_s

    def _wait(self, deadline: float | None) -> None:
        """Until something has come. Raises TimeoutError; EOFError where this reader is stopped."""
        while not self._connection.poll(0.2 if deadline is None else min(0.2, max(0.0, deadline - time.monotonic()))):
            if self._stopping.is_set():
                raise EOFError
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError

    def _end(self) -> str:
        """Ends the child; says how it ended."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return "stopped"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)  # one that died by itself says why
            _kill(process)
            self._connection.close()
            return how_it_ended(process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)  # one that hangs in a broken disk cannot even be killed
    if process.stdin:
        process.stdin.close()


def _serve(connection: Connection, threads: int | None) -> None:
    # All that a read needs is loaded before the clock of the first slide runs.
    try:
        import scipy.sparse  # noqa: F401

        import longvit.slides.canvas
        import longvit.slides.reader  # noqa: F401
        from longvit.slide_jobs.tile_process import TilesRequest, serve_tiles
    except (ImportError, MemoryError, OSError) as error:
        failed = SlideFailedError.of("open", error)
        connection.send(("failed", "open", f"the process that reads slides cannot start: {failed}", failed.cause))
        return
    connection.send(("ready",))
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if isinstance(request, TilesRequest):
            serve_tiles(request, connection, threads)
            continue
        said = time.monotonic()

        def hear(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said > _HEAR_EVERY_S:
                said = time.monotonic()
                connection.send(("heard", done, total))

        def is_wanted(identity: str) -> bool:
            connection.send(("opened", identity))
            return bool(connection.recv())

        try:
            canvas = read(request, is_wanted, hear, threads)
        except SlideFailedError as error:
            connection.send(("failed", error.stage, str(error), error.cause))
            continue
        if canvas is None:
            connection.send(("unwanted",))
            continue
        connection.send(("canvas", replace(canvas, pixels=np.empty((0, 0, 3), np.uint8))))
        send_array(connection, canvas.pixels)
        del canvas


def send_array(connection: Connection, array: NDArray[np.uint8]) -> None:
    """Its bytes alone; the other side knows the shape."""
    rest = np.ascontiguousarray(array).reshape(-1).data
    while rest:
        rest = rest[os.writev(connection.fileno(), [rest[:_CHUNK_BYTES]]) :]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody listens any more
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]) or None)
