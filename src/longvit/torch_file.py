"""Files of `torch.save`, loaded as tensors only: no pickled code runs, and the unpacked size is limited.

`weights_only` keeps foreign code out. It still accepts an archive of 3 MB whose pickle has 3 GB, a bytearray of any
length, and tensors of 64 GB over four bytes. Here each of these is a one-line `InputError`.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from longvit.errors import InputError
from longvit.files import require_regular_file

if TYPE_CHECKING:
    from torch import Tensor

_ARCHIVE = b"PK\x03\x04"
_PICKLE_BYTES, _MAX_STEPS, _OLD_PICKLES = 8 * 2**20, 2_000_000, 5
_SPARE_BYTES, _MAX_ENTRIES = 2**20, 200_000
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_SPARSE_FROM_BYTES, _SPARSE_RATIO = 2**30, 100
_BOMB_BYTES, _BOMB_RATIO = 64 * 2**20, 4


class TooMuchError(ValueError):
    """An archive or a pickle that exceeds a limit."""


def refuse_hollow(path: Path) -> None:
    """Raises `InputError` for anything but a regular file, and for an aborted copy in a file preallocated to full
    length."""
    require_regular_file(path)
    with suppress(OSError):
        stat = path.stat()
        on_disk = getattr(stat, "st_blocks", stat.st_size) * 512
        if stat.st_size > _SPARSE_FROM_BYTES and on_disk * _SPARSE_RATIO < stat.st_size:
            raise InputError(f"{path}: of its {stat.st_size:,} bytes {on_disk:,} were written; copy it again")


def refuse_bomb(path: Path) -> None:
    """Raises `InputError` for a zip archive (TorchScript, torch.export) that unpacks to far more than its size."""
    with zipfile.ZipFile(path) as archive:
        total, file_bytes = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if total > _BOMB_BYTES and total > _BOMB_RATIO * file_bytes:
        raise InputError(f"{path}: unpacks to {total:,} bytes from {file_bytes:,}; not opened")


def load_tensors(path: Path, classes: Sequence[type] = ()) -> Any:
    """Content of a file of `torch.save`, on the CPU. `classes`: classes that its pickle may name beside torch's own.

    Raises `TooMuchError` where it exceeds a limit, else the error of `torch.load`.
    """
    import torch

    with path.open("rb") as file:
        if file.read(len(_ARCHIVE)) == _ARCHIVE:  # torch distinguishes the two layouts the same way
            _check_archive(path)
        else:
            file.seek(0)
            _check_pickles(file)
    with torch.serialization.safe_globals(list(classes)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old kinds of tensors, which are refused by name
        return torch.load(path, map_location="cpu", weights_only=True, mmap=False)


def refusal(error: Exception) -> str:
    """Code that a pickle wants to run, if that is why it was not loaded; else an empty text."""
    match = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
    return match[1][:120] if match else ""


def require_plain(tensor: Tensor, name: str, path: str | Path) -> None:
    """Raises `InputError` for a tensor that is not plain numbers in memory.

    Refused are sparse, quantised and nested tensors, tensors on no device, a dtype without arithmetic, and tensors
    larger than their storage.
    """
    kind = None
    if tensor.is_nested:
        kind = "nested"
    elif tensor.is_quantized:
        kind = "quantised"
    elif str(tensor.layout) != "torch.strided":
        kind = "sparse"
    elif tensor.device.type != "cpu":
        kind = f"on the device {tensor.device.type}, without values"
    elif tensor.dtype.is_floating_point and str(tensor.dtype).removeprefix("torch.") not in _FLOATS:
        kind = f"of type {str(tensor.dtype).removeprefix('torch.')}"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = f"of shape {tuple(tensor.shape)} over {tensor.untyped_storage().nbytes():,} bytes"
    elif tensor.untyped_storage().nbytes() > Path(path).stat().st_size + _SPARE_BYTES:
        kind = "larger than the file"
    if kind is not None:
        raise InputError(f"{path}: {name} is {kind}; save it as a plain tensor of float32")


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        file_bytes = path.stat().st_size
        if len(entries) > _MAX_ENTRIES:
            raise TooMuchError(f"{len(entries):,} entries")
        total = sum(entry.file_size for entry in entries)
        if total > file_bytes + _SPARE_BYTES:  # torch stores without compression
            raise TooMuchError(f"it unpacks to {total:,} bytes from {file_bytes:,}")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _PICKLE_BYTES:
                    raise TooMuchError(f"its list of tensors has {entry.file_size:,} bytes")
                with archive.open(entry) as pickle:
                    _check_pickle(pickle)


def _check_pickles(file: Any) -> None:
    """Checks the pickles at the head of a file of the older layout. `torch.load` reports a truncated one."""
    for _ in range(_OLD_PICKLES):
        try:
            _check_pickle(file)
        except TooMuchError:
            raise
        except Exception:
            return


def _check_pickle(file: Any) -> None:
    """Reads one pickle without running it and checks its limits."""
    bounded: Any = _Bounded(file, _PICKLE_BYTES)
    for n_opcodes, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
        if n_opcodes > _MAX_STEPS:
            raise TooMuchError(f"its pickle has more than {_MAX_STEPS:,} steps")
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and "bytearray" in str(argument):
            raise TooMuchError("its pickle makes a bytearray")


class _Bounded:
    """A file that returns at most a given number of bytes."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._left = file, most

    def read(self, n: int) -> bytes:
        if n > self._left:
            raise TooMuchError(f"its pickle has more than {_PICKLE_BYTES:,} bytes")
        self._left -= n
        return self._file.read(n)

    def readline(self) -> bytes:
        line = self._file.readline(4096)
        self._left -= len(line)
        return line
