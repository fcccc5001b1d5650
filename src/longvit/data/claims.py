"""Claim files: which process makes a file, where several share a folder (folds in parallel, machines on one disk).

`x.tif.claim` is created by one process and no other (O_EXCL). It names host, process and a token, and its holder
touches it every few seconds. It is taken over where its holder is dead: a process of this machine that is gone, or
a file that nobody touched for a minute of our own clock (clocks of two machines need not agree).

Claims save work, nothing more: files are written atomically anyway, so two holders would only do the same twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BEAT_S = 5.0
"""A holder touches its claims this often."""
DEAD_AFTER_S = 60.0
"""A claim that was not touched for so long has no holder."""


class Claims:
    """The claims of one process; a context manager that keeps them fresh. Any of its threads may take one."""

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}
        self._seen: dict[Path, tuple[object, float]] = {}  # path -> (its mtime, when we saw that first)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    @contextmanager
    def take(self, path: Path) -> Iterator[bool]:
        """Claims the making of `path` while it is entered; False: another process, or thread, is making it."""
        claim = path.with_name(f"{path.name}.claim")
        token = uuid.uuid4().hex
        if not (self._create(claim, token) or self._take_over(claim, token)):
            yield False
            return
        self._held[claim] = token
        try:
            yield True
        finally:
            del self._held[claim]
            if _read(claim).get("token") == token:  # not where we slept so long that it was taken over
                claim.unlink(missing_ok=True)

    def is_free(self, path: Path) -> bool:
        """Whether `take` is worth another try: no claim there, or one whose holder is dead."""
        return self._is_dead(path.with_name(f"{path.name}.claim"))

    def _create(self, claim: Path, token: str) -> bool:
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump({"host": _host(), "process": os.getpid(), "token": token}, file)
        return True

    def _take_over(self, claim: Path, token: str) -> bool:
        """Puts our claim in the place of one whose holder is dead; one at a time, or two would remove each other's."""
        if not self._is_dead(claim):
            return False
        with _locked(claim.with_name(".claims.lock")):
            if not self._is_dead(claim):
                return False
            claim.unlink(missing_ok=True)
            return self._create(claim, token)

    def _is_dead(self, claim: Path) -> bool:
        try:
            touched = claim.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        holder = _read(claim)
        if holder.get("host") == _host() and not _is_running(holder.get("process")):
            return True
        now = time.monotonic()
        if self._seen.get(claim, (None, 0.0))[0] != touched:
            self._seen[claim] = (touched, now)
        return now - self._seen[claim][1] > DEAD_AFTER_S

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            for claim in list(self._held):
                with contextlib.suppress(OSError):  # taken over, or released this instant
                    os.utime(claim)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The system's own lock, which goes with its process; a disk without locks has none."""
    import fcntl

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(claim: Path) -> dict[str, Any]:
    """What a claim says; nothing where it is gone or was only begun."""
    try:
        content = json.loads(claim.read_bytes())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _host() -> str:
    """This machine; a container counts its processes anew, so it is one of its own."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def _is_running(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, ValueError, OverflowError):  # another user's; or not a number
        return True
    return True
