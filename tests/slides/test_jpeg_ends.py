"""JPEG tiles without their end or with damaged restart markers are bad, though libjpeg repairs them with a warning."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from tests.faults.made_slides import TILE_PX, kinds, layout
from tests.slides.dicom_files import tiles_of, write_level
from tests.slides.slide_files import tissue

from longvit.slides.reader import open_slide

END = b"\xff\xd9"
TILE = 2
"""Number of the tile that is damaged."""


def without_end(stream: bytes) -> bytes:
    return stream.removesuffix(END) + b"\0\0"


def half_an_end(stream: bytes) -> bytes:
    return stream.removesuffix(END) + b"\xff\0"


def ends_early(stream: bytes) -> bytes:
    return stream[:-22] + END + bytes(20)


def restarts(stream: bytes) -> list[int]:
    return [at for at in range(len(stream) - 1) if stream[at] == 0xFF and 0xD0 <= stream[at + 1] <= 0xD7]


def another_restart(stream: bytes) -> bytes:
    at = restarts(stream)[2]
    return stream[: at + 1] + bytes([0xD0 + (stream[at + 1] + 3) % 8]) + stream[at + 2 :]


def lost_restart(stream: bytes) -> bytes:
    at = restarts(stream)[2]
    return stream[:at] + stream[at + 2 :]


def lost_interval(stream: bytes) -> bytes:
    places = restarts(stream)
    return stream[: places[2]] + stream[places[3] :]


def lost_round_of_intervals(stream: bytes) -> bytes:
    """Eight intervals are lost, so the numbers of the markers still fit."""
    places = restarts(stream)
    return stream[: places[2]] + stream[places[10] :]


def with_restarts(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0, restart_marker_blocks=4)
    return stream.getvalue()


@pytest.mark.parametrize("damage", [without_end, half_an_end, ends_early])
@pytest.mark.parametrize("name", ["TIFF JPEG", "TIFF JPEG YCbCr", "TIFF JPEG grey", "SVS JPEG", "DICOM JPEG extended"])
def test_a_tile_without_its_end_is_bad(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    kind = kinds()[name]
    path = tmp_path / f"a{kind.suffix}"
    kind.write(path)
    content = path.read_bytes()
    start, end = sorted(layout(kind, content).data, key=lambda span: span[0])[TILE]
    end = start + len(content[start:end].rstrip(b"\0"))
    after = damage(content[start:end])
    path.write_bytes(content[:start] + after + content[start + len(after) :])
    for reduction in (1, 2):
        slide = open_slide(path)
        width_px, height_px = (side // reduction for side in slide.size_px)
        bad = slide.read_block(0, 0, 0, np.zeros((height_px, width_px, 4), np.uint8), reduction=reduction)
        assert [(tile.x_level0_px, tile.y_level0_px) for tile in bad] == [(TILE * TILE_PX, 0)], reduction


@pytest.mark.parametrize("damage", [another_restart, lost_restart, lost_interval, lost_round_of_intervals])
@pytest.mark.parametrize("suffix", [".tif", ".dcm"])
def test_a_tile_with_damaged_restart_markers_is_bad(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    pixels = tissue(256, 128)
    tiles = [with_restarts(tile) for tile in tiles_of(pixels)]

    def write(path: Path) -> Path:
        if suffix == ".tif":
            tile = {"tile": (TILE_PX, TILE_PX), "photometric": "ycbcr", "subsampling": (1, 1)}
            with tifffile.TiffWriter(path) as writer:
                writer.write(iter(tiles), shape=pixels.shape, dtype=np.uint8, compression="jpeg", metadata=None, **tile)
            return path
        data = dcmread(write_level(path, pixels))
        data.PixelData, data.PhotometricInterpretation = encapsulate(tiles), "YBR_FULL"
        data.save_as(path)
        return path

    whole = open_slide(write(tmp_path / f"whole{suffix}"))
    expected = whole.read_region(0, 0, 0, 256, 128)
    assert not whole.bad_tiles
    assert np.abs(expected.astype(int) - pixels).mean() < 3
    tiles[TILE] = damage(tiles[TILE])
    slide = open_slide(write(tmp_path / f"a{suffix}"))
    found = slide.read_region(0, 0, 0, 256, 128)
    assert [(tile.x_level0_px, tile.y_level0_px) for tile in slide.bad_tiles] == [(TILE * TILE_PX, 0)]
    expected[:TILE_PX, TILE * TILE_PX : (TILE + 1) * TILE_PX] = 255
    assert np.array_equal(found, expected)
