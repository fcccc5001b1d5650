"""HDF5 files of others, read without trusting them: what lies in the file itself, of a size that the file can hold.

HDF5 follows links into other files, takes a dataset's bytes from any file of the machine, and makes gigabytes of a
dataset that says that it has them. Here each of these is one line, an `InputError` that names the file.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.errors import InputError, one_line
from longvit.files import require_regular_file

if TYPE_CHECKING:
    import h5py

_LOCKS = (errno.EAGAIN, errno.ENOLCK, 35, 524)  # 35: EAGAIN of macOS; 524: NFS without locks
_ALWAYS_BYTES, _TIMES = 64 * 2**20, 100  # what a dataset may unpack to; beyond it, so many times what it takes on disk
_MOST_LINKS, _MOST_ATTRIBUTES, _ATTRIBUTE_BYTES = 32, 1000, 2**20


@contextmanager
def open_h5(path: Path, way_out: str, what: str = "HDF5 file") -> Iterator[h5py.File]:
    """An HDF5 file to read. Whatever fails while it is open is an `InputError`: the file, the reason, `way_out`."""
    import h5py

    require_regular_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into this machine's memory ({one_line(error, 300)})") from error
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(f"{path}: {_reason(error, what, way_out)}") from error


def find_dataset(place: h5py.Group, name: str, path: Path) -> h5py.Dataset | None:
    """The dataset of that name in a file or a group of it, over links within the file; None: there is nothing.

    Raises `InputError` for a link into another file, links in a circle, and what is no dataset.
    """
    import h5py

    try:
        found = _follow(place.id, name.encode(), path, [_MOST_LINKS])
    except KeyError:
        return None
    if not isinstance(found, h5py.h5d.DatasetID):
        raise InputError(f"{path}: {name!r} is no dataset")
    return h5py.Dataset(found)


def groups_in(file: h5py.File, path: Path) -> dict[str, h5py.Group]:
    """Name -> group, of the groups at the top; `InputError` for a link into another file."""
    import h5py

    found = {name: _follow(file.id, name.encode(), path, [_MOST_LINKS]) for name in file}
    return {name: h5py.Group(of) for name, of in found.items() if isinstance(of, h5py.h5g.GroupID)}


def read_numbers(data: h5py.Dataset, path: Path) -> Any:
    """All values of a dataset of numbers, as an array of the file's own dtype.

    Raises `InputError` for values that lie outside the file, that were never written, of another kind, or that take
    far more memory than the file has bytes.
    """
    name = str(data.name or "").lstrip("/")
    if data.shape is None:
        raise InputError(f"{path}: {name!r} is empty (a null dataspace)")
    if data.dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} of shape {data.shape} and type {data.dtype}, not numbers")
    _check_place(data, name, path)
    return data[()]


def read_attributes(thing: h5py.Dataset | h5py.Group, path: Path) -> dict[str, Any]:
    """The attributes: scalars as Python's own, bytes as text. `InputError` for very many, and for very large ones."""
    if len(thing.attrs) > _MOST_ATTRIBUTES:
        raise InputError(f"{path}: {len(thing.attrs):,} attributes on {thing.name!r}")
    found = {}
    for key in thing.attrs:
        if thing.attrs.get_id(key).get_storage_size() > _ATTRIBUTE_BYTES:
            raise InputError(f"{path}: the attribute {key[:80]!r} has more than 1 MB")
        value = thing.attrs[key]
        value = value.item() if isinstance(value, np.generic) else value
        found[key] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found


def names_in(file: h5py.Group) -> str:
    """What lies in a file or a group, in words."""
    names = [one_line(name, 40) for name in itertools.islice(file, 11)]
    return ", ".join([*sorted(names[:10]), *(["…"] if len(names) > 10 else [])]) or "nothing"


