"""PNG and JPEG: one level, decoded whole at the first read. For fields and small slides; a large one wants a TIFF."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from longvit.errors import InputError
from longvit.slides.file_kind import Kind
from longvit.slides.mpp import Candidate, resolution_candidate
from longvit.slides.pixel_reader import BadTile, Block, Level, PixelReader, Rgb, fill_outside, one_line

# 2^28 px are 1 GiB of RGBX; a square of 16,384 px.
MAX_PX = 2**28
_BAND_PX = 256
_PNG_DEPTH_BYTE = 24


class ImageFileReader(PixelReader):
    """A PNG or JPEG of at most `MAX_PX` pixels. Palette, grey, CMYK become RGB; transparent becomes background.

    A damaged file raises `InputError` at the first read: it has no tiles that could be lost alone. An EXIF
    orientation is not applied: coordinates are those of the pixels as stored.
    """

    name = "image"
    version = f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"

    def __init__(self, path: Path, kind: Kind, background: Rgb) -> None:
        self.path = path
        self.background = background
        self.kind = kind
        with self._open() as image:
            width_px, height_px = image.size
            self._mode = image.mode
            self.candidates = tuple(_candidates(image, kind))
        if width_px < 1 or height_px < 1 or width_px * height_px > MAX_PX:
            raise InputError(
                f"{path}: the header declares {width_px} × {height_px} px; a {kind.value} is decoded whole and may "
                f"have at most {MAX_PX} px: convert it to a tiled TIFF (`vips tiffsave --tile --pyramid`)"
            )
        if kind is Kind.PNG and _png_depth(path) > 8:
            raise InputError(
                f"{path}: 16 bits per sample; only 8-bit pixels are read, since the range of deeper ones is not known"
            )
        tile_px = (width_px, min(_BAND_PX, height_px))
        self.levels = (Level(0, (width_px, height_px), 1.0, tile_px, compression=kind.value.lower()),)
        self._lock = threading.Lock()
        self._pixels: Block | None = None

    def close(self) -> None:
        self._pixels = None

    def read_block(self, level: int, x_px: int, y_px: int, out: Block) -> list[BadTile]:
        left, top, right, bottom = fill_outside(out, x_px, y_px, self.levels[level].size_px, self.background)
        if right > left and bottom > top:
            part = self._decoded()[y_px + top : y_px + bottom, x_px + left : x_px + right]
            out[top:bottom, left:right, :3] = part[..., :3]
        return []

    def _decoded(self) -> Block:
        with self._lock:
            if self._pixels is None:
                try:
                    self._pixels = self._decode()
                except (OSError, ValueError, SyntaxError) as error:
                    raise _damaged(self.path, error) from error
            return self._pixels

    def _decode(self) -> Block:
        if self.kind is Kind.JPEG and self._mode in ("RGB", "L"):
            # strict: what libjpeg would mend with a warning is an error
            return np.asarray(simplejpeg.decode_jpeg(self.path.read_bytes(), "RGB", strict=True))
        with self._open() as image:
            if image.has_transparency_data:
                pixels = image.convert("RGBA")
                canvas = Image.new("RGBA", pixels.size, (*self.background, 255))
                canvas.alpha_composite(pixels)
                return np.asarray(canvas)
            return np.asarray(image.convert("RGB"))

    def _open(self) -> Image.Image:
        # The classes, not Image.open: that one warns about sizes which are checked here.
        opener: Callable[[str | os.PathLike[str]], Image.Image]
        opener = PngImageFile if self.kind is Kind.PNG else JpegImageFile
        try:
            return opener(self.path)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise _damaged(self.path, error) from error


def _candidates(image: Image.Image, kind: Kind) -> list[Candidate]:
    source = "png.pHYs" if kind is Kind.PNG else "jpeg.density"
    dpi = image.info.get("dpi")
    if not dpi:
        return [Candidate(source)]
    return [resolution_candidate(source, float(dpi[0]), float(dpi[1]), 25_400.0)]


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: damaged or cut off ({one_line(error)}); copy or download it again")


def _png_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(_PNG_DEPTH_BYTE + 1)[_PNG_DEPTH_BYTE]
