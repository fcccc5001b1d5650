"""The series of a DICOM file: read from its first elements, never another one's, never an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from tests.slides.slide_files import dicom_series, tissue, write_dicom

from longvit.slides.dicom_header import DicomHeader, read_dicom_header


def slide(path: Path, **series: str) -> tuple[Path, str]:
    uids = dicom_series() | series
    return write_dicom(path, tissue(64, 64), 0.001, uids), uids["series"]


def test_the_series_is_the_one_that_pydicom_reads(tmp_path: Path) -> None:
    path, series = slide(tmp_path / "a.dcm")
    assert read_dicom_header(path) == DicomHeader(series, is_slide=True)
    assert pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID == series


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("undefined_length", [True, False])
@pytest.mark.parametrize("padding", [0, 100_000])
def test_the_series_of_what_is_referred_to_is_not_the_files_own(
    tmp_path: Path, implicit: bool, undefined_length: bool, padding: int
) -> None:
    """Sequences before it may name other series; private groups may be longer than the head that is read first."""
    path, series = slide(tmp_path / "a.dcm")
    data = pydicom.dcmread(path)
    other = Dataset()
    other.SeriesInstanceUID = "1.2.3.4"
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3.5"
    other.ReferencedInstanceSequence = [inner]
    data.ReferencedSeriesSequence = [other]
    data.ReferencedStudySequence = []
    for element in (data["ReferencedSeriesSequence"], other["ReferencedInstanceSequence"]):
        element.is_undefined_length = undefined_length
    other.is_undefined_length_sequence_item = undefined_length
    data.add_new(0x00090010, "LO", "SOMEONE")
    data.add_new(0x00091001, "OB", bytes(padding))
    del data.PixelData
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
    assert read_dicom_header(path) == DicomHeader(series, is_slide=True)


def test_a_report_is_no_slide(tmp_path: Path) -> None:
    path, series = slide(tmp_path / "a.dcm")
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    data.save_as(path)
    assert read_dicom_header(path) == DicomHeader(series, is_slide=False)


def test_what_is_no_dicom_has_no_header(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"text" * 100), ("preamble", bytes(128) + b"DICM")):
        (tmp_path / name).write_bytes(content)
        assert read_dicom_header(tmp_path / name) is None
    assert read_dicom_header(tmp_path / "missing") is None
    assert read_dicom_header(tmp_path) is None


def test_a_cut_or_damaged_file_has_its_own_series_or_none(tmp_path: Path) -> None:
    path, series = slide(tmp_path / "a.dcm")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    end = whole.index(series.encode()) + len(series)
    for size in range(0, end, 7):
        path.write_bytes(whole[:size])
        assert read_dicom_header(path) is None
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(128, end - len(series), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        found = read_dicom_header(path)
        assert found is None or isinstance(found, DicomHeader)


def test_sequences_without_end_are_given_up(tmp_path: Path) -> None:
    path, _ = slide(tmp_path / "a.dcm")
    whole = path.read_bytes()
    start = whole.index(b"\x08\0\x08\0CS")
    for many in (100, 100_000):
        endless = (
            b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff"
            + b"\xfe\xff\0\xe0\xff\xff\xff\xff\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff" * many
        )
        path.write_bytes(whole[:start] + endless)
        assert read_dicom_header(path) is None
