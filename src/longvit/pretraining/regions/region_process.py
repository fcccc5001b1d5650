"""A process that makes crops: with slides of its own, without torch, into memory that it shares with its parent.

It is a fresh interpreter, never a fork of one that has threads. Each batch is one piece of shared memory, made by the
parent and handed to every process that makes a part of it; nothing is copied, and the memory goes when the last tensor
in it does. It ends by itself when the process that started it is gone: its standard input, a pipe that nobody writes
to, ends then.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.files import remove_parts
from longvit.pretraining.regions.region_crops import CropJob, CropMaker, Made, batch_bytes, views
from longvit.processes.child import end_with_parent, how_it_ended

_START_S = 120.0
_LOOK_EVERY_S = 0.5
# One thread each: the processes are as many as there are cores to use.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Part:
    """What one process makes of a batch."""

    epoch: int
    samples: int
    """Regions of the whole batch."""
    places: tuple[int, ...]
    """Which of them are made here."""
    indices: tuple[int, ...]
    """Their regions."""


class SharedMemory:
    """A piece of memory that can be sent to other processes; it goes when no array in it is left."""

    def __init__(self, size: int) -> None:
        self.file = _memory_file()
        os.ftruncate(self.file, size)
        self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.file, size), np.uint8)

    def sent(self) -> None:
        """Every process has it."""
        os.close(self.file)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("crops")
    with tempfile.TemporaryFile() as file:  # no Linux: without a name it is as good as memory
        return os.dup(file.fileno())


class RegionProcess:
    """The parent's side of one process."""

    def __init__(self, job: CropJob, timeout_s: float) -> None:
        self._job, self._timeout_s = job, timeout_s
        self._connection, theirs = multiprocessing.Pipe()
        status = SharedMemory(2 * 8)
        # What it reads, since when (time.monotonic is one clock for all processes).
        self._status = status.array.view(np.float64)
        self._status[:] = -1, time.monotonic()
        self._epoch = 0
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(status.file)]
        # A session of its own: Ctrl-C is for the parent to hear.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno(), status.file],
            start_new_session=True,
            env=os.environ | _ONE_THREAD,
        )
        theirs.close()
        status.sent()
        self._has_job = False

    @property
    def process(self) -> int:
        """Its number."""
        return self._process.pid

    def begin(self, part: Part, memory: SharedMemory) -> None:
        """Has it make a part of a batch; returns at once, but for the first, which waits until it has started."""
        with self._named_where_it_died():
            if not self._has_job:
                self._connection.send(self._job)
                self._has_job = True
            self._connection.send(part)
            send_handle(self._connection, memory.file, self._process.pid)
        self._epoch = part.epoch

    def finish(self) -> Sequence[Made]:
        """Waits for the oldest part that was begun. Raises `InputError` that names the slide where the process died or
        does not get on, or what `CropMaker.make` raised."""
        with self._named_where_it_died():
            while not self._connection.poll(_LOOK_EVERY_S):
                index, since = self._status
                seconds, limit = time.monotonic() - since, self._timeout_s if index >= 0 else _START_S
                if since > 0 and seconds > limit:
                    raise InputError(f"{self._where()} not read within {limit:g} s, given up; leave the slide out")
            made = self._connection.recv()
        if isinstance(made, InputError):
            raise made
        if isinstance(made, str):
            raise RuntimeError(f"{self._where()} failed:\n{made}")
        assert isinstance(made, tuple)
        return made

    def end(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)  # one that hangs in a broken disk cannot even be killed
        if self._process.stdin:
            self._process.stdin.close()
        self._connection.close()
        if self._job.cache is not None:
            remove_parts(self._job.cache, self._process.pid)

    @contextlib.contextmanager
    def _named_where_it_died(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            how = how_it_ended(self._process.poll())
            raise InputError(f"{self._where()} not read: the process that read it died ({how})") from error

    def _where(self) -> str:
        index = int(self._status[0])
        if index < 0:
            return "a process that reads regions: its first region was"
        region = self._job.regions.region(index, self._epoch)
        return f"{region.source.path}: region {region.name} was"


def _serve(connection: Connection, status: NDArray[np.float64]) -> None:
    job: CropJob = connection.recv()
    maker = CropMaker(job)

    def about_to_read(index: int) -> None:
        status[:] = index, time.monotonic()

    while True:
        status[1] = 0  # it waits, and may for as long as a step takes
        try:
            part: Part = connection.recv()
        except EOFError:
            return
        file = recv_handle(connection)
        try:
            made = _make(maker, job, part, file, about_to_read)
        except InputError as error:
            connection.send(error)
            return
        except Exception:
            connection.send(traceback.format_exc())
            return
        connection.send(made)


def _make(
    maker: CropMaker, job: CropJob, part: Part, file: int, about_to_read: Callable[[int], None]
) -> tuple[Made, ...]:
    """Fills a part of a batch; the memory is let go of with the end of it."""
    memory = np.frombuffer(mmap.mmap(file, batch_bytes(job.crops, part.samples)), np.uint8)
    os.close(file)
    crops = views(memory, job.crops, part.samples)
    return tuple(
        maker.make(index, part.epoch, [crop[place] for crop in crops], about_to_read)
        for place, index in zip(part.places, part.indices, strict=True)
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _serve(Connection(int(sys.argv[1])), np.frombuffer(mmap.mmap(int(sys.argv[2]), 16), np.float64))
