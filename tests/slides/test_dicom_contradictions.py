"""DICOM files that contradict each other or themselves: refused in one line, or left out with a note; never read."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from tests.slides.dicom_files import TILE_PX, positions_of, tiles_of, write_instance, write_level
from tests.slides.slide_files import dicom_series, halved, tissue
from tests.slides.test_dicom import HEIGHT, WIDTH, check, image, pixels_of, refusal

from longvit.slides.reader import open_slide

DOUBLE_MM = (0.001, 0.001)


def two_levels(folder: Path, second: dict[str, Any] | None = None, **first: Any) -> dict[str, str]:
    series = dicom_series()
    write_level(folder / "0.dcm", image(), series, codec="jpegls", **first)
    options = {"codec": "jpegls", "spacing_mm": DOUBLE_MM} | (second or {})
    write_level(folder / "1.dcm", halved(image()), series, **options)
    return series


def sizes(path: Path) -> list[tuple[int, int]]:
    return [level.size_px for level in open_slide(path).levels]


# Two statements of one thing


def test_a_copy_with_one_other_byte_is_no_copy(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec="plain")
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    (tmp_path / "b.dcm").write_bytes(content)
    os.utime(tmp_path / "b.dcm", ns=(0, path.stat().st_mtime_ns))
    assert "b.dcm: the SOPInstanceUID of a.dcm, but another content" in refusal(tmp_path)


def test_a_level_of_another_spacing_is_not_used(tmp_path: Path) -> None:
    two_levels(tmp_path, {"spacing_mm": (0.003, 0.003)})
    slide = check(tmp_path, image())
    assert [level.size_px for level in slide.levels] == [(WIDTH, HEIGHT)]
    assert slide.notes == ("its level of 150 × 100 px is not used: its PixelSpacing is 3 µm, its size gives 1 µm",)


def test_a_level_of_another_imaged_volume_is_not_used(tmp_path: Path) -> None:
    """A part of the slide at full resolution has the spacing of level 0, and so has a level with a copied header."""
    whole = {"ImagedVolumeWidth": 0.15, "ImagedVolumeHeight": 0.1}
    part = {"ImagedVolumeWidth": 0.075, "ImagedVolumeHeight": 0.05}
    two_levels(tmp_path, {"spacing_mm": (0.0005, 0.0005), **part}, **whole)
    slide = check(tmp_path, image())
    assert len(slide.levels) == 1
    assert "its ImagedVolumeWidth and Height differ from those of level 0" in slide.notes[0]
    two_levels(tmp_path, {"spacing_mm": (0.0005, 0.0005), **whole}, **whole)
    slide = check(tmp_path, image())
    assert len(slide.levels) == 2
    assert slide.notes == ("its level of 150 × 100 px: its PixelSpacing is 0.5 µm, its size gives 1 µm",)
    two_levels(tmp_path, whole, **whole)
    assert not check(tmp_path, image()).notes


@pytest.mark.parametrize("field", ["SpecimenLabelInImage", "FrameType"])
@pytest.mark.parametrize("side_px", [120, 520])  # smaller and larger than level 0
def test_a_label_that_is_called_a_volume_is_not_the_slide(tmp_path: Path, field: str, side_px: int) -> None:
    series = two_levels(tmp_path)
    path = write_level(tmp_path / "label.dcm", tissue(side_px, side_px), series, codec="jpegls")
    data = dcmread(path)
    if field == "FrameType":
        kind = Dataset()
        kind.FrameType = ["DERIVED", "PRIMARY", "LABEL", "NONE"]
        data.SharedFunctionalGroupsSequence[0].WholeSlideMicroscopyImageFrameTypeSequence = [kind]
    else:
        data.SpecimenLabelInImage = "YES"
    data.save_as(path)
    slide = check(tmp_path, image())
    assert sizes(tmp_path) == [(300, 200), (150, 100)]
    assert "label.dcm is not used: its ImageType is VOLUME, but its" in slide.notes[0]


def test_a_whole_slide_with_its_label_in_it_is_read_and_noted(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec="jpegls", SpecimenLabelInImage="YES")
    assert check(path, image()).notes == (
        "a.dcm is read: its ImageType is VOLUME, but its SpecimenLabelInImage is YES",
    )


def test_positions_that_contradict_the_fixed_order_are_refused(tmp_path: Path) -> None:
    frames, places = tiles_of(image()), positions_of(image())
    options: dict[str, Any] = {"codec": "jpegls", "DimensionOrganizationType": "TILED_FULL"}
    check(write_instance(tmp_path / "a.dcm", frames, (WIDTH, HEIGHT), positions=places, **options), image())
    write_instance(tmp_path / "a.dcm", frames, (WIDTH, HEIGHT), positions=places[::-1], **options)
    assert "in which frame 1 is at (1, 1); it states (257, 193)" in refusal(tmp_path)


def test_colours_of_a_jfif_stream_are_ycbcr_whatever_the_header_says(tmp_path: Path) -> None:
    tiles = [
        simplejpeg.encode_jpeg(tile, quality=95, colorspace="RGB", colorsubsampling="444") for tile in tiles_of(image())
    ]
    path = write_level(tmp_path / "a.dcm", image())
    data = dcmread(path)
    data.PixelData, data.PhotometricInterpretation = encapsulate(tiles), "RGB"
    data.save_as(path)
    slide = open_slide(path)
    assert np.abs(pixels_of(slide).astype(int) - image()).mean() < 3
    assert slide.notes == ("level 0: its PhotometricInterpretation says RGB, its JPEG tiles are YCbCr",)


# Frames and their tables


@pytest.mark.parametrize("table", ["basic", "extended", "empty"])
@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "jpegls"])
def test_items_behind_the_last_frame_of_the_table_are_refused(tmp_path: Path, table: str, codec: str) -> None:
    """A sparse slide whose header lost half of its frames would be half empty."""
    frames, places = tiles_of(image()), positions_of(image())
    path = write_instance(tmp_path / "a.dcm", frames, (WIDTH, HEIGHT), codec=codec, positions=places, table=table)
    data = dcmread(path)
    data.NumberOfFrames = 10
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:10]
    if table == "extended":
        data.ExtendedOffsetTable = data.ExtendedOffsetTable[:80]
        data.ExtendedOffsetTableLengths = data.ExtendedOffsetTableLengths[:80]
    elif table == "basic":
        content = data.PixelData
        offsets = content[8 : 8 + 40]
        data.PixelData = content[:4] + struct.pack("<I", 40) + offsets + content[8 + 80 :]
    data.save_as(path)
    assert "it states 10 frames" in refusal(path)


def test_two_images_in_one_frame_are_a_bad_tile(tmp_path: Path) -> None:
    """An offset that is missing in the middle: the second image would be lost without a word."""
    path = write_level(tmp_path / "a.dcm", image(), codec="jpeg2000", sparse=True)
    data = dcmread(path)
    frames = list(generate_frames(data.PixelData, number_of_frames=20))
    items, offsets = b"", []
    for index, frame in enumerate(frames):
        if index != 5:
            offsets.append(len(items))
        items += b"\xfe\xff\x00\xe0" + struct.pack("<I", len(frame)) + frame
    table = struct.pack("<19I", *offsets)
    data.PixelData = (
        b"\xfe\xff\x00\xe0" + struct.pack("<I", len(table)) + table + items + b"\xfe\xff\xdd\xe0" + bytes(4)
    )
    data.NumberOfFrames = 19
    del data.PerFrameFunctionalGroupsSequence[5]
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    slide = open_slide(path)
    slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    assert ["two images in one frame" in tile.message for tile in slide.bad_tiles] == [True]


@pytest.mark.parametrize("at", [-1, -40_000])
def test_a_byte_that_was_inserted_into_plain_pixels_is_refused(tmp_path: Path, at: int) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec="plain")
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"\x07" + content[at:])
    assert "1 bytes follow its pixels: bytes were inserted, or appended" in refusal(path)


def test_what_may_follow_plain_pixels_is_no_damage(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec="plain")
    content = path.read_bytes()
    padding = b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 10) + b"\x01" * 10
    for behind in (bytes(1000), padding, b"\xe1\x7f\x10\x00LO\x04\x00abcd"):
        path.write_bytes(content + behind)
        check(path, image())


# Headers of single frames


def changed_frame(path: Path, marker: bytes, at: int, value: int, **options: Any) -> Path:
    """A slide of JPEG 2000 with one byte of the header of frame 3 changed, `at` bytes behind the marker."""
    write_level(path, image(), **options)
    content = bytearray(path.read_bytes())
    place = -1
    for _ in range(4):
        place = content.index(b"\xff\x4f\xff\x51", place + 1)
    place = content.index(marker, place) + at
    assert content[place] != value
    content[place] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("marker", "at", "value", "message"),
    [
        (b"\xff\x52", 8, 0, "differs from the file's header and from most frames"),  # no transform of the colours
        (b"\xff\x52", 9, 2, "its quantisation is not that of"),  # levels of the wavelet
        (b"\xff\x52", 13, 0, "its quantisation is not that of its wavelet"),
        (b"\xff\x5c", 6, 200, "its bands have more bits than 8-bit pixels give"),
        (b"\xff\x51", 40, 6, "bits instead of 8"),
        (b"\xff\x51", 25, 5, "it states 13 tiles and has 1"),
        (b"\xff\x90", 8, 77, "a tile part"),  # its length
        (b"\xff\x51", 9, 32, "in a frame of another size"),
    ],
)
def test_a_frame_whose_jpeg_2000_header_contradicts_the_files_is_a_bad_tile(
    tmp_path: Path, marker: bytes, at: int, value: int, message: str
) -> None:
    slide = open_slide(changed_frame(tmp_path / "a.dcm", marker, at, value, codec="jpeg2000"))
    slide.read_region(0, 0, 0, WIDTH, HEIGHT)
    assert [(tile.x_level0_px, tile.y_level0_px) for tile in slide.bad_tiles] == [(3 * TILE_PX, 0)]
    assert message in slide.bad_tiles[0].message


def test_frames_that_all_contradict_the_photometric_interpretation_are_read_with_a_note(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image(), codec="jpeg2000", PhotometricInterpretation="RGB")
    check(path, image())
    write_level(path, image(), codec="jpeg2000 rgb", PhotometricInterpretation="YBR_RCT")
    assert check(path, image()).notes == (
        "level 0: its PhotometricInterpretation says YBR_RCT, its streams are read as RGB",
    )


# Files of other kinds


@pytest.mark.parametrize(
    ("syntax", "name"), [(DeflatedExplicitVRLittleEndian, "deflated"), (ExplicitVRBigEndian, "big-endian")]
)
def test_a_deflated_or_big_endian_file_is_named(tmp_path: Path, syntax: str, name: str) -> None:
    path = write_level(tmp_path / "a.dcm", tissue(64, 64), codec="plain")
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    if name == "deflated":
        data.save_as(path, enforce_file_format=True)
    else:
        dcmwrite(path, data, implicit_vr=False, little_endian=False, force_encoding=True)
    assert f"no reader reads this DICOM: the transfer syntax {name}; convert it" in refusal(path)


def test_a_file_without_its_preamble_is_one_line(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", image())
    path.write_bytes(path.read_bytes()[132:])
    assert "no DICOM inside, though it is named .dcm" in refusal(path)


def test_an_icc_profile_changes_no_pixel(tmp_path: Path) -> None:
    optical_path = Dataset()
    optical_path.OpticalPathIdentifier, optical_path.ICCProfile = "1", bytes(300_000)
    check(write_level(tmp_path / "a.dcm", image(), codec="plain", OpticalPathSequence=[optical_path]), image())


def test_a_slide_says_which_files_beside_it_may_be_parts_of_it(tmp_path: Path) -> None:
    two_levels(tmp_path)
    largest = tmp_path / "0.dcm"
    largest.write_bytes(largest.read_bytes()[132:])
    note = "DICOM files beside it cannot be read (0.dcm): it is incomplete if they are its parts"
    assert open_slide(tmp_path / "1.dcm").notes == (note,)
    shutil.move(largest, tmp_path / "elsewhere")
    assert not open_slide(tmp_path / "1.dcm").notes
