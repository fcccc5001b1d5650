"""Every byte of a DICOM slide outside its coded pixels, changed: refused, reported, or the same pixels.

Only a size that needs the same tiles, and the tables that a codec decodes with, are stated once and under no checksum.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults.made_slides import Kind, layout
from tests.slides.dicom_files import write_level
from tests.slides.slide_files import tissue

from longvit.errors import InputError
from longvit.slides.reader import open_slide

WIDTH, HEIGHT = 128, 100
SIZES = ("00480006", "00480007")
_ALONE = {f"codec {marker}" for marker in ("c0", "c4", "da", "db", "52", "5c")}
"""JPEG: frame, Huffman codes, scan, quantisation. JPEG 2000: style of coding, quantisation."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "JPEG": {"codec": "jpeg"},
    "JPEG, extended table": {"codec": "jpeg", "table": "extended"},
    "JPEG-LS, sparse": {"codec": "jpegls", "sparse": True},
    "JPEG 2000 in fragments": {"codec": "jpeg2000", "fragments": 3},
    "RLE without table": {"codec": "rle", "table": "empty"},
    "plain": {"codec": "plain"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_no_byte_outside_the_coded_pixels_changes_them_silently(tmp_path: Path, name: str) -> None:
    logging.disable()
    try:
        found = list(_silent_changes(tmp_path / "a.dcm", **LAYOUTS[name]))
    finally:
        logging.disable(logging.NOTSET)
    assert not [place for place in found if place not in SIZES and place not in _ALONE]


def _silent_changes(path: Path, **options: Any) -> Iterator[str]:
    """Fields in which a changed byte alters pixels without being reported."""
    series = {"series": "1.2.3", "study": "1.2.4", "frame": "1.2.5"}
    write_level(path, tissue(WIDTH, HEIGHT), series, instance="1.2.6", **options)
    content = path.read_bytes()
    places = layout(Kind("any", ".dcm", "any", lambda _: None, "dicom"), content)
    first_stream = [span for _, span in places.codec if span[1] <= places.data[0][1]]
    is_pixel = np.zeros(len(content), bool)
    for start, end in places.data:
        is_pixel[start:end] = True
    for start, end in first_stream:
        is_pixel[start:end] = False
    rng = np.random.default_rng(0)
    whole = open_slide(path).read_region(0, 0, 0, WIDTH, HEIGHT)
    for at in np.flatnonzero(~is_pixel[128:]) + 128:
        changed = content[at] ^ (1 if rng.integers(2) else int(rng.integers(1, 256)))
        path.write_bytes(content[:at] + bytes([changed]) + content[at + 1 :])
        if _differs(path, whole):
            yield places.names(int(at))


def _differs(path: Path, whole: np.ndarray) -> bool:
    try:
        with open_slide(path) as slide:
            if slide.size_px != (WIDTH, HEIGHT):
                return True
            differs = (slide.read_region(0, 0, 0, WIDTH, HEIGHT) != whole).any(2)
            for tile in slide.bad_tiles:
                differs[tile.y_level0_px :, tile.x_level0_px :][: tile.height_px, : tile.width_px] = False
            return bool(differs.any())
    except InputError:
        return False
