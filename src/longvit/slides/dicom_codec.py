"""Decoders of one DICOM frame, by transfer syntax and colours (DICOM PS3.5 section 8.2 and PS3.3 C.7.6.3.1.2)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvit.slides.jpeg_2000 import check_jpeg_2000, decodes_to_rgb, read_jpeg_2000_header
from longvit.slides.jpeg_file import read_jpeg_header
from longvit.slides.jpeg_tile import REDUCTIONS, JpegTiles
from longvit.slides.pixel_reader import UnsupportedError
from longvit.slides.tile_decoding import TileDecoder

Pixels = NDArray[np.uint8]

_JPEG, _JPEG_LS, _JPEG_2000, _RLE, _NONE = "jpeg", "jpegls", "jpeg2000", "rle", "none"
CODECS = {
    "1.2.840.10008.1.2": _NONE,
    "1.2.840.10008.1.2.1": _NONE,
    "1.2.840.10008.1.2.1.98": _NONE,  # in items
    "1.2.840.10008.1.2.4.50": _JPEG,
    "1.2.840.10008.1.2.4.51": _JPEG,
    "1.2.840.10008.1.2.4.80": _JPEG_LS,
    "1.2.840.10008.1.2.4.81": _JPEG_LS,
    "1.2.840.10008.1.2.4.90": _JPEG_2000,
    "1.2.840.10008.1.2.4.91": _JPEG_2000,
    "1.2.840.10008.1.2.4.201": _JPEG_2000,  # high throughput
    "1.2.840.10008.1.2.4.202": _JPEG_2000,
    "1.2.840.10008.1.2.4.203": _JPEG_2000,
    "1.2.840.10008.1.2.5": _RLE,
}
"""Codec of each transfer syntax that is read."""
_NAMES = {
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG",
    "1.2.840.10008.1.2.4.110": "JPEG XL",
    "1.2.840.10008.1.2.4.111": "JPEG XL",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}
_LOSSLESS = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202")
_RLE_HEAD_BYTES = 64


class Coding(NamedTuple):
    """Coding that all JPEG 2000 frames of a level share; None where its files do not say, or contradict each other."""

    mixes_colours: bool | None
    is_reversible: bool | None
    is_consistent: bool
    """True if their headers do not contradict themselves, as those of an unusual encoder might."""


def frame_decoder(
    syntax: str,
    photometric: str,
    samples: int,
    planar: bool,
    tile_px: tuple[int, int],
    jpeg_colours: str | None,
    coding: Coding,
) -> TileDecoder:
    """Decoder for the frames of one level.

    `jpeg_colours`: "RGB" or "YCbCr" where the JPEG streams state their own colours, which then override `photometric`.
    `coding`: that of the JPEG 2000 streams. Raises `UnsupportedError` for another codec.
    """
    codec = CODECS.get(syntax)
    if codec is None:
        raise UnsupportedError(f"the transfer syntax {_NAMES.get(syntax, syntax[:64] or 'that is not stated')}")
    if codec == _JPEG:
        colour = "grey" if samples == 1 else "rgb" if (jpeg_colours or photometric) == "RGB" else "ycbcr"
        tiles = JpegTiles(None, colour, tile_px)
        reductions = tuple(n for n in REDUCTIONS if tile_px[0] % n == tile_px[1] % n == 0)
        if photometric == "MONOCHROME1":
            return TileDecoder(lambda data, index: np.invert(tiles.decode(data)))
        return TileDecoder(lambda data, index: tiles.decode(data), tiles.decode, reductions)
    decode: Callable[[bytes], Pixels] = _Frames(codec, photometric, samples, planar, tile_px, coding)
    return TileDecoder(lambda data, index: decode(data))


class _Frames:
    """Decoder of the frames of every codec but JPEG."""

    def __init__(
        self, codec: str, photometric: str, samples: int, planar: bool, tile_px: tuple[int, int], coding: Coding
    ) -> None:
        self._photometric, self._samples, self._planar, self._tile_px = photometric, samples, planar, tile_px
        self._coding = coding
        self._decode = {
            _JPEG_LS: self._jpeg_ls,
            _JPEG_2000: self._jpeg_2000,
            _RLE: self._rle,
            _NONE: self._plain,
        }[codec]

    def __call__(self, data: bytes) -> Pixels:
        pixels = self._decode(data)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.shape[2] != self._samples:
            raise ValueError(f"a frame of {pixels.shape[2]} samples per pixel instead of {self._samples}")
        return np.invert(pixels) if self._photometric == "MONOCHROME1" else pixels

    def _plain(self, data: bytes) -> Pixels:
        width, height = self._tile_px
        if self._photometric == "YBR_FULL_422":
            return rgb_of(_with_full_chroma(_sized(data, height, width, 2)))
        if self._planar:
            pixels = _sized(data, self._samples, height, width).transpose(1, 2, 0)
        else:
            pixels = _sized(data, height, width, self._samples)
        return rgb_of(pixels) if self._photometric == "YBR_FULL" else pixels

    def _jpeg_ls(self, data: bytes) -> Pixels:
        check_jpeg_ls(data, self._tile_px, self._samples)
        pixels = np.asarray(imagecodecs.jpegls_decode(data))
        return rgb_of(pixels) if self._photometric == "YBR_FULL" else pixels

    def _jpeg_2000(self, data: bytes) -> Pixels:
        header = check_jpeg_2000(data, self._tile_px, is_consistent=self._coding.is_consistent)
        if header.size_px != self._tile_px:
            raise ValueError(f"JPEG 2000 of {header.size_px[0]} × {header.size_px[1]} px in a frame of another size")
        for stated, expected in zip((header.mixes_colours, header.is_reversible), self._coding[:2], strict=True):
            if expected not in (None, stated):
                raise ValueError("the JPEG 2000 header differs from the file's header and from most frames")
        pixels = np.asarray(imagecodecs.jpeg2k_decode(data, numthreads=1))
        if self._photometric in ("YBR_FULL", "YBR_FULL_422") and not decodes_to_rgb(data):
            return rgb_of(pixels)
        return pixels

    def _rle(self, data: bytes) -> Pixels:
        width, height = self._tile_px
        planes = [
            _sized(imagecodecs.packbits_decode(segment), height, width) for segment in rle_segments(data, self._samples)
        ]
        pixels = np.stack(planes, axis=-1)
        return rgb_of(pixels) if self._photometric == "YBR_FULL" else pixels


def rgb_of(ycbcr: Pixels) -> Pixels:
    """RGB of full-range YCbCr, (height, width, 3)."""
    image = Image.frombytes("YCbCr", ycbcr.shape[1::-1], np.ascontiguousarray(ycbcr).tobytes())
    return np.asarray(image.convert("RGB"))


def rle_segments(data: bytes, samples: int) -> list[bytes]:
    """Segments of an RLE frame, one per sample. Raises `ValueError` for a damaged head, which decoders trust."""
    if len(data) < _RLE_HEAD_BYTES:
        raise ValueError(f"an RLE frame of {len(data)} bytes")
    n, *offsets = struct.unpack_from("<16I", data)
    bounds = [*offsets[:samples], len(data)]
    if n != samples or bounds[0] != _RLE_HEAD_BYTES or sorted(set(bounds)) != bounds:
        raise ValueError(f"an RLE frame of {n} segments at {offsets[:samples]} in {len(data)} bytes")
    return [data[start:end] for start, end in pairwise(bounds)]


def frame_size(syntax: str, data: bytes) -> tuple[int, int] | None:
    """Width and height that the stream of a frame states; None for a codec that states none, and a damaged head."""
    codec = CODECS.get(syntax)
    if codec == _JPEG:
        header = read_jpeg_header(data)
        return None if header is None else (header.width_px, header.height_px)
    if codec == _JPEG_LS and (head := _jpeg_ls_head(data)) is not None:
        return head[0], head[1]
    if codec == _JPEG_2000 and (stream := read_jpeg_2000_header(data)) is not None:
        return stream.size_px
    return None


def jpeg_2000_coding(syntax: str, photometric: str, frames: Sequence[bytes]) -> Coding:
    """Coding of JPEG 2000 streams: what the file's header and most of `frames` say."""
    headers = [header for data in frames if (header := read_jpeg_2000_header(data)) is not None]
    if CODECS.get(syntax) != _JPEG_2000 or not headers:
        return Coding(None, None, True)
    mixes_colours = {"RGB": False, "YBR_ICT": True, "YBR_RCT": True}.get(photometric)
    is_reversible = True if syntax in _LOSSLESS else {"YBR_ICT": False, "YBR_RCT": True}.get(photometric)
    half = len(headers) / 2
    return Coding(
        mixes_colours if sum(one.mixes_colours == mixes_colours for one in headers) > half else None,
        is_reversible if sum(one.is_reversible == is_reversible for one in headers) > half else None,
        sum(not one.fault for one in headers) >= half,
    )


