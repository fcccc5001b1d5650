"""Places of the frames of a DICOM file: from its table of offsets, its extended table, or by walking over the items.

A table is checked before anything follows it: OpenSlide follows an offset beyond the end of the file, which kills the
process. A frame that a table places is checked again when it is read (`joined_fragments`).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longvit.slides.dicom_dataset import PIXELS, Dataset
from longvit.slides.dicom_header import ITEM, SEQUENCE_END, UNDEFINED, Element, damaged

_EXTENDED_OFFSETS, _EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
_HEAD_BYTES = 8
"""Tag and length of an item."""
_BEHIND_BYTES = 4096
_TRAILERS = (b"\xfa\xff\xfa\xff", b"\xfc\xff\xfc\xff")
"""Tags of the elements that may follow the pixels: signatures, padding."""
_WRAPS_BYTES = 2**32
"""Offsets of four bytes begin again at 0 beyond these."""
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
"""First bytes of a JPEG or JPEG-LS, of a JPEG 2000 codestream, and of a JP2 file."""

Places = NDArray[np.int64]


class Frames(NamedTuple):
    """Places of the frames in the file, in their order."""

    offsets: Places
    counts: Places
    """Bytes of each frame, with the heads of its items where `in_items`."""
    in_items: bool


def find_frames(path: Path, dataset: Dataset, frames: int, frame_bytes: int, *, walk: bool = False) -> Frames:
    """Places of `frames` frames; `frame_bytes` is the size of a plain one.

    `walk`: every item is visited even where there is a table. Raises `InputError` where sizes, tables and bytes
    contradict each other.
    """
    pixels = dataset.element(PIXELS)
    if pixels is None:
        raise damaged(path, "it has no pixels")
    n_bytes = len(dataset.data)
    if pixels.length != UNDEFINED:
        return _plain(path, dataset.data, pixels, frames, frame_bytes)
    tag, length = _item(dataset.data, pixels.start)
    if tag != ITEM:
        raise damaged(path, "its pixels do not begin with a table of frames")
    first = pixels.start + _HEAD_BYTES + length
    if length not in (0, 4 * frames) or first > n_bytes:
        raise damaged(path, f"its table of {frames} frames has {length} bytes")
    offsets: Places | None = None
    if length and n_bytes < _WRAPS_BYTES:
        offsets = np.frombuffer(dataset.data[first - length : first], "<u4").astype(np.int64)
    elif not length and _EXTENDED_OFFSETS in dataset:
        offsets = _extended(path, dataset, _EXTENDED_OFFSETS, frames)
    if offsets is not None:
        is_out_of_order = bool(offsets[0]) or bool((np.diff(offsets) <= 0).any())
        if is_out_of_order or first + int(offsets.max()) + _HEAD_BYTES > n_bytes:
            raise damaged(path, "its table of frames is out of order or points beyond the end of the file")
        offsets += first
    if offsets is None or walk:
        return _walked(path, dataset.data, first, frames, offsets)
    last_items, end = _items(path, dataset.data, int(offsets[-1]))
    if any(_begins_image(dataset.data, start) for start in last_items[1:]):
        raise damaged(path, f"it states {frames} frames, its pixels have {frames + len(last_items) - 1} items or more")
    ends = np.append(offsets[1:], end)
    if not length:
        _check_lengths(path, dataset, offsets, ends)
    return Frames(offsets, ends - offsets, True)


def joined_fragments(data: bytes) -> bytes:
    """The items of one frame, joined.

    Raises `ValueError` where their lengths do not fill `data`, and where a later item begins another image.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] != b"\xfe\xff\x00\xe0" or at + _HEAD_BYTES + length > len(data):
            raise ValueError("the table of frames contradicts the lengths of the items")
        if parts and data.startswith(_STARTS, at + _HEAD_BYTES):
            raise ValueError("two images in one frame: an item is not in the table of frames")
        parts.append(data[at + _HEAD_BYTES : at + _HEAD_BYTES + length])
        at += _HEAD_BYTES + length
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _plain(path: Path, data: mmap.mmap, pixels: Element, frames: int, frame_bytes: int) -> Frames:
    expected, n_bytes = frames * frame_bytes, len(data)
    if pixels.length not in (expected, expected + expected % 2):
        raise damaged(path, f"{frames} frames need {expected} bytes of pixels, it has {pixels.length}")
    if pixels.start + expected > n_bytes:
        raise damaged(path, f"{expected} bytes of pixels extend beyond the end of the file")
    _check_behind(path, data, pixels.start + pixels.length)
    offsets = pixels.start + np.arange(frames, dtype=np.int64) * frame_bytes
    return Frames(offsets, np.full(frames, frame_bytes, np.int64), False)


