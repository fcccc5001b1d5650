"""Locks among processes: they end with their process. `flock` on Linux and macOS, a locked byte on Windows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_LOCKED_BYTE = 2**30
"""Position of the byte that is locked on Windows, where no other process can read it."""
_POLL_S = 0.05


def acquire(descriptor: int, *, wait: bool, shared: bool = False) -> None:
    """Locks an open file until it is closed. `shared`: only an exclusive lock of another process is in the way.

    Raises `BlockingIOError` where another process has the lock (without `wait`), and another `OSError` on a disk
    without locks. On Windows every lock is exclusive.
    """
    if sys.platform == "win32":
        _acquire_byte(descriptor, wait=wait)
        return
    import fcntl

    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock of a folder while entered; none on a disk without locks. Windows locks the file `.lock` in the folder."""
    with ExitStack() as stack:
        with suppress(OSError):
            if sys.platform == "win32":  # opens no folder
                descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
            else:
                descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            acquire(descriptor, wait=True)
        yield


def _acquire_byte(descriptor: int, *, wait: bool) -> None:
    import msvcrt

    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        while True:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows only
                return
            except PermissionError as error:
                if not wait:
                    raise BlockingIOError(error.errno, "another process has the lock") from error
            time.sleep(_POLL_S)
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)
