"""Who is still there: every rank tells the others that it lives, and ends them by name where one dies or hangs.

A process that is gone leaves the others in a collective that never ends, or that ends with the address of a
neighbour. So a thread of every rank says a few words in the store of the launcher every second (alive, waiting for
others or not, doing something that takes its time) and reads those of the others:

dead      its process is gone (same machine), or its words have not changed for `timeout_s` (another machine, stopped)
failed    it says itself why it ends
hangs     it neither waits for others nor has moved on for `timeout_s`, while this rank waits for as long; one that
          computes all the while (a long layer on a CPU) gets 15 times as long

The main thread that a broken collective throws out asks `lost()`, which says the name; one that stays stuck is ended
by the thread, with the same line.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from longvit.errors import InputError
from longvit.files import this_host

EXIT_CODE = 3
START_UP_S = 600.0
"""How long a rank may take to come: a cold start of torch from a network folder is slow."""
_POLL_S = 1.0
_COMPUTES = 0.2
"""Share of a core above which a process is at work; the watch's thread takes far less."""
_PATIENCE = 15
_GRACE_S = 5.0  # for the main thread to come out of its collective by itself


class RankLostError(InputError):
    """Another rank of the run is gone or hangs; the text names it."""

    exit_code = EXIT_CODE


_current: Watchdog | None = None  # one run per process


@contextmanager
def use_watchdog(watchdog: Watchdog) -> Iterator[None]:
    """In here `waiting` counts for `watch`."""
    global _current  # the collectives lie too deep in the model to be handed it
    _current = watchdog
    try:
        yield
    finally:
        _current = None


def waiting() -> AbstractContextManager[None]:
    """Around every wait for other ranks; without a watch it does nothing."""
    return nullcontext() if _current is None else _current.waiting()


@dataclass
class _Heard:
    """What was last heard of another rank."""

    words: dict[str, Any]
    at_s: float
    """When its words last changed."""
    moved_at_s: float
    """When its main thread last moved on."""
    worked_at_s: float
    """When it last used the processor."""


