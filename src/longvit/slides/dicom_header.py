"""Elements of a DICOM file, parsed without a library: the series of a header, and the walk over nested elements."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from longvit.errors import InputError
from longvit.files import require_regular_file
from longvit.slides.file_kind import first_bytes

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
IMPLICIT = "1.2.840.10008.1.2"
UNREAD_SYNTAXES = {"1.2.840.10008.1.2.1.99": "deflated", "1.2.840.10008.1.2.2": "big-endian"}
"""Transfer syntaxes in which not even the header is read; slides do not use them."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""Class of a DICOMDIR, the list of the files of a medium."""
_LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
UNDEFINED = 0xFFFFFFFF
"""Length of an element that ends with a delimiter."""
META_SYNTAX, META_CLASS = 0x00020010, 0x00020002
SOP_CLASS, _SERIES = 0x00080016, 0x0020000E
_PER_FRAME = 0x52009230  # PerFrameFunctionalGroupsSequence; pixels have a higher tag
ITEM, _ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_HEAD_BYTES = (1 << 14, 1 << 22)  # bytes: the groups before the series' own are a few kilobytes
_MAX_DEPTH = 32
_VALUE_BYTES = 1024

Data = bytes | mmap.mmap


class DicomHeader(NamedTuple):
    """Fields that distinguish the files of one slide from those of another."""

    series: str
    """SeriesInstanceUID: equal for all files of a slide. Empty for a DICOMDIR."""
    is_slide: bool
    """True for a whole-slide image; others are reports, annotations, radiology, a DICOMDIR."""


class Element(NamedTuple):
    """One element: its tag, the start and length of its value, and the first kilobyte of it."""

    tag: int
    start: int
    length: int
    """`UNDEFINED`: the value ends with a delimiter."""
    value: bytes


def read_dicom_header(path: Path) -> DicomHeader | None:
    """Header of a DICOM file. None for another or special file, a damaged one, and one without a series."""
    for head in _HEAD_BYTES:
        try:
            require_regular_file(path)
            data = first_bytes(path, head)
            if data[128:132] != b"DICM":
                return None
            return _header(data)
        except (struct.error, IndexError):  # it continues beyond the head
            if len(data) < head:
                return None
        except (OSError, ValueError):
            return None
    return None


def _header(data: bytes) -> DicomHeader | None:
    values: dict[int, str] = {}
    for element in elements(data, _SERIES):
        values[element.tag] = text_of(element.value)
        if values.get(META_CLASS) == DIRECTORY_CLASS:
            return DicomHeader("", is_slide=False)
    if not values.get(_SERIES):
        return None
    # The class is stated twice. A slide whose class is damaged in one place stays one, so that opening reports it.
    return DicomHeader(values[_SERIES], SLIDE_CLASS in (values.get(SOP_CLASS), values.get(META_CLASS)))


def elements(data: Data, last: int) -> Iterator[Element]:
    """Top-level elements of a file, in order, up to the first with the tag `last` or higher.

    The last one is yielded although its value may end beyond `data`. Raises `IndexError` or `struct.error` where `data`
    ends first, and `ValueError` for a syntax that slides do not use.
    """
    at, syntax = 132, ""
    while data[at : at + 2] == b"\2\0":  # the group of the file itself, always explicit
        tag, start, end = _element(data, at, True)
        element = Element(tag, start, end - start, data[start : min(end, start + _VALUE_BYTES)])
        if tag == META_SYNTAX:
            syntax = text_of(element.value)
        yield element
        at = end
    if syntax in UNREAD_SYNTAXES:
        raise ValueError(f"the transfer syntax is {UNREAD_SYNTAXES[syntax]}")
    explicit = syntax != IMPLICIT
    while at < len(data):
        tag, start, length, _ = _head_of_element(data, at, explicit)
        if tag > _PER_FRAME and length == UNDEFINED:  # pixels in items
            yield Element(tag, start, length, b"")
            return
        tag, start, end = _element(data, at, explicit)
        if end > len(data) and tag <= _PER_FRAME:
            break
        yield Element(tag, start, end - start, data[start : min(end, start + _VALUE_BYTES)])
        if tag >= last:
            return
        at = end
    raise IndexError("the head ends before the last element")


def items_of(data: Data, sequence: Element, explicit: bool) -> Iterator[tuple[int, int, bool]]:
    """Start and end of each item of a sequence, and True if its elements state the kinds of their values."""
    explicit = explicit and data[sequence.start - 8 : sequence.start - 6] != b"UN"
    at, end = sequence.start, sequence.start + sequence.length
    while at < end:
        tag, start, past = _element(data, at, explicit)
        if tag == SEQUENCE_END:
            return
        if tag != ITEM or past > end:
            raise ValueError("a sequence of something else than items")
        yield start, past, explicit
        at = past


def elements_of_item(data: Data, start: int, end: int, explicit: bool) -> Iterator[Element]:
    """Elements of one item, in order."""
    at = start
    while at < end:
        tag, inside, past = _element(data, at, explicit)
        if tag == _ITEM_END:
            return
        if past > end:
            raise ValueError("an element beyond its item")
        yield Element(tag, inside, past - inside, data[inside : min(past, inside + _VALUE_BYTES)])
        at = past


def _head_of_element(data: Data, at: int, explicit: bool) -> tuple[int, int, int, bool]:
    """Tag, start of the value, stated length, and True if nested elements state the kinds of their values."""
    group, number = struct.unpack_from("<HH", data, at)
    tag = group << 16 | number
    if not explicit or group == 0xFFFE:
        (length,), start = struct.unpack_from("<I", data, at + 4), at + 8
    elif data[at + 4 : at + 6] in _LONG_KINDS:
        (length,), start = struct.unpack_from("<I", data, at + 8), at + 12
        explicit = explicit and data[at + 4 : at + 6] != b"UN"  # of undefined length, its items are implicit
    else:
        (length,), start = struct.unpack_from("<H", data, at + 6), at + 8
    return tag, start, length, explicit


def _element(data: Data, at: int, explicit: bool, depth: int = 0) -> tuple[int, int, int]:
    """Tag, start and end of the value of the element at offset `at`."""
    tag, start, length, explicit = _head_of_element(data, at, explicit)
    if length != UNDEFINED:
        return tag, start, start + length
    if depth > _MAX_DEPTH:
        raise ValueError("sequences nested too deeply")
    closing = _ITEM_END if tag == ITEM else SEQUENCE_END
    inside = start
    while True:
        inner, inner_start, end = _element(data, inside, explicit, depth + 1)
        if inner == closing:
            return tag, start, inner_start
        inside = end


def text_of(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


def damaged(path: Path, what: str) -> InputError:
    """Error for a file that contradicts itself or ends too early."""
    return InputError(f"{path}: damaged or cut off: {what}; copy or download it again")
