"""DICOM parametric maps, read back by pydicom alone: every score, at its place in the slide's coordinates."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.heatmaps.made import made_contributions
from tests.slides.slide_files import dicom_series, write_dicom
from tests.small_slides import write_model, write_slide

from longvit.cli import main
from longvit.errors import InputError
from longvit.heatmaps.formats import HeatMapSettings, write_heat_maps
from longvit.heatmaps.heat_map import HeatMap, of_contributions, of_tiles
from longvit.heatmaps.parametric_map import write_parametric_map
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide

pydicom: Any = pytest.importorskip("pydicom")
WIDTH, HEIGHT = 420, 300
ORIGIN_MM = (20.5, 40.25)
SPACING_MM = 0.0005
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def highdicom() -> None:
    pytest.importorskip("highdicom", reason="needs highdicom: pip install 'longvit[dicom]'")


def dicom_folder(folder: Path, orientation: tuple[int, ...] = (0, -1, 0, -1, 0, 0), **changed: Any) -> Path:
    """A slide of two levels whose corner is `ORIGIN_MM`; as most scanners, rows run along −y."""
    from pydicom.dataset import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    series = dicom_series()
    for step in (1, 2):
        level = np.ascontiguousarray(pixels[::step, ::step])
        path = write_dicom(folder / f"{step}.dcm", level, SPACING_MM * step, series, step)
        data, origin = pydicom.dcmread(path), Dataset()
        origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = ORIGIN_MM
        data.TotalPixelMatrixOriginSequence, data.ImageOrientationSlide = [origin], list(orientation)
        data.PatientID, data.PatientName, data.SpecificCharacterSet = "P1", "Ä^B", "ISO_IR 192"
        for name, value in changed.items():
            if value is None and name in data:
                delattr(data, name)
            elif value is not None:
                setattr(data, name, value)
        data.save_as(path)
    return folder


def written(heat_map: HeatMap, slide: Path, path: Path) -> Any:
    with open_slide(slide) as opened:
        write_parametric_map(heat_map, opened, path)
    return pydicom.dcmread(path)


def matrix_of(data: Any) -> np.ndarray:
    """Total pixel matrix, from the frames and the places that they state."""
    frames = np.frombuffer(data.FloatPixelData, "<f4").reshape(-1, data.Rows, data.Columns)
    matrix = np.zeros((data.TotalPixelMatrixRows + data.Rows, data.TotalPixelMatrixColumns + data.Columns), np.float32)
    for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        place = groups.PlanePositionSlideSequence[0]
        row, column = (
            place.RowPositionInTotalImagePixelMatrix - 1,
            place.ColumnPositionInTotalImagePixelMatrix - 1,
        )
        matrix[row : row + data.Rows, column : column + data.Columns] = frame
    return matrix[: data.TotalPixelMatrixRows, : data.TotalPixelMatrixColumns]


def place_of(data: Any, row: float, column: float) -> tuple[float, float]:
    """Place (x, y) in mm of the matrix position, by the file's own origin, orientation and spacing."""
    origin = data.TotalPixelMatrixOriginSequence[0]
    down_mm, right_mm = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    cosines = [float(value) for value in data.ImageOrientationSlide]
    x = origin.XOffsetInSlideCoordinateSystem + column * right_mm * cosines[0] + row * down_mm * cosines[3]
    y = origin.YOffsetInSlideCoordinateSystem + column * right_mm * cosines[1] + row * down_mm * cosines[4]
    return float(x), float(y)


@pytest.mark.usefixtures("highdicom")
@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("orientation", [(0, -1, 0, -1, 0, 0), (-1, 0, 0, 0, 1, 0)])
def test_every_score_is_where_its_patch_is(tmp_path: Path, fit: Any, orientation: tuple[int, ...]) -> None:
    folder = dicom_folder(tmp_path / "s", orientation)
    with open_slide(folder) as slide:
        heat_map = of_contributions("s", slide.canvas(128, fit), made_contributions(4))
    data, level0 = written(heat_map, folder, tmp_path / "map.dcm"), pydicom.dcmread(folder / "1.dcm")
    matrix = matrix_of(data)
    assert np.array_equal(matrix, heat_map.raster)
    rows, columns = matrix.shape
    for (left, top, right, bottom), score in zip(heat_map.boxes, heat_map.scores, strict=True):
        row, column = (top + bottom) / 2 / HEIGHT * rows, (left + right) / 2 / WIDTH * columns
        assert matrix[int(row), int(column)] == score
        expected = place_of(level0, (top + bottom) / 2, (left + right) / 2)
        assert place_of(data, row, column) == pytest.approx(expected, abs=1e-6)
    assert place_of(data, rows, columns) == pytest.approx(place_of(level0, HEIGHT, WIDTH), abs=1e-6)


