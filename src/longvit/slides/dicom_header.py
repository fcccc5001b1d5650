"""The elements of a DICOM file before its pixels, without a library: which series it belongs to, what its sizes are."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from longvit.files import require_regular_file
from longvit.slides.file_kind import first_bytes

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_IMPLICIT = "1.2.840.10008.1.2"
_UNREAD_SYNTAXES = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")  # deflated, big-endian: no slide has them
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
UNDEFINED = 0xFFFFFFFF
"""The length of an element that ends with a mark of its own."""
_META_SYNTAX, _META_CLASS = 0x00020010, 0x00020002
SOP_CLASS, _SERIES = 0x00080016, 0x0020000E
_PER_FRAME = 0x52009230  # PerFrameFunctionalGroupsSequence; pixels have a higher tag
_ITEM_END, _SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD
_HEADS = (1 << 14, 1 << 22)  # bytes: the groups before the series' own are a few kilobytes
_MAX_DEPTH = 32
_MOST_BYTES = 1024

Data = bytes | mmap.mmap


class DicomHeader(NamedTuple):
    """What tells the files of one slide from those of another."""

    series: str
    """The SeriesInstanceUID: all files of a slide have the same."""
    is_slide: bool
    """A whole-slide image; others are reports, annotations, radiology."""


class Element(NamedTuple):
    """One element: its tag, where its value begins, of how many bytes it is, and the first kilobyte of it."""

    tag: int
    start: int
    length: int
    """`UNDEFINED`: it ends with a mark of its own."""
    value: bytes


def read_dicom_header(path: Path) -> DicomHeader | None:
    """The header of a DICOM file; None for what is no regular file, no DICOM, damaged, or has no series."""
    for head in _HEADS:
        try:
            require_regular_file(path)
            data = first_bytes(path, head)
            if data[128:132] != b"DICM":
                return None
            return _header(data)
        except (struct.error, IndexError):  # it goes on behind the head
            if len(data) < head:
                return None
        except (OSError, ValueError):
            return None
    return None


def _header(data: bytes) -> DicomHeader | None:
    found: dict[int, str] = {}
    for element in elements(data, _SERIES):
        found[element.tag] = text_of(element.value)
    if not found.get(_SERIES):
        return None
    kind = found.get(SOP_CLASS) or found.get(_META_CLASS, "")
    return DicomHeader(found[_SERIES], kind == SLIDE_CLASS)


def elements(data: Data, last: int) -> Iterator[Element]:
    """The elements of a file in its order, without those inside of others, up to the first of the tag `last` or higher.

    It also ends at what holds one item per frame: of a large file, walking those would take seconds.
    Raises `IndexError` or `struct.error` where `data` ends before that, `ValueError` for what no slide is written as.
    """
    at, syntax = 132, ""
    while data[at : at + 2] == b"\2\0":  # the group of the file itself, always explicit
        tag, start, end = _element(data, at, True)
        element = Element(tag, start, end - start, data[start : min(end, start + _MOST_BYTES)])
        if tag == _META_SYNTAX:
            syntax = text_of(element.value)
        yield element
        at = end
    if syntax in _UNREAD_SYNTAXES:
        raise ValueError("deflated or big-endian")
    explicit = syntax != _IMPLICIT
    while at < len(data):
        tag, start, length, _ = _head_of_element(data, at, explicit)
        if tag >= _PER_FRAME and length == UNDEFINED:
            yield Element(tag, start, length, b"")
            return
        tag, start, end = _element(data, at, explicit)
        if end > len(data) and tag < _PER_FRAME:
            break
        yield Element(tag, start, end - start, data[start : min(end, start + _MOST_BYTES)])
        if tag >= last:
            return
        at = end
    raise IndexError("the head ends before the last element")


def _head_of_element(data: Data, at: int, explicit: bool) -> tuple[int, int, int, bool]:
    """Tag, start of the value, stated length, and whether what lies inside states the kinds of its values."""
    group, number = struct.unpack_from("<HH", data, at)
    tag = group << 16 | number
    if not explicit or group == 0xFFFE:
        (length,), start = struct.unpack_from("<I", data, at + 4), at + 8
    elif data[at + 4 : at + 6] in _LONG:
        (length,), start = struct.unpack_from("<I", data, at + 8), at + 12
        explicit = explicit and data[at + 4 : at + 6] != b"UN"  # of undefined length, its items are implicit
    else:
        (length,), start = struct.unpack_from("<H", data, at + 6), at + 8
    return tag, start, length, explicit


def _element(data: Data, at: int, explicit: bool, depth: int = 0) -> tuple[int, int, int]:
    """Tag, start and end of the value of the element at `at`."""
    tag, start, length, explicit = _head_of_element(data, at, explicit)
    if length != UNDEFINED:
        return tag, start, start + length
    if depth > _MAX_DEPTH:
        raise ValueError("sequences in sequences")
    closing = _ITEM_END if tag == 0xFFFEE000 else _SEQUENCE_END
    inside = start
    while True:
        inner, inner_start, end = _element(data, inside, explicit, depth + 1)
        if inner == closing:
            return tag, start, inner_start
        inside = end


def text_of(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")