def _follow(place: Any, name: bytes, path: Path, left: list[int]) -> Any:
    """The object under a name below a group; `KeyError` where there is none. `left`: links that may still be taken."""
    from h5py import h5g, h5i, h5l, h5o

    if name.startswith(b"/"):
        place = h5g.open(h5i.get_file_id(place), b"/")
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if not isinstance(place, h5g.GroupID):
            raise KeyError(part)
        left[0] -= 1
        if left[0] < 0:
            raise InputError(f"{path}: its links go round in a circle, or are too many")
        if not place.links.exists(part):
            raise KeyError(part)
        kind = place.links.get_info(part).type
        if kind == h5l.TYPE_HARD:
            place = h5o.open(place, part)
        elif kind == h5l.TYPE_SOFT:
            target = place.links.get_val(part)
            try:
                place = _follow(place, target, path, left)
            except KeyError:
                words = f"{part.decode(errors='replace')!r} is a link to {target.decode(errors='replace')!r}"
                raise InputError(f"{path}: {words}, which is not there") from None
        else:
            raise InputError(f"{path}: {part.decode(errors='replace')!r} is a link into another file; copy it in")
    return place


def _check_place(data: h5py.Dataset, name: str, path: Path) -> None:
    """`InputError` where the values are not, or not all, in the file's own bytes."""
    from h5py import h5d, h5z

    how = data.id.get_create_plist()
    layout = how.get_layout()
    if layout == h5d.VIRTUAL or (layout == h5d.CONTIGUOUS and how.get_external_count()):
        raise InputError(f"{path}: the values of {name!r} lie in other files; copy them into this one")
    filters = [how.get_filter(i) for i in range(how.get_nfilters())]
    for code, _, _, words in filters:
        if not h5z.filter_avail(code):
            called = words.decode(errors="replace")[:60] or "no name"
            raise InputError(f"{path}: {name!r} is packed by filter {code} ({called}), which is not here; use gzip")
    stat = path.stat()
    declared = unpacked = math.prod(data.shape) * data.id.get_type().get_size()
    if not declared:
        return
    whole = True
    if layout == h5d.CHUNKED:
        chunk = how.get_chunk()
        chunks = math.prod(math.ceil(n / size) for n, size in zip(data.shape, chunk, strict=True))
        unpacked = chunks * math.prod(chunk) * data.id.get_type().get_size()
        # An index has eight bytes for each chunk: counting those of one that claims more would take for ever.
        whole = chunks <= stat.st_size // 8 and data.id.get_num_chunks() == chunks
    stored = min(data.id.get_storage_size(), stat.st_size) if whole else 0
    if not whole or (not filters and stored < declared):
        raise InputError(
            f"{path}: {name} of shape {data.shape} would have {_size(declared)}, of which the file holds a part; it "
            "was not written to its end"
        )
    on_disk = min(stored, getattr(stat, "st_blocks", stored) * 512)
    if unpacked > _ALWAYS_BYTES and unpacked > _TIMES * on_disk:
        raise InputError(
            f"{path}: {name} of shape {data.shape} takes {_size(on_disk)} on the disk and {_size(unpacked)} in memory; "
            "no features shrink so far"
        )


def _size(n_bytes: int) -> str:
    """`3.2 GB`, `45.0 kB`."""
    power = min(6, int(math.log(max(1, n_bytes), 1000)))
    return f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"


def _reason(error: Exception, what: str, way_out: str) -> str:
    text = one_line(error, 300)
    number = getattr(error, "errno", None)
    if found := re.search(r"errno = (\d+)", text):
        number = int(found[1])
    if "lock" in text and number in _LOCKS:
        return (
            f"in use by another process ({os.strerror(number)}); wait until it is written, or set "
            "HDF5_USE_FILE_LOCKING=FALSE where the file system has no locks (NFS)"
        )
    if "already open for write" in text or "consistency flag" in text:
        return "still being written, or not closed by the process that wrote it; wait, or write it again"
    return f"no {what}, or damaged ({text}); {way_out}"
