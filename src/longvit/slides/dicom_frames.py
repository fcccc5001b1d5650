"""Consistency of a DICOM file: its frames and bytes against its stated sizes.

OpenSlide trusts each field separately. A damaged size shows other tiles, or costs the time of a huge blank slide. An
offset beyond the end kills the process.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from longvit.errors import InputError
from longvit.slides.dicom_header import SLIDE_CLASS, SOP_CLASS, UNDEFINED, Element, elements, text_of
from longvit.slides.pixel_reader import check_side

_SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS = 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100
_PATHS, _PLANES = 0x00480302, 0x00480303
_WIDTH, _HEIGHT = 0x00480006, 0x00480007
_ORGANISATION, _PART_OF_ANOTHER = 0x00209311, 0x00209162
_PIXELS = 0x7FE00010
_ITEM = 0xFFFEE000


def check_frames(path: Path) -> None:
    """Raises `InputError` for a whole-slide DICOM file whose sizes, number of frames and bytes contradict each other.

    Other files, and files that cannot be parsed this way, are left to OpenSlide.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            by_tag = {element.tag: element for element in elements(data, _PIXELS)}
            if SOP_CLASS in by_tag and text_of(by_tag[SOP_CLASS].value) == SLIDE_CLASS:
                _check_sizes(path, by_tag)
                _check_pixels(path, by_tag, data)
    except InputError:
        raise
    except (OSError, ValueError, IndexError, struct.error):
        return


def _check_sizes(path: Path, by_tag: dict[int, Element]) -> None:
    (width_px, height_px), (tile_w, tile_h) = (
        (_number(by_tag, across, 0), _number(by_tag, down, 0))
        for across, down in ((_WIDTH, _HEIGHT), (_COLUMNS, _ROWS))
    )
    if 0 in (width_px, height_px, tile_w, tile_h):
        raise _damaged(path, f"it states {width_px} × {height_px} px in tiles of {tile_w} × {tile_h}")
    check_side(path, width_px, height_px)
    organisation = text_of(by_tag[_ORGANISATION].value) if _ORGANISATION in by_tag else ""
    if organisation != "TILED_FULL" or _FRAMES not in by_tag or _PART_OF_ANOTHER in by_tag:
        return
    expected = (
        -(-width_px // tile_w) * -(-height_px // tile_h) * _number(by_tag, _PATHS, 1) * _number(by_tag, _PLANES, 1)
    )
    frames = _number(by_tag, _FRAMES, 0)
    if frames != expected:
        raise _damaged(
            path,
            f"{width_px} × {height_px} px in tiles of {tile_w} × {tile_h} need {expected} frames, it states {frames}",
        )


def _check_pixels(path: Path, by_tag: dict[int, Element], data: mmap.mmap) -> None:
    pixels = by_tag.get(_PIXELS)
    if pixels is None or _FRAMES not in by_tag:
        return
    frames = _number(by_tag, _FRAMES, 0)
    if pixels.length != UNDEFINED:
        bits = frames * _number(by_tag, _ROWS, 0) * _number(by_tag, _COLUMNS, 0)
        bits *= _number(by_tag, _SAMPLES, 1) * _number(by_tag, _BITS, 8)
        expected = -(-bits // 8)
        if pixels.length not in (expected, expected + expected % 2):
            raise _damaged(path, f"{frames} frames need {expected} bytes of pixels, it has {pixels.length}")
        if pixels.start + expected > len(data):
            raise _damaged(path, f"{expected} bytes of pixels extend beyond the end of the file")
        return
    tag = int.from_bytes(data[pixels.start : pixels.start + 2], "little") << 16
    tag |= int.from_bytes(data[pixels.start + 2 : pixels.start + 4], "little")
    if tag != _ITEM:
        raise _damaged(path, "its pixels do not begin with a table of frames")
    n_bytes = int.from_bytes(data[pixels.start + 4 : pixels.start + 8], "little")
    first = pixels.start + 8 + n_bytes
    if n_bytes not in (0, 4 * frames) or first > len(data):
        raise _damaged(path, f"its table of {frames} frames has {n_bytes} bytes")
    offsets = np.frombuffer(data[pixels.start + 8 : first], "<u4").astype(np.int64)
    # Beyond 4 GiB the offsets wrap around; such files have another table, or none.
    if n_bytes and (bool((np.diff(offsets) <= 0).any()) or first + int(offsets.max()) + 8 > len(data)):
        raise _damaged(path, "its table of frames is out of order or points beyond the end of the file")


def _number(by_tag: dict[int, Element], tag: int, default: int) -> int:
    element = by_tag.get(tag)
    if element is None:
        return default
    if element.length in (2, 4) and tag != _FRAMES:
        return int.from_bytes(element.value, "little")
    return int(text_of(element.value))


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: damaged or cut off: {what}; copy or download it again")
