"""Decoding of one JPEG tile of a TIFF.

A TIFF keeps the tables that all tiles share in the tag JPEGTables. Its tag PhotometricInterpretation states the colour
space, which overrides the stream (as in libtiff). The stream for the decoder is therefore: SOI, an Adobe marker with
the colour space, the tables, the rest of the tile.

Decoding is strict: a stream that libjpeg would repair with a warning counts as damaged. JPEG has no checksum. Of 300
random damages (1 to 32 bytes overwritten inside the tiles of the real slide) strict decoding let 59 pass, OpenSlide 82,
lenient decoding all of them (2026-11). No decoder detects the rest.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from longvit.slides.jpeg_file import read_jpeg_header
from longvit.slides.pixel_reader import Block

# Several scans keep up to six bytes per pixel beside the pixels; a larger tile must have a single scan.
_MAX_PX_OF_SCANS = 2**24
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
# APP14, 14 bytes: "Adobe", version 100, flags 0, flags 0; the transform byte follows (0: RGB, 1: YCbCr).
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


REDUCTIONS = (1, 2, 4, 8)
"""Factors of libjpeg-turbo's scaled inverse DCT: the pixels of an 8 × 8 block come from its lowest frequencies."""


class JpegTiles:
    """Decoder for the tiles of one TIFF page. `colour` is "rgb", "ycbcr" or "grey", as in the page's tags."""

    def __init__(self, tables: bytes | None, colour: str, tile_px: tuple[int, int]) -> None:
        self._grey = colour == "grey"
        self._rgb = colour == "rgb"
        self._tile_px = tile_px
        self._max_px = tile_px[0] * tile_px[1]
        shared = (tables or b"").removeprefix(_SOI).removesuffix(_EOI)
        adobe = b"" if self._grey else _ADOBE + (b"\0" if self._rgb else b"\1")
        self._prefix = _SOI + adobe + shared

    def decode(self, data: bytes, reduction: int = 1) -> Block:
        """RGBX uint8 (height, width, 4), or (height, width, 1) for grey. Raises `ValueError` with the damage.

        `reduction`: one of `REDUCTIONS`, a divisor of both sides of the tile; the pixels are reduced by it.
        """
        if data[:2] != _SOI:
            raise ValueError(f"not JPEG: the tile begins with {data[:2].hex(' ') or 'nothing'}")
        start = 2
        if self._rgb and data[2:4] == b"\xff\xe0":
            # A JFIF marker would turn RGB into YCbCr, in spite of the Adobe marker.
            start = 4 + int.from_bytes(data[4:6], "big")
        # The buffer also caps the memory: a damaged header may declare 65,535 × 65,535 px.
        channels = 1 if self._grey else 4
        buffer = np.empty(self._max_px * channels, np.uint8)
        stream = self._prefix + data[start:]
        if self._max_px > _MAX_PX_OF_SCANS:
            header = read_jpeg_header(stream)
            if header is not None and header.coefficient_bytes_per_px:
                raise ValueError(f"{self._max_px} px in several scans: too much memory")
        scaled = {} if reduction == 1 else self._scaled(stream, reduction)
        pixels = simplejpeg.decode_jpeg(stream, "GRAY" if self._grey else "RGBX", buffer=buffer, strict=True, **scaled)
        return np.asarray(pixels)

    def _scaled(self, stream: bytes, reduction: int) -> dict[str, int]:
        """Arguments of the decoder for a reduced tile; `ValueError` where the stream has another size than the tile."""
        height, width = simplejpeg.decode_jpeg_header(stream, strict=True)[:2]
        if (width, height) != self._tile_px:
            raise ValueError(f"the tile holds {width} × {height} px, not {self._tile_px[0]} × {self._tile_px[1]}")
        return {"min_width": width // reduction, "min_height": height // reduction, "min_factor": reduction}
