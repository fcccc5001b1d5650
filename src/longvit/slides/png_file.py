"""Strict decoding of a PNG: the checksum of every chunk and the final IEND are verified, which decoders skip.

An aborted copy preallocated to full length ends in zeros, and zeros are valid Deflate. Without the checksums the lower
part of the image would be silently wrong.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.slides.pixel_reader import Rgb

_SIGNATURE_BYTES = 8
_ROWS_AT_ONCE = 256
# Colour types of the header.
_RGB, _PALETTE, _GREY_ALPHA, _RGBA = 2, 3, 4, 6


@dataclass(frozen=True)
class PngHeader:
    """Content of the chunks before the pixels."""

    width_px: int
    height_px: int
    depth: int
    """Bits per sample."""
    samples: int
    """Samples per pixel, once decoded."""
    orientation: int
    """EXIF orientation, 1 to 8."""

    @property
    def bytes_per_px(self) -> float:
        """Bytes per pixel at the peak of decoding: grey with transparency is decoded as such and then converted to
        RGBX."""
        return 6.0 if self.samples == 2 else float(self.samples)


def read_png_header(path: Path) -> PngHeader:
    """Header from the chunks before the pixels; the others are skipped. Raises `ValueError` for an invalid PNG."""
    with path.open("rb") as file:
        file.seek(_SIGNATURE_BYTES)
        header, orientation, transparent = b"", 1, False
        while len(head := file.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name in (b"IHDR", b"eXIf"):
                data = file.read(min(length, 1 << 16))
                header = data if name == b"IHDR" else header
                orientation = exif_orientation(data) if name == b"eXIf" else orientation
                file.seek(length - len(data), io.SEEK_CUR)
            else:
                transparent |= name == b"tRNS"
                file.seek(length, io.SEEK_CUR)
            file.seek(4, io.SEEK_CUR)  # the checksum
    if len(header) != 13:
        raise ValueError("it has no header")
    width_px, height_px = (int.from_bytes(header[at : at + 4], "big") for at in (0, 4))
    kind = header[9]
    samples = {_RGB: 3, _PALETTE: 3, _GREY_ALPHA: 2, _RGBA: 4}.get(kind, 1)
    if transparent and kind not in (_GREY_ALPHA, _RGBA):
        samples += 1
    return PngHeader(width_px, height_px, header[8], samples, orientation)


def exif_orientation(data: bytes) -> int:
    """Orientation, 1 to 8, in a block of EXIF; 1 where it states none."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(data)
        value = exif.get(0x0112, 1)
    # Damage in EXIF does not affect the pixels.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode_png(data: bytes, background: Rgb) -> NDArray[np.uint8]:
    """uint8 (height, width, 1, 3 or 4): grey, RGB, or RGBX with transparency blended with the background.

    Raises `ValueError` for a chunk with a wrong checksum and for a file without an end.
    """
    import imagecodecs

    _check_chunks(data)
    pixels: NDArray[np.uint8] = np.asarray(imagecodecs.png_decode(data))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels of type {pixels.dtype}")
    if pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    if pixels.shape[2] == 4:
        _blend_with(background, pixels)
    return pixels


def _check_chunks(data: bytes) -> None:
    view, at = memoryview(data), _SIGNATURE_BYTES
    while at + 12 <= len(data):
        length, name = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"its chunk {name!r} extends beyond the end of the file")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"the checksum of its chunk {name!r} at byte {at} is wrong")
        if name == b"IEND":
            return
        at = end + 4
    raise ValueError("it has no end (IEND)")


def _blend_with(background: Rgb, pixels: NDArray[np.uint8]) -> None:
    """Blends RGBA with the background, in place."""
    for y in range(0, len(pixels), _ROWS_AT_ONCE):
        part = pixels[y : y + _ROWS_AT_ONCE]
        alpha = part[..., 3]
        if int(alpha.min()) == 255:
            continue
        for channel in range(3):
            colour = part[..., channel]
            sums = colour * alpha.astype(np.uint32) + background[channel] * (255 - alpha.astype(np.uint32))
            colour[...] = (sums + 127) // 255
