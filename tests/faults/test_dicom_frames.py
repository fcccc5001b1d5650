"""A DICOM slide whose sizes, frames and bytes contradict each other is refused before OpenSlide opens it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from tests.slides.slide_files import dicom_series, halved, overwrite, tissue, write_dicom

from longvit.errors import InputError
from longvit.slides.reader import open_slide

WIDTH, HEIGHT = 384, 256  # 24 tiles of 64 px
# Keeps the process from a size that costs minutes: a check that fails shows in seconds.
pytestmark = pytest.mark.timeout(60)


def changed(path: Path, *, plain: bool = False, **elements: Any) -> Path:
    write_dicom(path, tissue(WIDTH, HEIGHT), 0.0005, dicom_series())
    data = pydicom.dcmread(path)
    if plain:
        pixels = tissue(WIDTH, HEIGHT)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.PhotometricInterpretation = "RGB"
        data.PixelData = b"".join(
            np.ascontiguousarray(pixels[y : y + 64, x : x + 64]).tobytes()
            for y in range(0, HEIGHT, 64)
            for x in range(0, WIDTH, 64)
        )
        data["PixelData"].is_undefined_length = False
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def table_of_frames(path: Path) -> int:
    return path.read_bytes().index(b"\xe0\x7f\x10\x00OB") + 20


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_slide(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TotalPixelMatrixColumns", 60_000),
        ("TotalPixelMatrixColumns", 4_000_000),
        ("TotalPixelMatrixRows", 60_000),
        ("TotalPixelMatrixRows", 128),
        ("Rows", 32),
        ("Rows", 128),
        ("Columns", 32),
        ("Columns", 65_535),
        ("NumberOfFrames", 23),
        ("NumberOfFrames", 1),
    ],
)
def test_sizes_that_need_another_number_of_frames_are_refused(
    tmp_path: Path, name: str, value: int, plain: bool
) -> None:
    assert "frames, it states" in refusal(changed(tmp_path / "a.dcm", plain=plain, **{name: value}))


@pytest.mark.parametrize("name", ["TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Rows", "Columns"])
def test_a_size_of_0_is_refused(tmp_path: Path, name: str) -> None:
    assert "damaged" in refusal(changed(tmp_path / "a.dcm", **{name: 0}))


def test_a_size_that_no_slide_has_is_refused(tmp_path: Path) -> None:
    assert "more than the 4194304 px" in refusal(changed(tmp_path / "a.dcm", TotalPixelMatrixRows=2**32 - 1))


def test_plain_pixels_of_another_length_are_refused(tmp_path: Path) -> None:
    assert "24 frames need 294912 bytes of pixels, it has 294910" in refusal(
        changed(tmp_path / "a.dcm", plain=True, PixelData=bytes(294_910))
    )
    whole = changed(tmp_path / "a.dcm", plain=True)
    assert open_slide(whole).size_px == (WIDTH, HEIGHT)
    whole.write_bytes(whole.read_bytes()[:-1000])
    assert "beyond the end of the file" in refusal(whole)


@pytest.mark.parametrize("value", [2**32 - 1, 2**31, 5_000_000, 0])
def test_a_table_of_frames_that_leads_elsewhere_is_refused(tmp_path: Path, value: int) -> None:
    """OpenSlide follows it beyond the end: the process ends without a word."""
    path = changed(tmp_path / "a.dcm")
    overwrite(path, table_of_frames(path) + 4 * 5, struct.pack("<I", value))
    assert "its table of frames is out of order" in refusal(path)


def test_a_table_of_too_few_frames_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.dcm")
    overwrite(path, table_of_frames(path) - 4, struct.pack("<I", 92))
    assert "its table of 24 frames has 92 bytes" in refusal(path)


def test_one_damaged_file_of_a_series_is_named(tmp_path: Path) -> None:
    series = dicom_series()
    write_dicom(tmp_path / "0.dcm", tissue(WIDTH, HEIGHT), 0.0005, series)
    write_dicom(tmp_path / "1.dcm", halved(tissue(WIDTH, HEIGHT)), 0.001, series, number=2)
    assert len(open_slide(tmp_path).levels) == 2
    data = pydicom.dcmread(tmp_path / "1.dcm")
    data.Rows = 32
    data.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=r"1\.dcm: damaged.*192 × 128 px in tiles of 64 × 32 need 12 frames"):
        open_slide(tmp_path)


def test_frames_without_a_table_and_with_a_list_are_read(tmp_path: Path) -> None:
    """Both are lawful: a table of no bytes, and one item per frame before the pixels."""
    from pydicom.dataset import Dataset
    from pydicom.encaps import encapsulate, generate_frames

    path = changed(tmp_path / "a.dcm")
    data = pydicom.dcmread(path)
    frames = list(generate_frames(data.PixelData, number_of_frames=24))
    data.PixelData = encapsulate(frames, has_bot=False)
    data["PixelData"].is_undefined_length = True
    data.PerFrameFunctionalGroupsSequence = [Dataset() for _ in frames]
    data.save_as(path, enforce_file_format=True)
    assert open_slide(path).size_px == (WIDTH, HEIGHT)