def _check_behind(path: Path, data: mmap.mmap, at: int) -> None:
    """Raises `InputError` for bytes behind plain pixels that are neither an element nor zeros.

    A byte that was inserted moves the pixels behind it, and the last one out of them.
    """
    behind = data[at : at + _BEHIND_BYTES]
    is_element = int.from_bytes(behind[:2], "little") >= PIXELS >> 16 and behind[4:6].isalpha()
    if not behind.strip(b"\0") or behind[:4] in _TRAILERS or is_element:
        return
    raise damaged(path, f"{len(data) - at} bytes follow its pixels: bytes were inserted, or appended")


def _extended(path: Path, dataset: Dataset, tag: int, frames: int) -> Places:
    element = dataset.element(tag)
    if element is None or element.length != 8 * frames:
        n_bytes = 0 if element is None else element.length
        raise damaged(path, f"its extended table of {frames} frames has {n_bytes} bytes")
    values = np.frombuffer(dataset.data[element.start : element.start + element.length], "<u8")
    if int(values.max()) >= len(dataset.data):
        raise damaged(path, "its table of frames is out of order or points beyond the end of the file")
    return values.astype(np.int64)


def _check_lengths(path: Path, dataset: Dataset, offsets: Places, ends: Places) -> None:
    """Raises `InputError` where the lengths of an extended table do not fill the space between its offsets."""
    lengths = _extended(path, dataset, _EXTENDED_LENGTHS, len(offsets))
    wrong = np.flatnonzero(offsets + _HEAD_BYTES + lengths + lengths % 2 != ends)
    # One damaged frame is counted when it is read; a table that fits nowhere is another file's.
    if len(wrong) > 1:
        raise damaged(path, f"{len(wrong)} lengths of its table of frames contradict the offsets")


def _walked(path: Path, data: mmap.mmap, first: int, frames: int, offsets: Places | None) -> Frames:
    """Places of the frames after a visit of every item."""
    starts, end = _items(path, data, first)
    at = np.asarray([*starts, end], np.int64)
    if offsets is not None:
        if not np.isin(offsets, at[:-1]).all():
            raise damaged(path, "its table of frames contradicts the lengths of the items")
        return Frames(offsets, np.append(offsets[1:], end) - offsets, True)
    if len(starts) != frames:  # several items per frame, of which the first begins like an image
        is_first = [_begins_image(data, start) for start in starts]
        at = np.append(at[:-1][is_first], end)
        if len(at) - 1 != frames or not is_first[0]:
            raise damaged(path, f"it states {frames} frames, its pixels are in {len(starts)} items")
    return Frames(at[:-1], np.diff(at), True)


def _items(path: Path, data: mmap.mmap, at: int) -> tuple[list[int], int]:
    """Offsets of the items from `at` on, and that of the delimiter behind the last one."""
    starts: list[int] = []
    n_bytes = len(data)
    while at + _HEAD_BYTES <= n_bytes:
        tag, length = _item(data, at)
        if tag == SEQUENCE_END:
            return starts, at
        if tag != ITEM or length == UNDEFINED:
            raise damaged(path, f"the length of item {len(starts)} of its pixels is wrong")
        starts.append(at)
        at += _HEAD_BYTES + length
    raise damaged(path, f"its pixels end in item {max(0, len(starts) - 1)}, without the mark of their end")


def _begins_image(data: mmap.mmap, item: int) -> bool:
    return data[item + _HEAD_BYTES : item + _HEAD_BYTES + 6].startswith(_STARTS)


def _item(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Tag and length of the item at an offset."""
    group, number, length = (int.from_bytes(data[at + i : at + j], "little") for i, j in ((0, 2), (2, 4), (4, 8)))
    return group << 16 | number, length
