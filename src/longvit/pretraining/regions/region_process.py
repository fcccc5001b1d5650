"""Child processes that make crops, without torch, into memory shared with the parent. Each opens its own slides.

Each batch is one piece of shared memory. The parent creates it and sends it to every process that makes a part of the
batch. Nothing is copied, and the memory is freed with the last tensor in it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
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
from longvit.pretraining.regions.region_crops import CropJob, CropMaker, RegionCrops, batch_bytes, crop_views
from longvit.processes.child import ChildProcess, connect_to_parent

_START_S = 120.0
_POLL_S = 0.5
_EXIT_S = 5.0
# A process has one thread: there are as many processes as cores to use.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Part:
    """The part of a batch that one process makes."""

    epoch: int
    samples: int
    """Regions of the whole batch."""
    places: tuple[int, ...]
    """Positions in the batch that this process fills."""
    indices: tuple[int, ...]
    """Region of each position."""


class SharedMemory:
    """A piece of memory that can be sent to other processes; it is freed with the last array in it."""

    def __init__(self, size: int) -> None:
        self.file = _memory_file()
        os.ftruncate(self.file, size)
        self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.file, size), np.uint8)

    def close_file(self) -> None:
        """Closes the file, once every process has it; the array stays."""
        os.close(self.file)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("crops")
    with tempfile.TemporaryFile() as file:  # other systems than Linux: a file without a name
        return os.dup(file.fileno())


class RegionProcess:
    """The parent's side of one process."""

    def __init__(self, job: CropJob, timeout_s: float) -> None:
        self._job, self._timeout_s = job, timeout_s
        status = SharedMemory(2 * 8)
        # The region being read, and since when (time.monotonic is one clock for all processes).
        self._status = status.array.view(np.float64)
        self._status[:] = -1, time.monotonic()
        self._epoch = 0
        self._child = ChildProcess(__name__, status.file, descriptors=[status.file], environment=_ONE_THREAD)
        status.close_file()
        self._has_job = False

    @property
    def process(self) -> int:
        """Number of the process."""
        return self._child.pid

    def begin(self, part: Part, memory: SharedMemory) -> None:
        """Has the process make a part of a batch. Returns at once; the first call waits until the process runs."""
        with self._death_named():
            if not self._has_job:
                self._child.send(self._job)
                self._has_job = True
            self._child.send(part)
            send_handle(self._child.pipe, memory.file, self._child.pid)
        self._epoch = part.epoch

    def finish(self) -> Sequence[RegionCrops]:
        """Waits for the oldest part that was begun.

        Raises `InputError` with the slide's name where the process died or exceeded the time limit, or what
        `CropMaker.make` raised.
        """
        with self._death_named():
            while not self._child.pipe.poll(_POLL_S):
                index, since = self._status
                seconds, limit = time.monotonic() - since, self._timeout_s if index >= 0 else _START_S
                if since > 0 and seconds > limit:
                    raise InputError(f"{self._region()} not read within {limit:g} s, given up; leave the slide out")
            message = self._child.receive()
        if isinstance(message, InputError):
            raise message
        if isinstance(message, str):
            raise RuntimeError(f"{self._region()} failed:\n{message}")
        assert isinstance(message, tuple)
        return message

    def end(self) -> None:
        """Kills the process and removes its half-written files."""
        self._child.close()
        if self._job.cache is not None:
            remove_parts(self._job.cache, self._child.pid)

    @contextlib.contextmanager
    def _death_named(self) -> Iterator[None]:
        """Turns the death of the process into an `InputError` with the region that it was reading."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._child.wait(_EXIT_S)
            how = self._child.exit_status()
            raise InputError(f"{self._region()} not read: the process that read it died ({how})") from error

    def _region(self) -> str:
        """The region being read, as the beginning of an error message."""
        index = int(self._status[0])
        if index < 0:
            return "a process that reads regions: its first region was"
        region = self._job.regions.region(index, self._epoch)
        return f"{region.source.path}: region {region.name} was"


def _serve(pipe: Connection, status: NDArray[np.float64]) -> None:
    job: CropJob = pipe.recv()
    maker = CropMaker(job)

    def before_read(index: int) -> None:
        status[:] = index, time.monotonic()

    while True:
        status[1] = 0  # idle, for as long as a training step takes: no time limit
        try:
            part: Part = pipe.recv()
        except EOFError:
            return
        file = recv_handle(pipe)
        try:
            regions = _make(maker, job, part, file, before_read)
        except InputError as error:
            pipe.send(error)
            return
        except Exception:
            pipe.send(traceback.format_exc())
            return
        pipe.send(regions)


def _make(
    maker: CropMaker, job: CropJob, part: Part, file: int, before_read: Callable[[int], None]
) -> tuple[RegionCrops, ...]:
    """Fills a part of a batch; its memory is unmapped on return."""
    memory = np.frombuffer(mmap.mmap(file, batch_bytes(job.crops, part.samples)), np.uint8)
    os.close(file)
    crops = crop_views(memory, job.crops, part.samples)
    return tuple(
        maker.make(index, part.epoch, [crop[place] for crop in crops], before_read)
        for place, index in zip(part.places, part.indices, strict=True)
    )


if __name__ == "__main__":
    _serve(connect_to_parent(), np.frombuffer(mmap.mmap(int(sys.argv[2]), 16), np.float64))