@pytest.mark.usefixtures("highdicom")
def test_it_is_of_the_slides_study_and_place_and_names_the_series(tmp_path: Path) -> None:
    folder = dicom_folder(tmp_path / "s")
    with open_slide(folder) as slide:
        heat_map = of_contributions("s", slide.canvas(64), made_contributions(2, class_name="Tumörgewebe"))
    data = written(heat_map, folder, tmp_path / "map.dcm")
    sources = [pydicom.dcmread(folder / name) for name in ("1.dcm", "2.dcm")]
    assert data.SOPClassUID.name == "Parametric Map Storage"
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert data[name].value == sources[0][name].value, name
    assert data.SeriesInstanceUID != sources[0].SeriesInstanceUID
    referred = data.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == sources[0].SeriesInstanceUID
    instances = {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence}
    assert instances == {source.SOPInstanceUID for source in sources}
    assert data.ContentDescription == "contribution to Tumörgewebe"
    assert np.isnan(data.FloatPixelPaddingValue)
    again = written(heat_map, folder, tmp_path / "again.dcm")
    assert again.SOPInstanceUID == data.SOPInstanceUID


@pytest.mark.usefixtures("highdicom")
def test_a_large_map_is_tiled_and_begins_where_its_bounds_do(tmp_path: Path) -> None:
    """Bounds inside the slide, tiles without a score, and more than one frame."""
    folder = dicom_folder(tmp_path / "s")
    coords = np.array([[20, 30], [300, 200]])
    heat_map = of_tiles("s", np.array([0.25, 0.75], np.float32), coords, 1, Box(20, 30, 400, 260), None)
    data = written(heat_map, folder, tmp_path / "map.dcm")
    assert int(data.NumberOfFrames) > 1
    matrix = matrix_of(data)
    assert np.array_equal(matrix, heat_map.raster, equal_nan=True)
    assert (np.isnan(matrix)).any()
    level0 = pydicom.dcmread(folder / "1.dcm")
    assert place_of(data, 0, 0) == pytest.approx(place_of(level0, 30, 20), abs=1e-9)
    assert place_of(data, *matrix.shape) == pytest.approx(place_of(level0, 290, 420), abs=1e-6)


@pytest.mark.usefixtures("highdicom")
@pytest.mark.parametrize("name", ["ImageOrientationSlide", "TotalPixelMatrixOriginSequence", "PixelSpacing"])
def test_a_slide_without_a_place_is_one_line(tmp_path: Path, name: str) -> None:
    folder = dicom_folder(tmp_path / "s", **{name: None})
    if name == "PixelSpacing":
        for file in folder.iterdir():
            data = pydicom.dcmread(file)
            del data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
            data.save_as(file)
    with open_slide(folder, mpp=0.5) as slide:
        heat_map = of_contributions("s", slide.canvas(64), made_contributions(2))
        with pytest.raises(InputError, match=f"a DICOM slide without {name}"):
            write_parametric_map(heat_map, slide, tmp_path / "map.dcm")
    assert not (tmp_path / "map.dcm").exists()


@pytest.mark.usefixtures("highdicom")
def test_a_slide_that_is_not_dicom_keeps_its_other_files_and_has_a_reason(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif")
    with open_slide(path) as slide:
        heat_map = of_contributions("s", slide.canvas(64), made_contributions(2))
    found = write_heat_maps(heat_map, tmp_path, HeatMapSettings(("dicom", "png")), lambda: open_slide(path))
    assert list(found.files) == ["png"]
    (problem,) = found.problems
    assert "heat map dicom" in problem
    assert "not DICOM; a parametric map refers to a DICOM series" in problem


@pytest.mark.usefixtures("highdicom")
def test_predict_writes_it_beside_the_other_formats(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    dicom_folder(tmp_path / "slides" / "a")
    write_slide(tmp_path / "slides" / "b.tif")
    words = ["predict", str(tmp_path / "model"), str(tmp_path / "slides"), "--out", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu", "--threads", "1", "--heatmaps", "dicom"]) == 1  # b is not DICOM
    assert [path.name for path in (tmp_path / "out" / "heatmaps").iterdir()] == ["a.scores.dcm"]
    with (tmp_path / "out" / "problems.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["slide"], row["stage"]) == ("b", "heatmap")


def test_without_highdicom_one_line_names_the_extra_before_any_slide(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    write_model(tmp_path / "model")
    write_slide(tmp_path / "a.tif")
    words = ["predict", str(tmp_path / "model"), str(tmp_path / "a.tif"), "--out", str(tmp_path / "out")]
    assert main([*words, "--heatmaps", "geojson,dicom"]) == 2
    assert "pip install 'longvit[dicom]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
