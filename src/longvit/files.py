"""Writing that leaves either the old file or the whole new one: temporary name, fsync, rename.

A process that is killed while it writes leaves its temporary file. The next process that writes into that folder
removes it: a temporary name says which process of which machine it belongs to.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from longvit.errors import InputError

_REASONS = {
    errno.ENOSPC: "no space left on the disk; free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some or choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENOENT: "its folder was removed meanwhile",
}
_PART = re.compile(r"\..+\.([0-9a-f]{6})-(\d+)-(\d+)-[0-9a-f]{6}\.part(\.[^.]*)?", re.DOTALL)
"""A temporary name: the host, the process, its start, and a number of its own."""
_STRANGERS_REST_S = 3600.0
"""A temporary file of another machine that nobody has written to for so long belongs to nobody."""
_MAX_STEM_BYTES = 200
"""A file system takes 255 bytes; suffixes and temporary names need the rest."""
_looked_into: set[Path] = set()


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


def is_folder(path: str | Path) -> bool:
    """Whether it is a folder; False for what cannot be looked at, where `Path.is_dir` may raise."""
    return os.path.isdir(path)  # noqa: PTH112


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed over it, on any error removed.

    For writers that want a file name (HDF5, TIFF, safetensors). The old file stays intact until the rename.
    The temporary name keeps the suffix, since some writers look at it; it is no other host's, process's or thread's.
    """
    path = Path(path)
    temporary = part_of(path)
    try:
        make_folder(path.parent)
        _remove_dead_parts_once(path.parent)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        is_another_file = isinstance(error, FileNotFoundError) and str(error.filename) not in ("None", str(temporary))
        if error.errno is None or is_another_file:
            raise
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Writes `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, atomically.

    Bytes of a file name that are no UTF-8, which Python holds as surrogates, are written as `\\udcff`: JSON reads them
    back as they were, in a table they can be read by eye.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_csv(path: str | Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Writes a CSV with a header line to `path`, atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def file_stem(name: str) -> str:
    """What files of a slide (a patient, a class) are called: its name, where a file system takes that; otherwise its
    beginning and a digest of the whole."""
    try:
        size = len(os.fsencode(name))
        if size <= _MAX_STEM_BYTES and name not in ("", ".", "..") and not {"/", "\0", os.sep} & set(name):
            return name
    except UnicodeEncodeError:  # the locale has no such letter
        pass
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{plain[:100].lstrip('.')}~{digest}"


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


def printable(text: str) -> str:
    """A name for those who take no others (HDF5's attributes, fonts): what no letter stands for as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def part_of(path: Path) -> Path:
    """A temporary name beside `path` that says whose it is."""
    return path.with_name(f".{path.name}.{_mark(os.getpid())}-{uuid.uuid4().hex[:6]}.part{path.suffix}")


def remove_parts(folder: Path, process: int) -> None:
    """Removes the half files that a process of this host left in `folder` when it was killed."""
    for part, host, number, _ in _parts(folder):
        if (host, number) == (_host_mark(), process):
            part.unlink(missing_ok=True)


def remove_dead_parts(folder: Path) -> None:
    """Removes the half files in `folder` whose process was killed: of this host where it is gone, of another host
    where nobody has written to them for an hour."""
    for part, host, process, start in _parts(folder):
        with contextlib.suppress(OSError):
            if host == _host_mark():
                is_dead = not is_running(process, start or None)
            else:
                is_dead = time.time() - part.stat().st_mtime > _STRANGERS_REST_S
            if is_dead:
                part.unlink(missing_ok=True)


def remove_dead_parts_below(folders: Iterable[Path]) -> None:
    """The same for these folders and the ones in them."""
    for folder in dict.fromkeys(folders):
        remove_dead_parts(folder)
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_dead_parts(Path(entry.path))


def _remove_dead_parts_once(folder: Path) -> None:
    if folder not in _looked_into:
        _looked_into.add(folder)
        remove_dead_parts(folder)


def _parts(folder: Path) -> Iterator[tuple[Path, str, int, int]]:
    """Temporary files with the host, the process and the start of the process that they name."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and (found := _PART.fullmatch(entry.name)):
                yield Path(entry.path), found.group(1), int(found.group(2)), int(found.group(3))


def is_running(process: Any, started: Any = None) -> bool:
    """Whether a process of this host is there, and is the one that was started then (`start_of`)."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, ValueError, OverflowError):  # another user's; or not a number
        return True
    start = start_of(int(process))
    return started is None or start is None or start == started


def start_of(process: int) -> int | None:
    """When a process was started, in the kernel's ticks since boot; None where the system does not say."""
    try:
        # The name in brackets may hold spaces and brackets: count from the last one.
        return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


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
    return f"{_host_mark()}-{process}-{start_of(process) or 0}"


def _host_mark() -> str:
    return hashlib.sha256(this_host().encode()).hexdigest()[:6]


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
