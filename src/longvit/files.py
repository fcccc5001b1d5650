"""Writing that leaves either the old file or the whole new one: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from longvit.errors import InputError

_REASONS = {
    errno.ENOSPC: "no space left on the disk; free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some or choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


def write_error(path: Path, error: OSError) -> InputError:
    """One line for a failed write: the file, the reason, the way out."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"{path}: not written: {reason}")


_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_regular_file(path: str | Path) -> None:
    """`InputError` for what cannot be a file's content: a folder, a FIFO, a socket, a device, also behind a link.

    Opening a FIFO waits for ever, a device may do anything, so this comes before every opening of a path that a user
    gave. A path that is not there passes: the opening that follows says so.
    """
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except OSError:
        return
    except ValueError as error:  # a NUL in it
        raise InputError(f"{str(path)!r}: no path of a file ({error})") from error
    if kind != stat.S_IFREG:
        raise InputError(f"{path}: {_SPECIAL.get(kind, 'a special file')}, not a file")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed over it, on any error removed.

    For writers that want a file name (HDF5, TIFF, safetensors). The old file stays intact until the rename.
    The temporary name keeps the suffix, since some writers look at it; it is no other host's, process's or thread's.
    """
    path = Path(path)
    mark = f"{_mark(os.getpid())}-{uuid.uuid4().hex[:6]}"
    temporary = path.with_name(f".{path.name}.{mark}.part{path.suffix}")
    try:
        make_folder(path.parent)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno is None:
            raise
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Writes `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def make_folder(path: str | Path) -> Path:
    """Makes a folder and its parents; an `InputError` says why it cannot be made or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: not written: no permission to write there; choose another folder")
    return path


def remove_parts(folder: Path, process: int) -> None:
    """Removes the half files that a process of this host left in `folder` when it was killed."""
    for part in folder.glob(f".*.{_mark(process)}-*.part*"):
        part.unlink(missing_ok=True)


@cache
def this_host() -> str:
    """This machine since it was started: its name, and what tells it from others of that name. A container counts its
    processes anew, so it is a host of its own."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # no Linux
        pass
    return " ".join(parts)


def _mark(process: int) -> str:
    """Names a process among those of all hosts that share a folder."""
    return f"{hashlib.sha256(this_host().encode()).hexdigest()[:6]}-{process}"


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
