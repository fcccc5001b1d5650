"""Worker processes of one machine, kept alive: one that dies is replaced, and its log gets to say how it ended.

Each has a session of its own, so a Ctrl-C reaches the command alone, which then ends them in good order: their standard
input ends, they let go of their slides; after a few seconds they are killed and cleaned up after.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longvit.errors import InputError
from longvit.files import remove_dead_parts_below, this_host
from longvit.processes.child import how_it_ended
from longvit.processes.leases import read_lease
from longvit.slide_jobs.work_list import WorkList
from longvit.slide_jobs.worker_log import LogTail, note_death

_PATIENCE_S = 5.0
_MOST_STARTS_IN_VAIN = 3


class Workers(Protocol):
    """Those who do the work of a run."""

    def start(self) -> None:
        """Starts them."""

    def check(self) -> bool:
        """Replaces the dead; whether anybody is still at work. Raises `InputError` where that is in vain."""

    def end(self) -> None:
        """Ends those that are left, within seconds; they leave no claim and no half file."""


@dataclass
class _Worker:
    index: int
    name: str
    process: subprocess.Popen[bytes]
    slide: str = ""
    since: float = 0.0
    """The slide in its model, and since when."""
    has_worked: bool = False


class LocalWorkers:
    """Workers as processes of this machine."""

    def __init__(
        self, work_list: WorkList, n: int, *, log: Callable[[str], None] = lambda _: None, cwd: str | None = None
    ) -> None:
        self._list, self._n, self._say, self._cwd = work_list, n, log, cwd
        self._tail = LogTail(work_list.folder)
        self._workers: dict[str, _Worker] = {}
        self._killed_for: dict[str, str] = {}
        self._dead: set[int] = set()
        self._in_vain = 0

    def start(self) -> None:
        for index in range(self._n):
            self._start(index)

    def check(self) -> bool:
        self._listen()
        timeout_s = self._list.facts["timeout_s"]
        for worker in list(self._workers.values()):
            if timeout_s and worker.slide and time.time() - worker.since > timeout_s:
                self._killed_for[worker.name] = f"more than {timeout_s:g} s in the model"
                worker.process.kill()
                worker.slide = ""
            code = _code_of(worker.process)
            if code is not None:
                self._listen()
                del self._workers[worker.name]
                self._after(worker, code)
        return bool(self._workers)

    def end(self) -> None:
        for worker in self._workers.values():
            if worker.process.stdin:
                worker.process.stdin.close()
        deadline = time.monotonic() + _PATIENCE_S
        for worker in self._workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            if worker.process.returncode != 0:
                worker.process.kill()
                worker.process.wait()
                self._dead.add(worker.process.pid)
        self._workers.clear()
        self._clean_up()

    def _start(self, index: int) -> None:
        name = f"{this_host().split()[0]}-{os.getpid()}-{index}-{uuid.uuid4().hex[:6]}"
        threads = str(self._list.facts["threads"])
        command = [sys.executable, "-m", "longvit.slide_jobs.worker", str(self._list.folder.parent.absolute())]
        process = subprocess.Popen(
            [*command, name, str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self._cwd,
            # Read when torch is imported: what it starts later must not take the others' cores.
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        self._workers[name] = _Worker(index, name, process)

    def _listen(self) -> None:
        for name, line in self._tail.new_lines(list(self._workers)):
            worker = self._workers[name]
            if line["event"] == "model":
                worker.slide, worker.since, worker.has_worked = line["slide"], line["t"], True
            elif line.get("slide") == worker.slide:
                worker.slide = ""
            worker.has_worked |= "slide" in line

    def _after(self, worker: _Worker, code: int) -> None:
        """A worker has ended: what that means."""
        process = worker.process.pid
        if code in (0, 2):  # 2: its log says that nothing can be done, and the run stops with that
            worker.process.wait()
            return
        how = self._killed_for.pop(worker.name, None) or how_it_ended(code)
        with contextlib.suppress(OSError):
            note_death(self._list.folder, worker.name, how)
        worker.process.wait()  # from here on others see that it is gone
        self._dead.add(process)
        self._in_vain = 0 if worker.has_worked else self._in_vain + 1
        if self._in_vain >= _MOST_STARTS_IN_VAIN:
            raise InputError(f"{self._in_vain} workers died before they had a slide, the last one by {how}; fewer?")
        self._say(f"worker {worker.index} died ({how}); another one takes its place")
        self._start(worker.index)

    def _clean_up(self) -> None:
        """After the dead: nobody is left to take over what they held."""
        if not self._dead:
            return
        for path in (self._list.folder / "slides").glob("*.json"):
            content = read_lease(path)
            if content.get("host") == this_host() and content.get("process") in self._dead:
                path.unlink(missing_ok=True)
        folder = Path(self._list.facts["folder"])
        remove_dead_parts_below([self._list.folder.parents[2], folder.parent, folder, self._list.folder])


def _code_of(process: subprocess.Popen[bytes]) -> int | None:
    """How a process ended, without forgetting it yet: its number stays taken until the death is written down."""
    if process.returncode is not None:
        return process.returncode
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, ChildProcessError):  # no such call on this system
        return process.poll()
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