def check_jpeg_ls(data: bytes, tile_px: tuple[int, int], samples: int) -> None:
    """Raises `ValueError` for a cut stream, or one that declares another size than the tile's."""
    head = _jpeg_ls_head(data)
    if head is None:
        raise ValueError(f"not JPEG-LS: the tile begins with {data[:4].hex(' ')}")
    if head != (*tile_px, 8, samples):
        raise ValueError(f"JPEG-LS of {head[0]} × {head[1]} px in a tile of {tile_px[0]} × {tile_px[1]}")
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("the JPEG-LS stream has no end: truncated")


def _jpeg_ls_head(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, bits and samples of a JPEG-LS stream."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xF7:
            bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 4)
            return width, height, bits, samples
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _with_full_chroma(pairs: Pixels) -> Pixels:
    """YCbCr of pairs of pixels stored as Y Y Cb Cr: (height, width, 2) -> (height, width, 3)."""
    height, width = pairs.shape[:2]
    if width % 2:
        raise ValueError(f"halved chroma in rows of {width} px")
    quads = pairs.reshape(height, width // 2, 4)
    full = np.empty((height, width, 3), np.uint8)
    full[..., 0] = quads[..., :2].reshape(height, width)
    full[..., 1:] = np.repeat(quads[..., 2:], 2, axis=1)
    return full


def _sized(data: bytes | bytearray, *shape: int) -> Pixels:
    pixels = np.frombuffer(data, np.uint8)
    needed = int(np.prod(shape))
    if not needed <= len(pixels) <= needed + 1:  # padded to an even number
        raise ValueError(f"{len(pixels)} bytes for a tile of {needed}")
    return pixels[:needed].reshape(shape)
