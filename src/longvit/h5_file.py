"""HDF5 files from other tools, read defensively: only data in the file itself, of a size that the file can hold.

HDF5 follows links into other files and takes a dataset's bytes from any file of the machine. It allocates gigabytes for
a dataset that claims to have them. Here each of these is a one-line `InputError` that names the file.
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
# Unpacked size that is always accepted; beyond it, largest ratio to the size on disk.
_UNCHECKED_BYTES, _MAX_EXPANSION = 64 * 2**20, 100
_MAX_LINKS, _MAX_ATTRIBUTES, _ATTRIBUTE_BYTES = 32, 1000, 2**20


@contextmanager
def open_h5(path: Path, way_out: str, what: str = "HDF5 file") -> Iterator[h5py.File]:
    """Opens an HDF5 file to read. Any failure while it is open becomes an `InputError`: the file, the reason,
    `way_out`."""
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


def find_dataset(group: h5py.Group, name: str, path: Path) -> h5py.Dataset | None:
    """The dataset of that name in a file or a group, over links within the file; None where there is none.

    Raises `InputError` for a link into another file, a circle of links, and for anything but a dataset.
    """
    import h5py

    try:
        object_id = _follow(group.id, name.encode(), path, [_MAX_LINKS])
    except KeyError:
        return None
    if not isinstance(object_id, h5py.h5d.DatasetID):
        raise InputError(f"{path}: {name!r} is not a dataset")
    return h5py.Dataset(object_id)


def groups_in(file: h5py.File, path: Path) -> dict[str, h5py.Group]:
    """Top-level groups by name. Raises `InputError` for a link into another file."""
    import h5py

    objects = {name: _follow(file.id, name.encode(), path, [_MAX_LINKS]) for name in file}
    return {
        name: h5py.Group(object_id) for name, object_id in objects.items() if isinstance(object_id, h5py.h5g.GroupID)
    }


def read_numbers(data: h5py.Dataset, path: Path) -> Any:
    """All values of a numeric dataset, as an array of the file's dtype.

    Raises `InputError` for non-numeric values, values outside the file or never written, and for values that need far
    more memory than the file has bytes.
    """
    name = str(data.name or "").lstrip("/")
    if data.shape is None:
        raise InputError(f"{path}: {name!r} is empty (a null dataspace)")
    if data.dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} of shape {data.shape} and type {data.dtype}, not numbers")
    _check_storage(data, name, path)
    return data[()]


def read_attributes(node: h5py.Dataset | h5py.Group, path: Path) -> dict[str, Any]:
    """Attributes as a dict: scalars as Python values, bytes as text. Raises `InputError` for too many or too large
    ones."""
    if len(node.attrs) > _MAX_ATTRIBUTES:
        raise InputError(f"{path}: {len(node.attrs):,} attributes on {node.name!r}")
    attributes = {}
    for key in node.attrs:
        if node.attrs.get_id(key).get_storage_size() > _ATTRIBUTE_BYTES:
            raise InputError(f"{path}: the attribute {key[:80]!r} has more than 1 MB")
        value = node.attrs[key]
        value = value.item() if isinstance(value, np.generic) else value
        attributes[key] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return attributes


def names_in(file: h5py.Group) -> str:
    """Names in a file or a group, as text for a message."""
    names = [one_line(name, 40) for name in itertools.islice(file, 11)]
    return ", ".join([*sorted(names[:10]), *(["…"] if len(names) > 10 else [])]) or "nothing"


def _follow(node: Any, name: bytes, path: Path, left: list[int]) -> Any:
    """The object under a name below a group; `KeyError` where there is none. `left` counts the links that may still be
    followed."""
    from h5py import h5g, h5i, h5l, h5o

    if name.startswith(b"/"):
        node = h5g.open(h5i.get_file_id(node), b"/")
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if not isinstance(node, h5g.GroupID):
            raise KeyError(part)
        left[0] -= 1
        if left[0] < 0:
            raise InputError(f"{path}: its links form a circle, or are too many")
        if not node.links.exists(part):
            raise KeyError(part)
        kind = node.links.get_info(part).type
        if kind == h5l.TYPE_HARD:
            node = h5o.open(node, part)
        elif kind == h5l.TYPE_SOFT:
            target = node.links.get_val(part)
            try:
                node = _follow(node, target, path, left)
            except KeyError:
                link = f"{part.decode(errors='replace')!r} is a link to {target.decode(errors='replace')!r}"
                raise InputError(f"{path}: {link}, which is not there") from None
        else:
            raise InputError(f"{path}: {part.decode(errors='replace')!r} is a link into another file; copy it in")
    return node


def _check_storage(data: h5py.Dataset, name: str, path: Path) -> None:
    """Raises `InputError` where some values are not in the file's own bytes."""
    from h5py import h5d, h5z

    properties = data.id.get_create_plist()
    layout = properties.get_layout()
    if layout == h5d.VIRTUAL or (layout == h5d.CONTIGUOUS and properties.get_external_count()):
        raise InputError(f"{path}: the values of {name!r} are in other files; copy them into this one")
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    for code, _, _, filter_name in filters:
        if not h5z.filter_avail(code):
            label = filter_name.decode(errors="replace")[:60] or "no name"
            raise InputError(f"{path}: {name!r} is packed by filter {code} ({label}), which is not installed; use gzip")
    stat = path.stat()
    declared = unpacked = math.prod(data.shape) * data.id.get_type().get_size()
    if not declared:
        return
    is_whole = True
    if layout == h5d.CHUNKED:
        chunk = properties.get_chunk()
        chunks = math.prod(math.ceil(n / size) for n, size in zip(data.shape, chunk, strict=True))
        unpacked = chunks * math.prod(chunk) * data.id.get_type().get_size()
        # An index takes eight bytes per chunk; counting those of a false one would never end.
        is_whole = chunks <= stat.st_size // 8 and data.id.get_num_chunks() == chunks
    stored = min(data.id.get_storage_size(), stat.st_size) if is_whole else 0
    if not is_whole or (not filters and stored < declared):
        raise InputError(
            f"{path}: {name} of shape {data.shape} would have {_size(declared)}, of which the file holds a part; it "
            "was not written completely"
        )
    on_disk = min(stored, getattr(stat, "st_blocks", stored) * 512)
    if unpacked > _UNCHECKED_BYTES and unpacked > _MAX_EXPANSION * on_disk:
        raise InputError(
            f"{path}: {name} of shape {data.shape} takes {_size(on_disk)} on the disk and {_size(unpacked)} in memory; "
            "features do not compress that far"
        )


def _size(n_bytes: int) -> str:
    """`3.2 GB`, `45.0 kB`."""
    power = min(6, int(math.log(max(1, n_bytes), 1000)))
    return f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"


def _reason(error: Exception, what: str, way_out: str) -> str:
    text = one_line(error, 300)
    error_number = getattr(error, "errno", None)
    if match := re.search(r"errno = (\d+)", text):
        error_number = int(match[1])
    if "lock" in text and error_number in _LOCKS:
        return (
            f"in use by another process ({os.strerror(error_number)}); wait until it is written, or set "
            "HDF5_USE_FILE_LOCKING=FALSE where the file system has no locks (NFS)"
        )
    if "already open for write" in text or "consistency flag" in text:
        return "still being written, or not closed by the process that wrote it; wait, or write it again"
    return f"no {what}, or damaged ({text}); {way_out}"