class Watchdog:
    """The thread of one rank; `start` it before the first collective, `close` it at the end."""

    def __init__(self, store: dist.Store, rank: int, ranks: int, *, timeout_s: float = 40.0) -> None:
        self._store, self.rank, self.ranks, self.timeout_s = store, rank, ranks, timeout_s
        self._who = f"rank {rank} ({socket.gethostname()}, process {os.getpid()})"
        self._moves, self._n, self._busy = 0, 0, ""
        self._waits_since: float | None = None
        self._failed, self._is_done, self._lost = "", False, ""
        self._heard: dict[int, _Heard] = {}
        self._main = threading.main_thread().ident
        self._stop, self._found = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="watch over the ranks", daemon=True)
        self._speak()

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def move(self) -> None:
        """The main thread has got on with its work."""
        self._moves += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In here this rank waits for the others."""
        self._moves += 1
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = None
            self._moves += 1

    @contextmanager
    def busy(self, with_what: str) -> Iterator[None]:
        """In here it takes its time, and only its process must live."""
        before, self._busy = self._busy, with_what
        try:
            yield
        finally:
            self._busy = before
            self._moves += 1

    def fail(self, why: str) -> None:
        """This rank ends with an error, which the others may say."""
        self._failed = why
        self._end_thread()
        self._try_to_speak()

    def close(self) -> None:
        """This rank has done all it had to do."""
        self._is_done = True
        self._end_thread()
        self._try_to_speak()

    def _end_thread(self) -> None:
        """One that is inside the store while the interpreter ends would abort the process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self.timeout_s)

    def lost(self) -> str:
        """Which rank is lost and why; waits until that is known, at most `timeout_s`. Empty: all are well."""
        self._waits_since = self._waits_since or time.monotonic()
        self._found.wait(self.timeout_s + 2 * _POLL_S)
        return self._lost

    def said_by(self, rank: int, wait_s: float = 3.0) -> str:
        """Why `rank` failed, in its own words; empty where it did not say within `wait_s`."""
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            try:
                if failed := self._words_of(rank)["failed"]:
                    return str(failed)
            except Exception:  # the store is gone with its process
                return ""
            time.sleep(0.1)
        return ""

    def _run(self) -> None:
        start = last = time.monotonic()
        self._heard = {r: _Heard({}, start, start, start) for r in range(self.ranks) if r != self.rank}
        while not self._stop.wait(_POLL_S):
            now = time.monotonic()
            if now - last > 5 * _POLL_S:  # it was this process that was stopped: the others get their time anew
                for heard in self._heard.values():
                    heard.at_s = heard.moved_at_s = heard.worked_at_s = now
            last = now
            try:
                self._speak()
                self._lost = self._listen(now)
            except Exception as error:  # whatever the store throws: it is out of reach
                self._lost = "" if self._stop.is_set() else f"the launcher is out of reach ({_first_line(error)})"
            if self._lost:
                self._found.set()
                self._end()
                return

    def _listen(self, now: float) -> str:
        for rank, heard in self._heard.items():
            if not heard.words and not self._has_spoken(rank):
                if now - heard.at_s > START_UP_S:
                    return f"rank {rank} has not come within {now - heard.at_s:.0f} s"
                continue
            words = self._words_of(rank)
            if words["done"]:
                continue
            if words["n"] != heard.words.get("n"):
                if words["cpu_s"] - heard.words.get("cpu_s", 0.0) > _COMPUTES * (now - heard.at_s):
                    heard.worked_at_s = now
                heard.at_s = now
            if words["moves"] != heard.words.get("moves") or words["waits"] or words["busy"]:
                heard.moved_at_s = now
            heard.words = words
            if words["lost"]:
                return str(words["lost"])  # all name the same one
            if words["failed"]:
                return f"{words['who']} has ended: {words['failed']}"
            if words["host"] == this_host() and _is_gone(words["pid"]):
                words = self._words_of(rank)  # its last ones
                if words["lost"] or words["done"]:
                    return str(words["lost"])
                return f"{words['who']} has ended: {words['failed'] or 'it was killed'}"
            if now - heard.at_s > self.timeout_s:
                return f"{words['who']} has not been heard of for {now - heard.at_s:.0f} s: stopped, or cut off"
            waits, still_s = self._waits_since, now - heard.moved_at_s
            limit_s = self.timeout_s * (_PATIENCE if now - heard.worked_at_s < self.timeout_s else 1)
            if waits is not None and now - waits > self.timeout_s and still_s > limit_s:
                return f"{words['who']} hangs, for {still_s:.0f} s, in {words['place']}"
        return ""

    def _has_spoken(self, rank: int) -> bool:
        with self._lock:
            return bool(self._store.check([str(rank)]))

    def _words_of(self, rank: int) -> dict[str, Any]:
        with self._lock:
            words: dict[str, Any] = json.loads(self._store.get(str(rank)))
        return words

    def _speak(self) -> None:
        self._n += 1
        words = {
            "who": self._who,
            "host": this_host(),
            "pid": os.getpid(),
            "n": self._n,
            "moves": self._moves,
            "cpu_s": time.process_time(),
            "waits": self._waits_since is not None,
            "busy": self._busy,
            "place": self._place(),
            "failed": self._failed,
            "lost": self._lost,
            "done": self._is_done,
        }
        with self._lock:
            self._store.set(str(self.rank), json.dumps(words))

    def _try_to_speak(self) -> None:
        try:
            self._speak()
        except Exception:  # the store has gone: nobody is left to be told
            return

    def _place(self) -> str:
        """Where the main thread is, for the others if it stays there."""
        frame = sys._current_frames().get(self._main or 0)
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "?"

    def _end(self) -> None:
        """The name is said; a main thread that is stuck in a collective cannot say it."""
        self._try_to_speak()
        if self._stop.wait(_GRACE_S):
            return
        print(f"longvit: rank {self.rank} ends: {self._lost}", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"  # dead, not yet reaped
    except FileNotFoundError:
        return Path("/proc/self").exists()  # elsewhere than on Linux the time-out tells
    except OSError:
        return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
