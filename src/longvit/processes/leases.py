"""Leases: files that give one process the right to work on something, among all processes that share a folder.

One process alone creates a lease (O_EXCL, which network folders support too). The lease names host, process, the
process's start time and a token. Its holder renews it by a heartbeat: it touches the file every few seconds.

A lease expires where its holder is a process of this host that no longer runs (or whose number another process has), or
where heartbeats stop. The age of the last heartbeat is measured by the folder's clock (the time of a file written there
now). Clocks of two machines may differ, so a lease expires only after a process has seen it unchanged for a while.

Leases only avoid duplicate work: files are written atomically, so two holders would write the same result twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from longvit.files import part_of, remove, replace
from longvit.json_file import read_json_object
from longvit.locks import acquire
from longvit.process_identity import is_running, start_of, this_host

HEARTBEAT_S = 5.0
"""Interval of the heartbeats of a holder."""
EXPIRES_AFTER_S = 60.0
"""Age of the last heartbeat at which a lease expires."""
_OBSERVED_S = 3 * HEARTBEAT_S
"""Time for which a process must see a lease unchanged before it expires, whatever the folder's clock says."""


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds."""

    path: Path
    token: str
    former: Mapping[str, Any] | None
    """Content of the expired lease that it replaced, if any."""


class Leases:
    """Leases of one process. The context manager sends the heartbeats and releases remaining leases at the end.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}
        self._seen: dict[Path, tuple[object, float]] = {}  # path -> (mtime, when first seen)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        for lease_path, token in list(self._held.items()):
            self.release(Lease(lease_path, token, None))

    @contextmanager
    def take(self, path: Path) -> Iterator[bool]:
        """Holds the lease to make `path` while entered; yields False where another process or thread holds it."""
        lease = self.acquire(path.with_name(f"{path.name}.claim"))
        if lease is None:
            yield False
            return
        try:
            yield True
        finally:
            self.release(lease)

    def is_free(self, path: Path) -> bool:
        """True where the lease to make `path` does not exist or has expired, so that `take` may succeed."""
        lease_path = path.with_name(f"{path.name}.claim")
        return not lease_path.exists() or self.is_expired(lease_path)

    def acquire(self, lease_path: Path, content: Mapping[str, Any] | None = None) -> Lease | None:
        """Creates a lease with this content, or takes over an expired one; None where another process holds it."""
        token = uuid.uuid4().hex
        text = json.dumps(holder(content) | {"token": token})
        former: dict[str, Any] | None = None
        if not _create(lease_path, text):
            former = self._take_over(lease_path, text)
            if former is None:
                return None
        self._held[lease_path] = token
        return Lease(lease_path, token, former)

    def acquire_or_wait(self, lease_path: Path, content: Mapping[str, Any] | None = None) -> Lease | None:
        """As `acquire`; a lease that looks expired is observed until that is certain, some 15 s."""
        end = time.monotonic() + _OBSERVED_S + HEARTBEAT_S
        while (lease := self.acquire(lease_path, content)) is None and is_old(lease_path) and time.monotonic() < end:
            time.sleep(0.1)
        return lease

    def is_ours(self, lease: Lease) -> bool:
        """False where another process took the lease over while this one was suspended."""
        return read_lease(lease.path).get("token") == lease.token

    def release(self, lease: Lease) -> None:
        """Releases the lease."""
        if self._held.pop(lease.path, None) is not None and self.is_ours(lease):
            remove(lease.path)

    def complete(self, lease: Lease, content: Mapping[str, Any]) -> bool:
        """Replaces the lease by `content` for good: no process can acquire it again. False: it was taken over."""
        self._held.pop(lease.path, None)
        if not self.is_ours(lease):
            return False
        part = part_of(lease.path)
        try:
            part.write_text(json.dumps({**content, "settled": True}), encoding="utf-8")
            replace(part, lease.path)
        finally:
            part.unlink(missing_ok=True)
        return True

    def remove_expired(self, folder: Path) -> None:
        """Removes expired leases `*.claim` in `folder`."""
        for lease_path in folder.glob("[!.]*.claim"):
            if self.is_expired(lease_path) and (lease := self.acquire(lease_path)) is not None:
                self.release(lease)

    def is_expired(self, lease_path: Path) -> bool:
        """True where the holder of a lease is gone; False for a completed or released lease."""
        try:
            touched_ns = lease_path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        content = read_lease(lease_path)
        if content.get("settled"):
            return False
        if content.get("host") == this_host() and not is_running(content.get("process"), content.get("started")):
            return True
        now = time.monotonic()
        if self._seen.get(lease_path, (None, 0.0))[0] != touched_ns:
            self._seen[lease_path] = (touched_ns, now)
        observed_s = now - self._seen[lease_path][1]
        if observed_s > EXPIRES_AFTER_S:
            return True
        return observed_s > _OBSERVED_S and is_old(lease_path)

    def _take_over(self, lease_path: Path, text: str) -> dict[str, Any] | None:
        """Replaces an expired lease by a new one and returns the content of the expired one.

        Takeovers run one at a time, or two processes would remove each other's lease: under the system's lock. Where a
        network folder has no locks, the rename is undone if the file that it moved was not the expired lease.
        """
        if not self.is_expired(lease_path):
            return None
        with locked(lease_path.with_name(".claims.lock")):
            former = read_lease(lease_path)
            if not self.is_expired(lease_path):
                return None
            aside = part_of(lease_path)
            try:
                lease_path.rename(aside)
            except FileNotFoundError:
                return None
            except PermissionError:
                if sys.platform == "win32":  # another process reads it: it is taken over later
                    return None
                raise
            try:
                if read_lease(aside).get("token") != former.get("token"):
                    with contextlib.suppress(OSError):
                        os.link(aside, lease_path)
                    return None
                return former if _create(lease_path, text) else None
            finally:
                aside.unlink(missing_ok=True)

    def _send_heartbeats(self) -> None:
        while not self._end.wait(HEARTBEAT_S):
            for lease_path in list(self._held):
                with contextlib.suppress(OSError):  # taken over or released meanwhile
                    os.utime(lease_path)


def holder(content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Content of a lease: this process (host, number, start), the time, and further `content`."""
    process = os.getpid()
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": this_host(), "process": process, "started": start_of(process), "since": since, **(content or {})}


def read_lease(lease_path: Path) -> dict[str, Any]:
    """Content of a lease; empty where it was released or is not fully written."""
    try:
        return read_json_object(lease_path)
    except (OSError, ValueError):
        return {}


def is_old(lease_path: Path) -> bool:
    """True where the last heartbeat is too old by the folder's clock. Not certain: clocks may differ."""
    try:
        touched = lease_path.stat().st_mtime
        return folder_time(lease_path.parent) - touched > EXPIRES_AFTER_S
    except OSError:
        return False


def folder_time(folder: Path) -> float:
    """Time of the clock that stamps the files of `folder`: on a network folder, the server's."""
    probe = part_of(folder / "time")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _create(lease_path: Path, text: str) -> bool:
    try:
        handle = os.open(lease_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(text)
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the system's lock on a file, which ends with its process; does nothing on a disk without locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("a"))
            acquire(file.fileno(), wait=True)
        yield
