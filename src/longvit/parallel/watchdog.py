"""Rank watchdog: heartbeats through the launcher's store; a dead or hung rank is named, and the others end.

When a process dies, the others stay in a collective that never ends, or that fails with the address of a neighbour. So
a thread of every rank publishes a heartbeat in the store every second and polls those of the others. A rank is lost if
it is

dead      its process is gone (same machine), or its heartbeat stays the same for `timeout_s` (another machine, stopped)
failed    its heartbeat holds the error with which it ends
hung      it neither waits for others nor moves for `timeout_s`, while this rank waits for as long; a rank that computes
          meanwhile (a long layer on a CPU) gets 15 times as long

A main thread whose collective fails calls `lost()` for the name. One that stays in its collective is ended by the
watchdog thread, with the same line.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from longvit.errors import InputError, one_line
from longvit.process_identity import this_host

EXIT_CODE = 3
START_UP_S = 600.0
"""Time limit for the first heartbeat of a rank: a cold start of torch from a network folder is slow."""
_POLL_S = 1.0
_BUSY_CPU_SHARE = 0.2
"""Share of a core above which a process counts as computing; the watchdog thread takes far less."""
_PATIENCE = 15
_GRACE_S = 5.0  # for the main thread to leave its collective with an error


class RankLostError(InputError):
    """Another rank of the run is dead, failed or hung; the text names it."""

    exit_code = EXIT_CODE


_current: Watchdog | None = None  # one run per process


@contextmanager
def use_watchdog(watchdog: Watchdog) -> Iterator[None]:
    """Context in which `waiting` reports to this watchdog."""
    global _current  # collectives are too deep in the model to be passed a watchdog
    _current = watchdog
    try:
        yield
    finally:
        _current = None


def waiting() -> AbstractContextManager[None]:
    """Context around every wait for other ranks; does nothing without a watchdog."""
    return nullcontext() if _current is None else _current.waiting()


@dataclass(frozen=True)
class _Heartbeat:
    """State of a rank, published every second as JSON."""

    name: str
    host: str
    pid: int
    count: int
    moves: int
    """Steps of its main thread so far."""
    cpu_s: float
    waits: bool
    """True while it waits for other ranks."""
    busy: str
    """A task that may take long, such as writing a checkpoint; empty: none."""
    place: str
    """Line of code of its main thread."""
    failed: str
    """Error with which it ends; empty: none."""
    lost: str
    """The lost rank that it found, and why; empty: none."""
    done: bool


@dataclass
class _LastHeartbeat:
    """Last heartbeat of another rank."""

    heartbeat: _Heartbeat | None
    changed_at_s: float
    """Time of its last change."""
    moved_at_s: float
    """Time of the last step of its main thread."""
    computed_at_s: float
    """Time at which it last used the CPU."""


class Watchdog:
    """Watchdog thread of one rank: `start` it before the first collective, `close` it at the end."""

    def __init__(self, store: dist.Store, rank: int, ranks: int, *, timeout_s: float = 40.0) -> None:
        self._store, self.rank, self.ranks, self.timeout_s = store, rank, ranks, timeout_s
        self._name = f"rank {rank} ({socket.gethostname()}, process {os.getpid()})"
        self._moves, self._count, self._busy = 0, 0, ""
        self._waits_since: float | None = None
        self._failed, self._is_done, self._lost = "", False, ""
        self._others: dict[int, _LastHeartbeat] = {}
        self._main = threading.main_thread().ident
        self._stop, self._lost_known = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._publish()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def move(self) -> None:
        """Counts a step of the main thread."""
        self._moves += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which this rank waits for other ranks."""
        self._moves += 1
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = None
            self._moves += 1

    @contextmanager
    def busy(self, task: str) -> Iterator[None]:
        """Context of a task that may take long: only the process must live."""
        before, self._busy = self._busy, task
        try:
            yield
        finally:
            self._busy = before
            self._moves += 1

    def fail(self, error: str) -> None:
        """Publishes the error with which this rank ends, and stops the thread."""
        self._failed = error
        self._end_thread()
        self._try_to_publish()

    def close(self) -> None:
        """Publishes that this rank is done, and stops the thread."""
        self._is_done = True
        self._end_thread()
        self._try_to_publish()

    def _end_thread(self) -> None:
        """Joins the thread: the interpreter aborts if it ends while the thread is inside the store."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self.timeout_s)

    def lost(self) -> str:
        """The lost rank and why, after a wait of at most `timeout_s`. Empty: none is lost."""
        self._waits_since = self._waits_since or time.monotonic()
        self._lost_known.wait(self.timeout_s + 2 * _POLL_S)
        return self._lost

    def error_of(self, rank: int, wait_s: float = 3.0) -> str:
        """Error that another rank published; empty where it published none within `wait_s`."""
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            try:
                if failed := self._heartbeat_of(rank).failed:
                    return failed
            except Exception:  # the store ended with its process
                return ""
            time.sleep(0.1)
        return ""

    def _run(self) -> None:
        start = last = time.monotonic()
        others = (rank for rank in range(self.ranks) if rank != self.rank)
        self._others = {rank: _LastHeartbeat(None, start, start, start) for rank in others}
        while not self._stop.wait(_POLL_S):
            now = time.monotonic()
            if now - last > 5 * _POLL_S:  # this process was stopped: restart the time limits of the others
                for other in self._others.values():
                    other.changed_at_s = other.moved_at_s = other.computed_at_s = now
            last = now
            try:
                self._publish()
                self._lost = self._poll(now)
            except Exception as error:  # any error of the store: it cannot be reached
                self._lost = "" if self._stop.is_set() else f"the launcher cannot be reached ({one_line(error, 120)})"
            if self._lost:
                self._lost_known.set()
                self._end()
                return

    def _poll(self, now: float) -> str:
        """Reads the heartbeats of all other ranks; returns the first lost rank and why. Empty: none is lost."""
        for rank, last in self._others.items():
            if last.heartbeat is None and not self._has_published(rank):
                if now - last.changed_at_s > START_UP_S:
                    return f"rank {rank} has not started within {now - last.changed_at_s:.0f} s"
                continue
            heartbeat = self._heartbeat_of(rank)
            is_gone = not heartbeat.done and heartbeat.host == this_host() and _is_gone(heartbeat.pid)
            if is_gone:
                heartbeat = self._heartbeat_of(rank)  # its last one
            if heartbeat.done:
                continue
            _update(last, heartbeat, now)
            if reason := _end_of(heartbeat, is_gone) or self._hang_of(last, heartbeat, now):
                return reason
        return ""

    def _hang_of(self, last: _LastHeartbeat, heartbeat: _Heartbeat, now: float) -> str:
        """Reason why a rank counts as hung: no heartbeat, or no step while this rank waits for it. Empty: it runs."""
        silent_s = now - last.changed_at_s
        if silent_s > self.timeout_s:
            return f"{heartbeat.name} has sent no heartbeat for {silent_s:.0f} s: stopped, or disconnected"
        waits, still_s = self._waits_since, now - last.moved_at_s
        is_computing = now - last.computed_at_s < self.timeout_s
        limit_s = self.timeout_s * (_PATIENCE if is_computing else 1)
        if waits is not None and now - waits > self.timeout_s and still_s > limit_s:
            return f"{heartbeat.name} hangs, for {still_s:.0f} s, in {heartbeat.place}"
        return ""

    def _has_published(self, rank: int) -> bool:
        with self._lock:
            return bool(self._store.check([str(rank)]))

    def _heartbeat_of(self, rank: int) -> _Heartbeat:
        with self._lock:
            return _Heartbeat(**json.loads(self._store.get(str(rank))))

    def _publish(self) -> None:
        self._count += 1
        heartbeat = _Heartbeat(
            name=self._name,
            host=this_host(),
            pid=os.getpid(),
            count=self._count,
            moves=self._moves,
            cpu_s=time.process_time(),
            waits=self._waits_since is not None,
            busy=self._busy,
            place=self._place(),
            failed=self._failed,
            lost=self._lost,
            done=self._is_done,
        )
        with self._lock:
            self._store.set(str(self.rank), json.dumps(asdict(heartbeat)))

    def _try_to_publish(self) -> None:
        with suppress(Exception):  # the store is gone, and the other ranks with it
            self._publish()

    def _place(self) -> str:
        """File, line and function of the main thread, for the error message of a hang."""
        frame = sys._current_frames().get(self._main or 0)
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "?"

    def _end(self) -> None:
        """Publishes the lost rank; ends this process if its main thread stays in a collective."""
        self._try_to_publish()
        if self._stop.wait(_GRACE_S):
            return
        print(f"longvit: rank {self.rank} ends: {self._lost}", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)


def _end_of(heartbeat: _Heartbeat, is_gone: bool) -> str:
    """Why a rank has ended; empty while it runs."""
    if heartbeat.lost:
        return heartbeat.lost  # so that all ranks name the same one
    if heartbeat.failed or is_gone:
        return f"{heartbeat.name} has ended: {heartbeat.failed or 'it was killed'}"
    return ""


def _update(last: _LastHeartbeat, heartbeat: _Heartbeat, now: float) -> None:
    """Notes what has changed since the last heartbeat."""
    before = last.heartbeat
    if before is None or heartbeat.count != before.count:
        cpu_s = heartbeat.cpu_s - (before.cpu_s if before else 0.0)
        if cpu_s > _BUSY_CPU_SHARE * (now - last.changed_at_s):
            last.computed_at_s = now
        last.changed_at_s = now
    if before is None or heartbeat.moves != before.moves or heartbeat.waits or heartbeat.busy:
        last.moved_at_s = now
    last.heartbeat = heartbeat


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"  # dead, not yet reaped
    except FileNotFoundError:
        return Path("/proc/self").exists()  # other systems than Linux: the time limit decides
    except OSError:
        return False
