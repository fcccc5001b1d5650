"""Supervisor of the worker processes of one machine: a worker that dies is replaced, and its log gets its exit status.

A Ctrl-C reaches the command alone, which then ends its workers. Their standard input ends, and they release their
slides. After a few seconds they are killed, and their leases and half-written files are removed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longvit.errors import InputError
from longvit.files import remove, remove_dead_parts_below
from longvit.process_identity import this_host
from longvit.processes.child import ChildProcess, describe_exit
from longvit.processes.leases import read_lease
from longvit.slide_jobs.work_list import WorkList
from longvit.slide_jobs.worker_log import LogTail, note_death

_GRACE_S = 5.0
_MAX_FAILED_STARTS = 3
_ENDED = (0, 2)
"""Exit codes of workers that are not replaced; 2: the worker's log says why nothing can be done."""


class Workers(Protocol):
    """Workers of a run."""

    def start(self) -> None:
        """Starts the workers."""

    def check(self) -> bool:
        """Replaces dead workers; False when none is left. Raises `InputError` where replacing does not help."""

    def end(self) -> None:
        """Ends the remaining workers within seconds; no lease and no half-written file remains."""


@dataclass
class _Worker:
    index: int
    name: str
    child: ChildProcess
    slide: str = ""
    """Slide in its model; empty: none."""
    since: float = 0.0
    """Time at which the slide entered the model, in seconds since 1970."""
    has_worked: bool = False


class LocalWorkers:
    """Workers as processes of this machine."""

    def __init__(
        self, work_list: WorkList, n: int, *, log: Callable[[str], None] = lambda _: None, cwd: str | None = None
    ) -> None:
        self._list, self._n, self._log, self._cwd = work_list, n, log, cwd
        self._tail = LogTail(work_list.folder)
        self._workers: dict[str, _Worker] = {}
        self._killed_for: dict[str, str] = {}
        self._dead: set[int] = set()
        self._failed_starts = 0

    def start(self) -> None:
        for index in range(self._n):
            self._start(index)

    def check(self) -> bool:
        self._read_logs()
        timeout_s = self._list.settings["timeout_s"]
        for worker in list(self._workers.values()):
            if timeout_s and worker.slide and time.time() - worker.since > timeout_s:
                self._killed_for[worker.name] = f"more than {timeout_s:g} s in the model"
                worker.child.process.kill()
                worker.slide = ""
            code = worker.child.exit_code()
            if code is not None:
                self._read_logs()
                del self._workers[worker.name]
                self._handle_end(worker, code)
        return bool(self._workers)

    def end(self) -> None:
        for worker in self._workers.values():
            worker.child.close_input()
        deadline = time.monotonic() + _GRACE_S
        for worker in self._workers.values():
            if worker.child.wait(deadline - time.monotonic()) != 0:
                worker.child.kill()
                self._dead.add(worker.child.pid)
        self._workers.clear()
        self._clean_up()

    def _start(self, index: int) -> None:
        name = f"{this_host().split()[0]}-{os.getpid()}-{index}-{uuid.uuid4().hex[:6]}"
        child = ChildProcess(
            "longvit.slide_jobs.worker",
            *(self._list.folder.parent.absolute(), name, index),
            has_pipe=False,
            stdout=subprocess.DEVNULL,
            cwd=self._cwd,
            # torch reads it at import, so that threads started before `set_threads` leave the other workers their CPUs.
            environment={"OMP_NUM_THREADS": str(self._list.settings["threads"])},
        )
        self._workers[name] = _Worker(index, name, child)

    def _read_logs(self) -> None:
        for name, line in self._tail.new_lines(list(self._workers)):
            worker = self._workers[name]
            if line["event"] == "model":
                worker.slide, worker.since, worker.has_worked = line["slide"], line["t"], True
            elif line.get("slide") == worker.slide:
                worker.slide = ""
            worker.has_worked |= "slide" in line

    def _handle_end(self, worker: _Worker, code: int) -> None:
        """Notes a worker's death in its log and replaces the worker; one that ended by itself is not replaced."""
        if code in _ENDED:
            worker.child.wait()
            return
        how = self._killed_for.pop(worker.name, None) or describe_exit(code)
        with contextlib.suppress(OSError):
            note_death(self._list.folder, worker.name, how)
        worker.child.wait()  # from here on other workers take over its slides, and read the log
        self._dead.add(worker.child.pid)
        self._failed_starts = 0 if worker.has_worked else self._failed_starts + 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise InputError(
                f"{self._failed_starts} workers died before they had a slide, the last one by {how}; try fewer workers"
            )
        self._log(f"worker {worker.index} died ({how}); a new worker replaces it")
        self._start(worker.index)

    def _clean_up(self) -> None:
        """Removes leases and half-written files of dead workers, since no other worker is left to take over."""
        if not self._dead:
            return
        for path in (self._list.folder / "slides").glob("*.json"):
            content = read_lease(path)
            if content.get("host") == this_host() and content.get("process") in self._dead:
                remove(path)
        folder = Path(self._list.settings["folder"])
        remove_dead_parts_below([self._list.folder.parents[2], folder.parent, folder, self._list.folder])
