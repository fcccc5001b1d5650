"""Atomic writing: a file is either the old one or the whole new one (temporary name, fsync, rename).

A process that is killed while writing leaves its temporary file. The next process that writes into the folder removes
it. A temporary name contains its host and process.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from longvit.errors import InputError
from longvit.process_identity import is_running, start_of, this_host

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
"""Temporary name: host, process, start of the process, random number."""
_FOREIGN_PART_AGE_S = 3600.0
"""Age from which an unmodified temporary file of another machine counts as abandoned."""
_MAX_STEM_BYTES = 200
"""Longest stem. File systems allow 255 bytes per name; suffixes and temporary names use the remainder."""
_REFUSED_BY_WINDOWS = re.compile(r'[\x00-\x1f<>:"|?*\\]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""Names that Windows refuses or changes: characters, a last dot or blank, names of devices."""
_OPEN_ELSEWHERE = (5, 32)
"""Errors of Windows for a file that another process has open: access denied, sharing violation."""
_OPEN_ELSEWHERE_S = 5.0
_cleaned_folders: set[Path] = set()


def write_error(path: Path, error: OSError) -> InputError:
    """An `InputError` for a failed write: one line with the file, the reason and the way out."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    if getattr(error, "winerror", None) in _OPEN_ELSEWHERE:
        reason = "another program has the file open; close it there"
    return InputError(f"{path}: not written: {reason}")


_SPECIAL_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_regular_file(path: str | Path) -> None:
    """Raises `InputError` for a folder, a FIFO, a socket or a device, also through a link.

    Call it before opening any path that a user gave: opening a FIFO blocks forever, and a device has side effects. A
    missing path passes, since the open that follows reports it.
    """
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except OSError:
        return
    except ValueError as error:  # a NUL in it
        raise InputError(f"{str(path)!r}: no path of a file ({error})") from error
    if kind != stat.S_IFREG:
        raise InputError(f"{path}: {_SPECIAL_KINDS.get(kind, 'a special file')}, not a file")


def is_folder(path: str | Path) -> bool:
    """True for a folder. False where the path cannot be inspected; `Path.is_dir` may raise there."""
    return os.path.isdir(path)  # noqa: PTH112


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`. On success it is synced and renamed to `path`; on any error it is removed.

    For writers that need a file name (HDF5, TIFF, safetensors). The old file stays intact until the rename. The
    temporary name keeps the suffix, because some writers depend on it. It is unique over hosts, processes and threads.
    """
    path = Path(path)
    temporary = part_of(path)
    try:
        make_folder(path.parent)
        _remove_dead_parts_once(path.parent)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        is_another_file = isinstance(error, FileNotFoundError) and str(error.filename) not in ("None", str(temporary))
        if error.errno is None or is_another_file:
            raise
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace(source: Path, target: Path) -> None:
    """Renames a file over another one at once. Windows refuses while a process has either open, so it tries for 5 s."""
    _once_closed(lambda: source.replace(target))


def remove(path: Path) -> None:
    """Removes a file if it exists; on Windows it tries for 5 s while another process has it open."""
    _once_closed(lambda: path.unlink(missing_ok=True))


def _once_closed(change: Callable[[], object]) -> None:
    end = time.monotonic() + _OPEN_ELSEWHERE_S
    while True:
        try:
            change()
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > end:
                raise
            time.sleep(0.02)


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Writes `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, atomically.

    File names may contain bytes that are not UTF-8, which Python holds as surrogates. They are written as `\\udcff`:
    JSON restores them, and in a table they stay readable.
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
    """File stem for a slide, a patient or a class. It is the name itself if a file system accepts it, else a readable
    prefix and a digest of the name."""
    try:
        size = len(os.fsencode(name))
        is_plain = name not in ("", ".", "..") and not {"/", "\0", os.sep} & set(name)
        is_refused = sys.platform == "win32" and _REFUSED_BY_WINDOWS.search(name)
        if size <= _MAX_STEM_BYTES and is_plain and not is_refused:
            return name
    except UnicodeEncodeError:  # the locale has no such letter
        pass
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{plain[:100].lstrip('.')}~{digest}"


def make_folder(path: str | Path) -> Path:
    """Makes a folder and its parents. Raises `InputError` with the reason if that fails or the folder is not
    writable."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: not written: no permission to write there; choose another folder")
    return path


def printable(text: str) -> str:
    """The text with every unprintable character as an escape, for HDF5 attributes and fonts."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def part_of(path: Path) -> Path:
    """Temporary path beside `path`; its name contains host and process."""
    return path.with_name(f".{path.name}.{_mark(os.getpid())}-{uuid.uuid4().hex[:6]}.part{path.suffix}")


def remove_parts(folder: Path, process: int) -> None:
    """Removes the temporary files that a killed process of this host left in `folder`."""
    for part, host, number, _ in _parts(folder):
        if (host, number) == (_host_mark(), process):
            part.unlink(missing_ok=True)


def remove_dead_parts(folder: Path) -> None:
    """Removes the temporary files in `folder` whose process no longer runs.

    For another host, a file that was not modified for an hour is removed.
    """
    for part, host, process, start in _parts(folder):
        with contextlib.suppress(OSError):
            if host == _host_mark():
                is_dead = not is_running(process, start or None)
            else:
                is_dead = time.time() - part.stat().st_mtime > _FOREIGN_PART_AGE_S
            if is_dead:
                part.unlink(missing_ok=True)


def remove_dead_parts_below(folders: Iterable[Path]) -> None:
    """Removes dead temporary files in these folders and their direct subfolders."""
    for folder in dict.fromkeys(folders):
        remove_dead_parts(folder)
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_dead_parts(Path(entry.path))


def _remove_dead_parts_once(folder: Path) -> None:
    if folder not in _cleaned_folders:
        _cleaned_folders.add(folder)
        remove_dead_parts(folder)


def _parts(folder: Path) -> Iterator[tuple[Path, str, int, int]]:
    """Temporary files with the host, process and process start in their names."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and (match := _PART.fullmatch(entry.name)):
                yield Path(entry.path), match.group(1), int(match.group(2)), int(match.group(3))


def _mark(process: int) -> str:
    """Identifies a process over all hosts that share a folder."""
    return f"{_host_mark()}-{process}-{start_of(process) or 0}"


def _host_mark() -> str:
    return hashlib.sha256(this_host().encode()).hexdigest()[:6]


def _sync_folder(path: Path) -> None:
    if sys.platform == "win32":  # opens no folder; NTFS has a journal of names
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
