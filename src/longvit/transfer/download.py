"""Download of one file: resumed where it broke off, checked by size and hash, whole or absent.

    FOLDER/.NAME.<version>.part   what has arrived; the version of the object is in its name
    FOLDER/NAME                   the whole file, after its check

A part is resumed by a range, on condition that the object has not changed (If-Match).
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from longvit.files import write_error
from longvit.locks import acquire
from longvit.transfer.client import Client, TransferError
from longvit.transfer.remote_file import RemoteFile

if TYPE_CHECKING:
    import requests

_NO_SUCH_RANGE = 416
_MOST_DAMAGED = 2
"""Downloads of a whole file with a wrong hash after which it is given up."""
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def download(client: Client, file: RemoteFile, folder: Path) -> Path:
    """Downloads a file into `folder`, or resumes that; a file that is there already is checked again.

    Raises `TransferError`; `Stopped`; `InputError` on a full disk, without what has arrived of this file.
    """
    path = folder / file.name
    if path.exists():
        if _is_whole(path, file):
            return path
        path.unlink()
    part_path = part_of(folder, file)
    try:
        with part_path.open("a+b") as stream:
            acquire(stream.fileno(), wait=False)
            part = _Part(file, stream, part_path)
            client.again(lambda: part.fetch(client), lambda: part.most_bytes)
            if not file.md5:  # else its hash is checked again before it is used
                os.fsync(stream.fileno())
        part_path.rename(path)
        return path
    except BlockingIOError:
        raise TransferError(f"{path}: another process downloads it", is_temporary=True) from None
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise TransferError(f"{path}: not written ({error.strerror or error})", is_temporary=True) from error
        part_path.unlink(missing_ok=True)
        raise write_error(path, error) from error


def part_of(folder: Path, file: RemoteFile) -> Path:
    """Path of what has arrived of a file in this version."""
    version = hashlib.sha256(f"{file.etag} {file.md5} {file.n_bytes}".encode()).hexdigest()[:12]
    return folder / f".{file.name}.{version}.part"


class _Part:
    """Part of a file that has arrived, with its hash."""

    def __init__(self, file: RemoteFile, stream: BinaryIO, path: Path) -> None:
        self.file, self.stream, self.path = file, stream, path
        self.n_bytes = self.most_bytes = 0
        self._damaged = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        if os.fstat(stream.fileno()).st_size > file.n_bytes:
            self.clear()
            return
        stream.seek(0)  # this handle, since it has the lock: on Windows another one could not read the locked byte
        while chunk := stream.read(2**20):
            self._md5.update(chunk)
            self.n_bytes += len(chunk)
        self.most_bytes = self.n_bytes

    def clear(self) -> None:
        """Starts again with nothing."""
        self.stream.truncate(0)
        self.n_bytes, self._md5 = 0, hashlib.md5(usedforsecurity=False)

    def fetch(self, client: Client) -> None:
        """Fetches what is missing and checks the whole. Raises `TransferError`."""
        if self.n_bytes < self.file.n_bytes:
            self._append(client)
        url, wanted = self.file.url, self.file.n_bytes
        if self.n_bytes != wanted:
            text = f"{url}: ended after {self.n_bytes} of {wanted} bytes"
            if self.n_bytes > wanted:
                self.clear()
                text = f"{url}: more than the {wanted} bytes that were listed"
            raise TransferError(text, is_temporary=True)
        if self.file.md5 and self._md5.hexdigest() != self.file.md5:
            text = f"{url}: damaged on the way (MD5 {self._md5.hexdigest()}, should be {self.file.md5})"
            self.clear()
            self._damaged += 1
            raise TransferError(text, is_temporary=self._damaged < _MOST_DAMAGED)

    def _append(self, client: Client) -> None:
        headers = {}
        if self.n_bytes:
            headers["Range"] = f"bytes={self.n_bytes}-"
        if self.file.etag:
            headers["If-Match"] = self.file.etag
        try:
            self._receive(client, headers)
        except TransferError as error:
            if error.status != _NO_SUCH_RANGE:
                raise
            self.clear()
            raise TransferError(str(error), is_temporary=True) from error

    def _receive(self, client: Client, headers: dict[str, str]) -> None:
        with client.get(self.file.url, headers=headers) as response:
            if self.n_bytes and not _continues(response, self.n_bytes):
                self.clear()  # the server sends the whole file again
            for chunk in client.chunks(response):
                if self.n_bytes + len(chunk) > self.file.n_bytes:
                    self.n_bytes += len(chunk)  # never on the disk: the listed size was reserved
                    return
                self.stream.write(chunk)
                self.stream.flush()
                self._md5.update(chunk)
                self.n_bytes += len(chunk)
                self.most_bytes = max(self.most_bytes, self.n_bytes)


def _continues(response: requests.Response, start: int) -> bool:
    """True where a response begins at byte `start`."""
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _is_whole(path: Path, file: RemoteFile) -> bool:
    if path.stat().st_size != file.n_bytes:
        return False
    if not file.md5:
        return True  # it was synced before it got its name
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == file.md5
