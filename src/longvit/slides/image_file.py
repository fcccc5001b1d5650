"""PNG and JPEG reader: one level, decoded whole at the first read. For fields of view and small slides; use TIFF for
large ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import PIL
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from longvit.errors import InputError, one_line
from longvit.slides.file_kind import Kind
from longvit.slides.jpeg_file import decode_jpeg, read_jpeg_header
from longvit.slides.mpp import Candidate, resolution_candidate
from longvit.slides.pixel_reader import BadTile, Block, Level, PixelReader, Rgb, check_side, fill_outside
from longvit.slides.png_file import decode_png, read_png_header

MAX_BYTES = 5 * 2**27
"""Peak memory of decoding, without the file itself: 0.67 GB, a square of 14,900 px in RGB."""
_TILE_PX = (1024, 256)  # pieces in which the decoded image is filtered
_HEAD_BYTES = 1 << 20  # metadata in front of the scan is seldom longer
_ORIENTATION = 0x0112


class ImageFileReader(PixelReader):
    """Reader of a PNG or JPEG whose decoding takes at most `MAX_BYTES`. Palette, grey and CMYK become RGB; transparency
    becomes background.

    A damaged file raises `InputError` at the first read: it has no tiles that could be lost separately. Pixels are as
    stored; `orientation` (EXIF, 1 to 8) gives their intended position.
    """

    name = "image"
    version = f"imagecodecs {imagecodecs.__version__}, simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}"

    def __init__(self, path: Path, kind: Kind, background: Rgb) -> None:
        self.path = path
        self.background = background
        self.kind = kind
        with self._open() as image:
            width_px, height_px = image.size
            self.candidates = tuple(_candidates(image, kind))
            self.orientation, self._components, bytes_per_px = self._header(image)
        if width_px < 1 or height_px < 1 or width_px * height_px * bytes_per_px > MAX_BYTES:
            raise InputError(
                f"{path}: the header declares {width_px} × {height_px} px; a {kind.value} is decoded whole, which "
                f"takes {bytes_per_px:g} bytes per pixel here and may take {MAX_BYTES / 1e6:.0f} MB: convert it to a "
                f"tiled TIFF (`vips tiffsave --tile --pyramid`)"
            )
        check_side(path, width_px, height_px)
        tile_px = (min(_TILE_PX[0], width_px), min(_TILE_PX[1], height_px))
        self.levels = (Level(0, (width_px, height_px), 1.0, tile_px, compression=kind.value.lower()),)
        self._lock = threading.Lock()
        self._pixels: Block | None = None

    def _header(self, image: Image.Image) -> tuple[int, int, float]:
        """Orientation, components, and bytes per pixel at the peak of decoding."""
        try:
            if self.kind is Kind.PNG:
                png = read_png_header(self.path)
                if png.depth > 8:
                    raise InputError(
                        f"{self.path}: 16 bits per sample; only 8-bit pixels are read, since the range of deeper ones "
                        f"is not known"
                    )
                return png.orientation, png.samples, png.bytes_per_px
            value = image.getexif().get(_ORIENTATION, 1)
            with self.path.open("rb") as file:
                jpeg = read_jpeg_header(file.read(_HEAD_BYTES)) or read_jpeg_header(self.path.read_bytes())
            if jpeg is None or (jpeg.width_px, jpeg.height_px) != image.size:
                raise ValueError("its markers do not lead to a scan")
            orientation = value if isinstance(value, int) and 1 <= value <= 8 else 1
            return orientation, jpeg.components, jpeg.bytes_per_px
        except InputError:
            raise
        # Damaged metadata breaks the parser in many ways.
        except Exception as error:
            raise _damaged(self.path, error) from error

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
                except OSError as error:
                    raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
                # Decoders raise errors of any type on damaged bytes.
                except Exception as error:
                    raise _damaged(self.path, error) from error
            return self._pixels

    def _decode(self) -> Block:
        data = self.path.read_bytes()
        pixels = decode_png(data, self.background) if self.kind is Kind.PNG else decode_jpeg(data, self._components)
        if (pixels.shape[1], pixels.shape[0]) != self.levels[0].size_px:
            raise ValueError(f"it holds {pixels.shape[1]} × {pixels.shape[0]} px")
        return pixels

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
    if dpi:
        return [resolution_candidate(source, float(dpi[0]), float(dpi[1]), 25_400.0)]
    # Without a unit the two numbers give only the aspect ratio of a pixel.
    x, y = image.info.get("aspect") or image.info.get("jfif_density") or (0, 0)
    return [resolution_candidate(source, float(x), float(y), None) if x and y else Candidate(source)]


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: damaged or cut off ({one_line(error)}); copy or download it again")
