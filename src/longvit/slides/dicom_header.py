"""The first elements of a DICOM file: which series it belongs to, without a library and without its pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from longvit.files import require_regular_file
from longvit.slides.file_kind import first_bytes

_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_IMPLICIT = "1.2.840.10008.1.2"
_UNREAD_SYNTAXES = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")  # deflated, big-endian: no slide has them
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF
_META_SYNTAX, _META_CLASS = 0x00020010, 0x00020002
_CLASS, _SERIES = 0x00080016, 0x0020000E
_ITEM_END, _SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD
_HEADS = (1 << 14, 1 << 22)  # bytes: the groups before the series' own are a few kilobytes
_MAX_DEPTH = 32


class DicomHeader(NamedTuple):
    """What tells the files of one slide from those of another."""

    series: str
    """The SeriesInstanceUID: all files of a slide have the same."""
    is_slide: bool
    """A whole-slide image; others are reports, annotations, radiology."""


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
    at = 132
    while data[at : at + 2] == b"\2\0":  # the group of the file itself, always explicit
        tag, start, end = _element(data, at, True)
        if tag in (_META_SYNTAX, _META_CLASS):
            found[tag] = _text(data[start:end])
        at = end
    syntax = found.get(_META_SYNTAX, "")
    if syntax in _UNREAD_SYNTAXES:
        return None
    for tag, value in _elements(data, at, syntax != _IMPLICIT):
        found[tag] = _text(value)
        if tag >= _SERIES:
            break
    if not found.get(_SERIES):
        return None
    kind = found.get(_CLASS) or found.get(_META_CLASS, "")
    return DicomHeader(found[_SERIES], kind == _SLIDE_CLASS)


def _elements(data: bytes, at: int, explicit: bool) -> Iterator[tuple[int, bytes]]:
    while at < len(data):
        tag, start, end = _element(data, at, explicit)
        if end > len(data):
            break
        yield tag, data[start : min(end, start + 1024)]
        at = end
    raise IndexError("the head ends before the series")


def _element(data: bytes, at: int, explicit: bool, depth: int = 0) -> tuple[int, int, int]:
    """Tag, start and end of the value of the element at `at`."""
    group, number = struct.unpack_from("<HH", data, at)
    tag = group << 16 | number
    if not explicit or group == 0xFFFE:
        (length,), start = struct.unpack_from("<I", data, at + 4), at + 8
    elif data[at + 4 : at + 6] in _LONG:
        (length,), start = struct.unpack_from("<I", data, at + 8), at + 12
        explicit = explicit and data[at + 4 : at + 6] != b"UN"  # of undefined length, its items are implicit
    else:
        (length,), start = struct.unpack_from("<H", data, at + 6), at + 8
    if length != _UNDEFINED:
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


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")
