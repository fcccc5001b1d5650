"""Strict decoding of a JPEG file in any mode, and the memory that decoding takes.

Strict: damage that libjpeg would repair with a warning is an error. A scan has no checksum, so a changed byte may pass
unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_ROWS_AT_ONCE = 256
_SOS, _JFIF, _ADOBE = 0xDA, 0xE0, 0xEE
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}


@dataclass(frozen=True)
class JpegHeader:
    """Content of the markers before the scan."""

    width_px: int
    height_px: int
    components: int
    coefficient_bytes_per_px: float
    """Bytes per pixel that libjpeg keeps of an image in several scans; 0 for one scan."""
    colours: str | None
    """"RGB" or "YCbCr" where the stream is unambiguous (an Adobe marker, names, halved chroma), else None."""
    is_jfif: bool
    """True for a JFIF marker, which stands for YCbCr or grey."""

    @property
    def bytes_per_px(self) -> float:
        """Bytes per pixel at the peak of decoding."""
        return self.components + self.coefficient_bytes_per_px


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Header from the markers before the first scan; None where there is no scan."""
    at = 2
    frame: tuple[int, int, int, float, bool] | None = None
    colours: str | None = None
    is_jfif = False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        body = data[at + 4 : at + 2 + length]
        if marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
            colours = {0: "RGB", 1: "YCbCr"}.get(body[11], colours)
        is_jfif = is_jfif or (marker == _JFIF and body[:5] == b"JFIF\0")
        if marker in _FRAMES and len(body) >= 6:
            height_px, width_px = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            factors = [body[i] for i in range(7, 6 + 3 * body[5], 3) if i < len(body)]
            across, down = max((f >> 4 for f in factors), default=1), max((f & 15 for f in factors), default=1)
            samples_per_px = sum((f >> 4) * (f & 15) for f in factors) / max(1, across * down)
            if body[5] == 3 and body[6:15:3] == b"RGB":
                colours = "RGB"
            elif body[5] == 3 and len(set(factors)) > 1:
                colours = "YCbCr"
            frame = (width_px, height_px, body[5], samples_per_px, marker in _PROGRESSIVE)
        if marker == _SOS and frame is not None and body:
            width_px, height_px, components, samples_per_px, progressive = frame
            has_several_scans = progressive or body[0] < components
            scan_bytes = 2 * samples_per_px if has_several_scans else 0.0
            return JpegHeader(width_px, height_px, components, scan_bytes, colours, is_jfif)
        at += 2 + length
    return None


def decode_jpeg(data: bytes, components: int) -> NDArray[np.uint8]:
    """uint8 (height, width, 1, 3 or 4): grey, RGB, or RGBX made of CMYK. Raises `ValueError` for damage."""
    colours = {1: "GRAY", 4: "CMYK"}.get(components, "RGB")
    pixels: NDArray[np.uint8] = np.asarray(simplejpeg.decode_jpeg(data, colours, strict=True))
    if components == 4:
        _to_rgb(pixels)
    return pixels


def _to_rgb(cmyk: NDArray[np.uint8]) -> None:
    """Converts CMYK as Adobe writes it into JPEG (inverted: 255 means no ink) to RGBX, in place."""
    for y in range(0, len(cmyk), _ROWS_AT_ONCE):
        part = cmyk[y : y + _ROWS_AT_ONCE]
        black = part[..., 3].astype(np.uint32)
        for channel in range(3):
            part[..., channel] = (part[..., channel] * black + 127) // 255
