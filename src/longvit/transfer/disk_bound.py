"""Bound of the disk that downloads take, shared by all processes that download into one folder.

FOLDER/ID/ holds the files of a slide. A lease beside it names the process that has the slide, and the bytes that it may
fill.

A slide's bytes are reserved before its download starts. A folder without a lease is left from a process that ended. It
counts with the bytes in it. The next process that takes its slide resumes it; where space is needed, it is removed.
Without file locks (some network folders) two processes may reserve at once, and the bound can be passed by one slide.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

from longvit.files import file_stem, make_folder
from longvit.processes.leases import Lease, Leases, locked, read_lease
from longvit.transfer.client import Stopped, TransferError

_POLL_S = 0.2
_BLOCK_BYTES = 4096
_LOCK = ".space.lock"


class DiskBound:
    """Folder of downloads whose bytes stay below a bound. Thread-safe; a context manager that ends its leases."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = make_folder(folder), most_bytes
        self._leases, self._held = Leases(), dict[str, Lease]()

    def __enter__(self) -> DiskBound:
        self._leases.__enter__()
        self._leases.remove_expired(self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._leases.__exit__(*error)

    def place(self, slide_id: str) -> Path:
        """Folder of a slide's files."""
        return self.folder / file_stem(slide_id)

    def reserve(self, slide_id: str, sizes: list[int], stopping: threading.Event) -> Path:
        """Waits until the bytes of a slide fit and no other process has it, reserves them, and makes its folder.

        Raises `TransferError` for a slide above the bound, and `Stopped`.
        """
        n_bytes = sum(_on_disk(size) for size in sizes)
        if n_bytes > self.most_bytes:
            size_gb, most_gb = n_bytes / 2**30, self.most_bytes / 2**30
            raise TransferError(f"{slide_id}: {size_gb:.3g} GiB, more than --disk-gb {most_gb:.3g}; allow more")
        while not stopping.is_set():
            with locked(self.folder / _LOCK):
                if self._makes_room(file_stem(slide_id), n_bytes):
                    lease = self._leases.acquire(self._claim(slide_id), {"bytes": n_bytes})
                    if lease is not None:
                        self._held[slide_id] = lease
                        return make_folder(self.place(slide_id))
            stopping.wait(_POLL_S)
        raise Stopped

    def release(self, slide_id: str, *, keep_files: bool = False) -> None:
        """Removes a slide's files and gives its bytes back; `keep_files`: they stay, to be resumed."""
        lease = self._held.pop(slide_id, None)
        if lease is None:
            return
        with locked(self.folder / _LOCK):
            if not keep_files and self._leases.is_ours(lease):
                shutil.rmtree(self.place(slide_id), ignore_errors=True)
            self._leases.release(lease)

    def discard(self, slide_id: str) -> None:
        """Removes files of a slide that no process has."""
        if not self.place(slide_id).exists():
            return
        claim = self._claim(slide_id)
        with locked(self.folder / _LOCK):
            if not claim.exists() or self._leases.is_expired(claim):
                shutil.rmtree(self.place(slide_id), ignore_errors=True)

    def _claim(self, slide_id: str) -> Path:
        return self.folder / f"{file_stem(slide_id)}.claim"

    def _makes_room(self, stem: str, n_bytes: int) -> bool:
        """True if the bytes fit, where necessary after the removal of folders that no process has."""
        free, live = self.most_bytes - n_bytes, {stem}
        for path in self.folder.glob("*.claim"):
            name = path.name.removesuffix(".claim")
            if name != stem and not self._leases.is_expired(path):
                reserved = read_lease(path).get("bytes")
                free -= reserved if isinstance(reserved, int) else folder_bytes(self.folder / name)
                live.add(name)
        left_over = [path for path in self.folder.iterdir() if path.is_dir() and path.name not in live]
        free -= sum(map(folder_bytes, left_over))
        while free < 0 and left_over:
            folder = left_over.pop()
            free += folder_bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            free -= folder_bytes(folder)
        return free >= 0


def folder_bytes(folder: Path) -> int:
    """Bytes of the files directly in a folder, in whole blocks."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += _on_disk(path.stat().st_size)
    return total


def _on_disk(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
