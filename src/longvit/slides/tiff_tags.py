"""Tags of one TIFF directory that pixels depend on: valid types and counts, and numbers of any type.

A TIFF directory has no checksum. A tag with an impossible type or count is visible damage.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import tifffile

from longvit.errors import InputError

_SHORT, _LONG, _LONG8 = 3, 4, 16
_RATIONALS = (5, 10)
_NDPI = 65420
_COLOUR_MAP, _SUB_IFDS, _SAMPLES, _JPEG_TABLES = 320, 330, 277, 347
# One whole number each: the sizes and the pixel coding.
_SINGLE_VALUE = {
    256: "ImageWidth",
    257: "ImageLength",
    259: "Compression",
    262: "PhotometricInterpretation",
    266: "FillOrder",
    277: "SamplesPerPixel",
    278: "RowsPerStrip",
    284: "PlanarConfiguration",
    317: "Predictor",
    322: "TileWidth",
    323: "TileLength",
}
# All values of the format; readers treat any other value as the first.
_VALUES = {266: (1, 2), 284: (1, 2)}
# One whole number for each sample, or one for all.
_PER_SAMPLE = {258: "BitsPerSample", 339: "SampleFormat"}
_TABLES = {273: "StripOffsets", 279: "StripByteCounts", 324: "TileOffsets", 325: "TileByteCounts"}
_WHOLE_NUMBERS = {**_SINGLE_VALUE, **_PER_SAMPLE, **_TABLES}
_NAMES = {
    **_WHOLE_NUMBERS,
    _COLOUR_MAP: "ColorMap",
    _SUB_IFDS: "SubIFDs",
    _JPEG_TABLES: "JPEGTables",
}


def check_tags(path: Path, page: tifffile.TiffPage) -> None:
    """Raises `InputError` where a tag that pixels depend on has an impossible type, count or value."""
    if _NDPI in page.tags:
        return  # Hamamatsu departs from the format; only OpenSlide reads it
    samples = page.tags.get(_SAMPLES)
    n_samples = int(samples.value) if samples is not None and isinstance(samples.value, int) else 1
    for tag in page.tags:
        code = tag.code
        name = _WHOLE_NUMBERS.get(code)
        if name is None:
            continue
        if tag.dtype not in (_SHORT, _LONG, _LONG8):
            raise _damaged(path, f"its tag {name} is of type {getattr(tag.dtype, 'name', tag.dtype)}")
        if code in _SINGLE_VALUE and tag.count != 1:
            raise _damaged(path, f"its tag {name} has {tag.count} values instead of 1")
        if code in _VALUES and int(tag.value) not in _VALUES[code]:
            raise _damaged(path, f"its tag {name} is {int(tag.value)}, which the format does not define")
        if code in _PER_SAMPLE and tag.count not in (1, n_samples):
            raise _damaged(path, f"its tag {name} has {tag.count} values for {n_samples} samples")


def check_unread(path: Path, tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    """Raises `InputError` where tifffile skipped a tag that pixels depend on; it only logs that."""
    form, file = tiff.tiff, tiff.filehandle
    file.seek(page.offset)
    (n_tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    entries = file.read(n_tags * form.tagsize)
    for at in range(0, len(entries), form.tagsize):
        (code,) = struct.unpack_from(form.byteorder + "H", entries, at)
        if code in _NAMES and code not in page.tags:
            raise _damaged(path, f"its tag {_NAMES[code]} cannot be read")


def is_in_order(page: tifffile.TiffPage) -> bool:
    """True if the tags are in ascending order, as the format demands; a changed tag number breaks the order."""
    places = sorted((tag.offset, tag.code) for tag in page.tags)
    codes = [code for _, code in places]
    return codes == sorted(codes)


def number_of(page: tifffile.TiffPage, code: int) -> tuple[float | None, str]:
    """Number in a tag of any numeric type, with "" or the reason why there is none ("absent", "4/0" …)."""
    tag = page.tags.get(code)
    if tag is None:
        return None, "absent"
    value = tag.value
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) == 1:
        (value,) = value
    if int(tag.dtype) in _RATIONALS and isinstance(value, Sequence) and len(value) == 2:
        top, bottom = value
        if not bottom:
            return None, f"{top}/{bottom} is not a number"
        return float(top) / float(bottom), ""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value), ""
    return None, f"{str(value)[:40]!r} is not a number"


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: damaged: {what}; copy or download it again")
