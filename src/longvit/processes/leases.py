"""Claim files: which process works on a thing, where several share a folder (processes, machines on one disk).

A claim is created by one process and no other (O_EXCL, which network folders keep too). It names host, process, the
process's start and a token, and its holder touches it every few seconds. It is taken over where its holder is dead: a
process of this host that is gone (or whose number another one has now), or a claim that nobody touches any more.
That is judged by the folder's own clock, the time of a file that is written there now, and by ours: clocks of two
machines need not agree, so a claim that we have not yet seen at rest for a while is never dead.

Claims save work, nothing more: files are written atomically anyway, so two holders would only do the same twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from longvit.files import is_running, part_of, start_of, this_host
from longvit.json_file import read_json_object

BEAT_S = 5.0
"""A holder touches its claims this often."""
DEAD_AFTER_S = 60.0
"""A claim that was not touched for so long has no holder."""
_SEEN_AT_REST_S = 3 * BEAT_S
"""However old a claim looks: so long we look ourselves, in case the folder's clock is not one clock."""


@dataclass(frozen=True)
class Lease:
    """A claim that this process holds."""

    path: Path
    token: str
    former: Mapping[str, Any] | None
    """What the claim of the dead process said that was in its place."""


class Leases:
    """The claims of one process; a context manager that keeps them fresh and lets go of what is still held at the end.

    Any of its threads may take one.
    """

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}
        self._seen: dict[Path, tuple[object, float]] = {}  # path -> (its mtime, when we saw that first)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

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
        """Claims the making of `path` while it is entered; False: another process, or thread, is making it."""
        lease = self.acquire(path.with_name(f"{path.name}.claim"))
        if lease is None:
            yield False
            return
        try:
            yield True
        finally:
            self.release(lease)

    def is_free(self, path: Path) -> bool:
        """Whether `take` is worth another try: no claim there, or one whose holder is dead."""
        lease_path = path.with_name(f"{path.name}.claim")
        return not lease_path.exists() or self.is_dead(lease_path)

    def acquire(self, lease_path: Path, facts: Mapping[str, Any] | None = None) -> Lease | None:
        """Creates `claim`, which says `facts`, or takes it over from a dead holder; None where another one holds it."""
        token = uuid.uuid4().hex
        content = json.dumps(holder(facts) | {"token": token})
        former: dict[str, Any] | None = None
        if not _create(lease_path, content):
            former = self._take_over(lease_path, content)
            if former is None:
                return None
        self._held[lease_path] = token
        return Lease(lease_path, token, former)

    def acquire_or_wait(self, lease_path: Path, facts: Mapping[str, Any] | None = None) -> Lease | None:
        """`hold`; where the claim looks dead it is looked at until that is sure, some 15 s."""
        end = time.monotonic() + _SEEN_AT_REST_S + BEAT_S
        while (lease := self.acquire(lease_path, facts)) is None and is_old(lease_path) and time.monotonic() < end:
            time.sleep(0.1)
        return lease

    def is_ours(self, lease: Lease) -> bool:
        """Whether the claim was not taken over while this process slept."""
        return read_lease(lease.path).get("token") == lease.token

    def release(self, lease: Lease) -> None:
        """Gives the claim back."""
        if self._held.pop(lease.path, None) is not None and self.is_ours(lease):
            lease.path.unlink(missing_ok=True)

    def complete(self, lease: Lease, facts: Mapping[str, Any]) -> bool:
        """Leaves `facts` in the place of the claim for good: nobody will claim it again. False: it was taken over."""
        self._held.pop(lease.path, None)
        if not self.is_ours(lease):
            return False
        part = part_of(lease.path)
        try:
            part.write_text(json.dumps({**facts, "settled": True}), encoding="utf-8")
            part.replace(lease.path)
        finally:
            part.unlink(missing_ok=True)
        return True

    def remove_dead(self, folder: Path) -> None:
        """Removes the claims `*.claim` in `folder` whose holder is dead."""
        for lease_path in folder.glob("[!.]*.claim"):
            if self.is_dead(lease_path) and (lease := self.acquire(lease_path)) is not None:
                self.release(lease)

    def is_dead(self, lease_path: Path) -> bool:
        """Whether a claim has no holder any more: one that was settled or is gone needs none."""
        try:
            touched = lease_path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        content = read_lease(lease_path)
        if content.get("settled"):
            return False
        if content.get("host") == this_host() and not is_running(content.get("process"), content.get("started")):
            return True
        now = time.monotonic()
        if self._seen.get(lease_path, (None, 0.0))[0] != touched:
            self._seen[lease_path] = (touched, now)
        at_rest_s = now - self._seen[lease_path][1]
        if at_rest_s > DEAD_AFTER_S:
            return True
        return at_rest_s > _SEEN_AT_REST_S and is_old(lease_path)

    def _take_over(self, lease_path: Path, content: str) -> dict[str, Any] | None:
        """Puts our claim in the place of one whose holder is dead and returns what that one said.

        One at a time, or two would remove each other's: by the system's lock, and where a network folder has none, by
        a rename that we take back if what we moved away was not the dead one.
        """
        if not self.is_dead(lease_path):
            return None
        with _locked(lease_path.with_name(".claims.lock")):
            former = read_lease(lease_path)
            if not self.is_dead(lease_path):
                return None
            aside = part_of(lease_path)
            try:
                lease_path.rename(aside)
            except FileNotFoundError:
                return None
            try:
                if read_lease(aside).get("token") != former.get("token"):
                    with contextlib.suppress(OSError):
                        os.link(aside, lease_path)
                    return None
                return former if _create(lease_path, content) else None
            finally:
                aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            for lease_path in list(self._held):
                with contextlib.suppress(OSError):  # taken over, or released this instant
                    os.utime(lease_path)


def holder(facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a claim says of this process."""
    process = os.getpid()
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": this_host(), "process": process, "started": start_of(process), "since": since, **(facts or {})}


def read_lease(lease_path: Path) -> dict[str, Any]:
    """What a claim says; nothing where it is gone or was only begun."""
    try:
        return read_json_object(lease_path)
    except (OSError, ValueError):
        return {}


def is_old(lease_path: Path) -> bool:
    """Whether the folder's clock says that nobody has touched a claim for long. One look: clocks may differ."""
    try:
        touched = lease_path.stat().st_mtime
        return folder_time(lease_path.parent) - touched > DEAD_AFTER_S
    except OSError:
        return False


def folder_time(folder: Path) -> float:
    """Now, by the clock that stamps the files of `folder`: on a network folder the server's."""
    probe = part_of(folder / "time")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _create(lease_path: Path, content: str) -> bool:
    try:
        handle = os.open(lease_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(content)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The system's own lock, which goes with its process; a disk without locks has none."""
    import fcntl

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
