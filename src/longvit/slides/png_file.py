"""A PNG checked and decoded: every chunk has a checksum and the last one is IEND, which decoders do not ask for.

A copy that broke off in a file of its full length ends in zeros, and zeros are valid Deflate: without the checksums the
lower part of the picture is another one.
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
class PngFacts:
    """What stands in front of the pixels."""

    width_px: int
    height_px: int
    depth: int
    """Bits per sample."""
    samples: int
    """Per pixel, once decoded."""
    orientation: int
    """As EXIF has it, 1 to 8."""

    @property
    def bytes_per_px(self) -> float:
        """At the peak of decoding: grey with transparency is decoded as such and then made RGBX."""
        return 6.0 if self.samples == 2 else float(self.samples)


def png_facts(path: Path) -> PngFacts:
    """Reads the chunks in front of the pixels, and skips over the others. Raises `ValueError` where they are no PNG."""
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
    return PngFacts(width_px, height_px, header[8], samples, orientation)


def exif_orientation(data: bytes) -> int:
    """The orientation, 1 to 8, in a block of EXIF; 1 where it states none that EXIF knows."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(data)
        value = exif.get(0x0112, 1)
    # Damage in there costs no pixel.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode_png(data: bytes, background: Rgb) -> NDArray[np.uint8]:
    """uint8 (height, width, 1, 3 or 4): grey, RGB, or RGBX with transparent on the background.

    Raises `ValueError` for a chunk whose checksum is wrong and for a file without an end.
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
        _put_on(background, pixels)
    return pixels


def _check_chunks(data: bytes) -> None:
    view, at = memoryview(data), _SIGNATURE_BYTES
    while at + 12 <= len(data):
        length, name = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"its chunk {name!r} reaches beyond the end of the file")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"the checksum of its chunk {name!r} at byte {at} is wrong")
        if name == b"IEND":
            return
        at = end + 4
    raise ValueError("it has no end (IEND)")


def _put_on(background: Rgb, pixels: NDArray[np.uint8]) -> None:
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
