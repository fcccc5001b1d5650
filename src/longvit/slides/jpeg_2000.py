"""Main header of a JPEG 2000 codestream (ISO/IEC 15444-1, annex A), checked before decoding.

OpenJPEG silently fills missing data with a guess, and decodes with whatever the header says. So its end, its size, and
the fields that contradict each other or 8-bit pixels are checked first.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_START, _END = b"\xff\x4f\xff\x51", b"\xff\xd9"
_COD, _COC, _QCD, _QCC, _SOT = 0x52, 0x53, 0x5C, 0x5D, 0x90
_PART, _PART_HEAD_BYTES = 0xFF90, 14
_STYLES = 3
"""Styles of quantisation: none, derived from one step, one step per band."""
_MAX_EXPONENT = 8 + 5
"""Bit planes of a band of 8-bit pixels: two for the gain of the wavelet, one for the colour transform, two to spare."""


class Jpeg2000Header(NamedTuple):
    """Fields of the main header."""

    size_px: tuple[int, int]
    samples: int
    bits: frozenset[int]
    """Bits of the samples; more than 128 where they are signed."""
    has_halved_chroma: bool
    mixes_colours: bool
    """True if the decoder undoes a transform of the colours."""
    is_reversible: bool
    """True for the reversible wavelet."""
    fault: str
    """Contradiction between the fields of coding, quantisation and tiles; empty where there is none."""


def read_jpeg_2000_header(data: bytes) -> Jpeg2000Header | None:
    """Main header of a codestream, which may be inside a JP2 file; None where it is damaged or absent."""
    start = data.find(_START) if data[4:8] == b"jP  " else 0
    if start < 0 or not data.startswith(_START, start):
        return None
    try:
        return _header(data, start)
    except (struct.error, IndexError):
        return None


def _header(data: bytes, start: int) -> Jpeg2000Header:
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
    tile_w, tile_h, tile_x, tile_y, samples = struct.unpack_from(">4IH", data, start + 24)
    fields = [data[start + 42 + 3 * i : start + 45 + 3 * i] for i in range(min(samples, 4))]
    steps = [step for one in fields[:3] for step in one[1:]]
    coding = quantisation = b""
    has_own = False
    at = start + 2
    while data[at] == 0xFF and (marker := data[at + 1]) != _SOT:
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        has_own = has_own or marker in (_COC, _QCC)
        coding = body if marker == _COD else coding
        quantisation = body if marker == _QCD else quantisation
        at += 2 + length
    mixes_colours, levels, wavelet = coding[4], coding[5], coding[9]
    fault = "" if has_own else _fault(levels, wavelet == 1, quantisation)
    if 0 in (tile_w, tile_h):
        fault = "it states tiles of 0 px"
    elif not fault:
        fault = _fault_of_parts(data, at, -(-(x1 - tile_x) // tile_w) * -(-(y1 - tile_y) // tile_h))
    return Jpeg2000Header(
        (x1 - x0, y1 - y0),
        samples,
        frozenset(one[0] + 1 for one in fields),
        any(step not in (0, 1) for step in steps),
        mixes_colours == 1,
        wavelet == 1,
        fault,
    )


def _fault(levels: int, is_reversible: bool, quantisation: bytes) -> str:
    """Contradiction between the wavelet with its levels, and the quantisation of their bands."""
    style, bands = quantisation[0] & 31, 3 * levels + 1
    if style >= _STYLES or (style == 0) != is_reversible:
        return "its quantisation is not that of its wavelet"
    if len(quantisation) - 1 != (bands, 2, 2 * bands)[style]:
        return f"its quantisation is not that of {bands} bands"
    if style == 0 and max(value >> 3 for value in quantisation[1:]) > _MAX_EXPONENT:
        return "its bands have more bits than 8-bit pixels give"
    return ""


def _fault_of_parts(data: bytes, at: int, n_tiles: int) -> str:
    """Contradiction between the lengths of the tile parts from `at` on, the end of the stream, and the tiles."""
    end = len(data.rstrip(b"\0")) - 2
    if data[end:][:2] != _END:
        return ""  # truncated, which is another fault
    found = set()
    while at < end:
        marker, _, tile, length = struct.unpack_from(">HHHI", data, at)
        if marker != _PART or 0 < length < _PART_HEAD_BYTES:
            return "the length of a tile part leads elsewhere"
        found.add(tile)
        at = at + length if length else end  # 0: the last one
    if at != end:
        return "a tile part is longer than the stream"
    is_whole = len(found) == n_tiles and max(found) == n_tiles - 1
    return "" if is_whole else f"it states {n_tiles} tiles and has {len(found)}"


def decodes_to_rgb(data: bytes) -> bool:
    """True if the decoder of a JPEG 2000 stream gives RGB whatever the photometric interpretation says.

    It undoes the transform of the codec, and converts halved chroma (Aperio's YCbCr is stored so).
    """
    header = read_jpeg_2000_header(data)
    return header is not None and (header.has_halved_chroma or header.mixes_colours)


def check_jpeg_2000(data: bytes, tile_px: tuple[int, int], *, is_consistent: bool = True) -> Jpeg2000Header:
    """Raises `ValueError` for a truncated codestream, and one whose header does not fit 8-bit pixels of a tile.

    `is_consistent`: a header that contradicts itself is refused too.
    """
    header = read_jpeg_2000_header(data)
    if header is None:
        raise ValueError(f"not JPEG 2000, or damaged: the tile begins with {data[:4].hex(' ')}")
    width_px, height_px = header.size_px
    if width_px * height_px > tile_px[0] * tile_px[1]:
        raise ValueError(f"JPEG 2000 of {width_px} × {height_px} px in a tile of {tile_px[0]} × {tile_px[1]}")
    if not 1 <= header.samples <= 4:
        raise ValueError(f"JPEG 2000 of {header.samples} samples per pixel")
    if header.bits != {8}:
        raise ValueError(f"JPEG 2000 of {', '.join(map(str, sorted(header.bits)))} bits instead of 8")
    if is_consistent and header.fault:
        raise ValueError(f"the JPEG 2000 header contradicts itself: {header.fault}")
    if not data.rstrip(b"\0").endswith(_END):
        raise ValueError("the JPEG 2000 stream has no end: truncated")
    return header
