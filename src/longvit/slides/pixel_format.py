"""Pixel format of a TIFF image: bits, samples and colours that can be read, and contradictions in its tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from longvit.errors import InputError
from longvit.slides.jpeg_file import read_jpeg_header
from longvit.slides.tiff_header import TiffHeader
from longvit.slides.tile_decoding import JPEG, MINISBLACK, MINISWHITE, PALETTE, RGB, YCBCR

_PHOTOMETRIC, _COLOUR_MAP, _EXTRA_SAMPLES, _SUBSAMPLING = 262, 320, 338, 530
_MASKS_AND_SENSORS = (4, 32803, 34892)  # values of PhotometricInterpretation that have one sample


def check_pixel_format(path: Path, header: TiffHeader) -> None:
    """Raises `InputError` for pixels other than 8-bit RGB, RGBA or grey, and for tags that contradict each other."""
    page = header.pages[0]
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise InputError(
            f"{path}: {page.bitspersample} bits per sample ({page.dtype}); only 8-bit RGB or grey is read, since the "
            f"range of deeper pixels is not known: convert it (`vips cast`, then `vips tiffsave --tile --pyramid`)"
        )
    if header.planes > 1:
        raise InputError(
            f"{path}: {header.planes} separate planes (channels, depths or times); only one RGB or grey image is read: "
            f"export it as RGB (bfconvert, QuPath)"
        )
    samples, photometric = page.samplesperpixel, page.photometric
    if samples not in (1, 3, 4):
        raise InputError(f"{path}: {samples} samples per pixel; only grey, RGB and RGBA are read")
    if photometric == YCBCR and page.compression != JPEG and _SUBSAMPLING not in page.tags:
        raise InputError(
            f"{path}: its tag PhotometricInterpretation says YCbCr, its tag YCbCrSubSampling is missing: damaged, or "
            f"written wrongly; copy or download it again, or export it as RGB (`vips colourspace`, QuPath)"
        )
    if photometric in (MINISWHITE, MINISBLACK) and _COLOUR_MAP in page.tags:
        raise InputError(
            f"{path}: it has a palette (ColorMap), but its tag PhotometricInterpretation says grey: damaged, or "
            f"written wrongly; copy or download it again, or export it as RGB (`vips colourspace`, QuPath)"
        )
    if samples == 4 and photometric == RGB and _EXTRA_SAMPLES not in page.tags:
        raise InputError(
            f"{path}: 4 samples per pixel, but its tag ExtraSamples is missing, so the meaning of the fourth is "
            f"unknown; damaged (copy or download it again), or keep three samples (`vips extract_band a.tif b.tif 0 "
            f"--n 3`)"
        )
    is_missing = _PHOTOMETRIC not in page.tags
    is_one_sample = photometric in (MINISWHITE, MINISBLACK, PALETTE)
    is_multi_sample = not is_one_sample and photometric not in _MASKS_AND_SENSORS
    if is_missing or (samples == 1 and not is_one_sample) or (samples > 1 and not is_multi_sample):
        stated = "is missing" if is_missing else f"says {getattr(photometric, 'name', photometric)}"
        raise InputError(
            f"{path}: {samples} samples per pixel, but its tag PhotometricInterpretation {stated}, so their colours "
            f"are unknown; damaged (copy or download it again), or export it as RGB (`vips colourspace`, QuPath)"
        )


def check_jpeg_colours(path: Path, page: tifffile.TiffPage, tile: bytes) -> None:
    """Raises `InputError` where a JPEG tile of the page contradicts the tag for the colours."""
    header = read_jpeg_header(tile)
    stated = {RGB: "RGB", YCBCR: "YCbCr"}.get(int(page.photometric))
    if header is not None and header.colours is not None and stated is not None and header.colours != stated:
        raise InputError(
            f"{path}: damaged, or written wrongly: its tag PhotometricInterpretation says {stated}, its JPEG "
            f"tiles are {header.colours}; copy or download it again, or convert it (`vips tiffsave --tile`)"
        )
