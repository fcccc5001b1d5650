"""Decoders of one TIFF tile: simplejpeg for JPEG, imagecodecs through tifffile for the rest.

Some codecs silently decode data that cannot be the tile: another size, gigabytes, a stream without its end. Such data
is refused before decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from longvit.slides.jpeg_2000 import check_jpeg_2000
from longvit.slides.jpeg_tile import REDUCTIONS, JpegTiles
from longvit.slides.pixel_reader import Rgb, UnsupportedError
from longvit.slides.tile_table import NO_COMPRESSION, PADDING_BYTES

JPEG_2000 = (33005, 34712)
MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
JPEG, _WEBP = 7, 50001
# 33003 (Aperio's JPEG 2000 in YCbCr with halved chroma) is left to OpenSlide.
_OTHER = {NO_COMPRESSION, 5, 8, 32773, 32946, 50000, _WEBP, *JPEG_2000}
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_COLOUR_MAP = 320
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class TileDecoder:
    """Decoder for the tiles of one page."""

    decode: Callable[[bytes, int], NDArray[np.uint8]]
    """Bytes and index -> uint8 (height, width, samples); 4 samples are RGBX."""
    decode_reduced: Callable[[bytes, int], NDArray[np.uint8]] | None = None
    """Bytes and reduction -> the same, reduced by one of `reductions`; None where the codec cannot."""
    reductions: tuple[int, ...] = (1,)


def tile_decoder(page: tifffile.TiffPage, tile_px: tuple[int, int], background: Rgb, in_pieces: bool) -> TileDecoder:
    """Decoder for the tiles of a page.

    `in_pieces`: the bytes are some rows of an uncompressed strip. Raises `UnsupportedError` for formats that only
    OpenSlide may read.
    """
    compression, photometric, samples = int(page.compression), int(page.photometric), page.samplesperpixel
    if compression == JPEG:
        if samples == 4 or photometric not in (MINISBLACK, RGB, YCBCR):
            raise UnsupportedError(f"JPEG tiles of {samples} samples, photometric {photometric}")
        colour = "grey" if samples == 1 or page.planarconfig == 2 else "rgb" if photometric == RGB else "ycbcr"
        if page.planarconfig == 2 and photometric == YCBCR:
            raise UnsupportedError("separate planes of YCbCr")
        tiles = JpegTiles(page.jpegtables, colour, tile_px)
        reductions = tuple(n for n in REDUCTIONS if page.is_tiled and tile_px[0] % n == tile_px[1] % n == 0) or (1,)
        return TileDecoder(lambda data, index: tiles.decode(data), tiles.decode, reductions)
    if compression not in _OTHER:
        raise UnsupportedError(f"compression {getattr(page.compression, 'name', compression)}")
    if photometric not in (MINISWHITE, MINISBLACK, RGB, PALETTE):
        raise UnsupportedError(f"photometric {getattr(page.photometric, 'name', photometric)}")
    if samples == 4 and page.planarconfig == 2:
        raise UnsupportedError("separate planes of RGBA")
    return TileDecoder(_GenericTiles(page, tile_px, background, in_pieces))


def _colours(page: tifffile.TiffPage) -> NDArray[np.uint8]:
    """Palette as uint8 (256, 3), rounded as in libtiff."""
    table = np.asarray(page.tags.valueof(_COLOUR_MAP, ()), np.uint32)
    if table.size != 3 * 256:
        raise UnsupportedError(f"a palette of {table.size} values instead of 768")
    return (table.reshape(3, 256).T * 255 // 65535).astype(np.uint8)


class _GenericTiles:
    """Decoder of every codec of tifffile and imagecodecs; blends RGBA with the background."""

    def __init__(self, page: tifffile.TiffPage, tile_px: tuple[int, int], background: Rgb, in_pieces: bool) -> None:
        self._decode: Callable[..., Any] = page.decode
        self._in_pieces = in_pieces
        self._samples = 1 if page.planarconfig == 2 else page.samplesperpixel
        self._jpeg_2000 = int(page.compression) in JPEG_2000
        self._webp = int(page.compression) == _WEBP
        self._plain_bytes = tile_px[0] * tile_px[1] * self._samples if int(page.compression) == NO_COMPRESSION else None
        self._invert = int(page.photometric) == MINISWHITE
        self._colours = _colours(page) if int(page.photometric) == PALETTE else None
        self._tile_px = tile_px
        self._background = background
        extra = page.extrasamples[0] if page.extrasamples and page.samplesperpixel == 4 else None
        self._alpha = int(extra) if extra is not None else None

    def __call__(self, data: bytes, index: int) -> NDArray[np.uint8]:
        if self._jpeg_2000:
            check_jpeg_2000(data, self._tile_px)
        if self._webp:
            check_webp(data, self._tile_px)
        if self._plain_bytes is not None and len(data) > self._plain_bytes + PADDING_BYTES:
            raise ValueError(f"{len(data)} bytes for a tile of {self._plain_bytes}")
        pixels: NDArray[np.uint8]
        if self._in_pieces:
            pixels = np.frombuffer(data, np.uint8).reshape(-1, self._tile_px[0], self._samples)
        else:
            pixels = np.asarray(self._decode(data, index)[0])[0]
        if self._invert:
            pixels = np.invert(pixels)
        if self._colours is not None:
            pixels = self._colours[pixels[..., 0]]
        if pixels.shape[2] == 4:
            pixels = self._on_background(pixels)
        return pixels

    def _on_background(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._alpha not in (_ASSOCIATED_ALPHA, _ALPHA):
            return pixels[..., :3]
        out = np.empty((*pixels.shape[:2], 3), np.uint8)
        background = np.asarray(self._background, np.float32)
        for y in range(0, len(pixels), _ROWS_AT_ONCE):  # a whole strip in float would take ten times its bytes
            part = pixels[y : y + _ROWS_AT_ONCE]
            alpha = part[..., 3:].astype(np.float32) / 255
            premultiplied = part[..., :3] * (alpha if self._alpha == _ALPHA else 1.0)
            on_background = premultiplied + (1 - alpha) * background
            out[y : y + _ROWS_AT_ONCE] = np.clip(np.rint(on_background), 0, 255)
        return out


def check_webp(data: bytes, tile_px: tuple[int, int]) -> None:
    """Raises `ValueError` for an image of another size than the tile's; up to 16,383 px a side would be decoded
    whole."""
    kind, size = data[12:16], (0, 0)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if kind == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8 ":
            size = (int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF)
        elif kind == b"VP8X":
            size = (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if size == (0, 0):
        raise ValueError(f"not WebP: the tile begins with {data[:4].hex(' ')}")
    if size[0] > tile_px[0] or size[1] > tile_px[1]:
        raise ValueError(f"WebP of {size[0]} × {size[1]} px in a tile of {tile_px[0]} × {tile_px[1]}")
