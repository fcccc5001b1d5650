"""QuPath's GeoJSON in its forms, and files that are damaged, hostile or of another slide: one line each."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.annotations.made import area_of, feature, geometry, rectangle, write_geojson

from longvit.annotations import geojson
from longvit.annotations.geojson import read_annotations
from longvit.errors import InputError
from longvit.slides.placement import Box

BOUNDS = Box(0, 0, 100, 80)
SQUARE = rectangle(10, 20, 30, 40)
HOLE = rectangle(15, 25, 20, 30)[0]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def count(path: Path, bounds: Box = BOUNDS, **classes: Any) -> int:
    """Number of whole level-0 pixels that are kept."""
    area = area_of(path, bounds, **classes)
    x = bounds.x + np.arange(bounds.width) + 0.5
    return int(area.inside(x, bounds.y + np.arange(bounds.height) + 0.5).sum())


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature(SQUARE, "Tumor")]},
        [feature(SQUARE)],
        feature(SQUARE),
        geometry(SQUARE),
        {"type": "MultiPolygon", "coordinates": [geometry(SQUARE)["coordinates"]]},
        [feature(SQUARE), {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}}],
        [feature(SQUARE), {"type": "Feature", "geometry": None, "properties": None}],
        [feature(SQUARE), feature(rectangle(50, 50, 60, 60), "Tumor", objectType="cell")],
        {"type": "Polygon", "coordinates": [[[*corner, 7] for corner in SQUARE[0].tolist()]]},  # with z, not closed
    ],
)
def test_every_form_of_the_same_square_is_read(tmp_path: Path, content: Any) -> None:
    assert count(write(tmp_path / "a.geojson", content)) == 400


def test_a_compressed_file_and_a_hole(tmp_path: Path) -> None:
    assert count(write_geojson(tmp_path / "a.geojson.gz", [feature([*SQUARE, HOLE], "Tumor")])) == 375


def test_coordinates_begin_at_the_scanned_area_as_in_qupath(tmp_path: Path) -> None:
    area = area_of(write_geojson(tmp_path / "a.geojson", [feature(SQUARE)]), Box(1000, 500, 100, 80))
    x, y = np.array([1009.5, 1010.5, 1029.5, 1030.5]), np.array([519.5, 520.5, 539.5, 540.5])
    assert area.inside(x, y).astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_classes_are_kept_and_excluded(tmp_path: Path) -> None:
    some = [
        feature(SQUARE, "Tumor"),
        feature(rectangle(50, 20, 60, 40), "Stroma"),
        feature(rectangle(20, 0, 55, 80), "Artefact"),
        feature(rectangle(90, 0, 95, 10)),
    ]
    path = write_geojson(tmp_path / "a.geojson", some)
    assert count(path, keep=["Tumor"]) == 400
    assert count(path, keep=["Tumor", "Stroma"]) == 600
    assert count(path, exclude=["Artefact"]) == 200 + 100 + 50
    assert count(path, keep=["Tumor"], exclude=["Artefact"]) == 200
    assert count(write_geojson(tmp_path / "b.geojson", some[2:3]), exclude=["Artefact"]) == 65 * 80


def test_a_class_of_a_newer_qupath_has_a_list_of_names() -> None:
    given = feature(SQUARE)
    given["properties"]["classification"] = {"names": ["Tumor", "Positive"]}
    assert [a.class_name for a in read_annotations(json.dumps([given]).encode(), "a")] == ["Tumor: Positive"]


def bow_tie() -> list[np.ndarray]:
    return [np.array([[10, 10], [30, 30], [30, 10], [10, 30.5]], float)]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "not JSON, or damaged"),
        ("{", "not JSON, or damaged"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        ("\0\0", "not JSON"),
        ("{}", "no GeoJSON of annotations; in QuPath, export objects as GeoJSON"),
        ("3", "no GeoJSON of annotations"),
        ('{"type": "FeatureCollection", "features": 3}', "no GeoJSON of annotations"),
        ("[3]", "feature 1 is a int, not a GeoJSON feature"),
        ([], "no annotation with an area in it"),
        ([feature(SQUARE, objectType="detection")], "no annotation with an area in it"),
        ([{"type": "Feature", "geometry": [3], "properties": {}}], "feature 1 is damaged"),
        ([{"type": "Feature", "geometry": geometry(SQUARE), "properties": [3]}], "feature 1 is damaged"),
        ([feature(SQUARE, classification=[3])], "the class of annotation 1 is a list, not a name"),
        ([feature(SQUARE, classification={"name": 3})], "the class of annotation 1 is a int, not a name"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 9], [9, 9]]]}', "NaN is not a JSON number"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1e999, 9], [9, 9]]]}', "a coordinate that is not finite"),
        ({"type": "Polygon"}, "annotation 1 is empty; delete it"),
        ({"type": "Polygon", "coordinates": []}, "annotation 1 is empty; delete it"),
        ({"type": "MultiPolygon", "coordinates": 3}, "annotation 1 is empty; delete it"),
        ({"type": "Polygon", "coordinates": [[]]}, "annotation 1 is damaged: an outline is a list of"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3]]]}, "annotation 1 is damaged"),
        ({"type": "Polygon", "coordinates": [[["1", "2"], ["3", "4"], ["9", "0"]]]}, "annotation 1 is damaged"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, None], [4, 5]]]}, "annotation 1 is damaged"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, 10**400], [4, 5]]]}, "annotation 1 is damaged|too large"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [1, 2]]]}, "an outline of 2 points has no area"),
        ({"type": "Polygon", "coordinates": [[[1, 1], [2, 2], [3, 3]]]}, "an outline of 3 points has no area"),
        ([feature(SQUARE), feature(bow_tie(), "Tumor")], r"annotation 2 \(Tumor\) crosses itself \(Self-intersection"),
        ([feature([*SQUARE, rectangle(0, 0, 5, 5)[0]])], r"crosses itself \(Hole lies outside shell"),
        ([feature(rectangle(200, 10, 240, 40))], r"from \(200, 10\) to \(240, 40\), outside the slide of 100 × 80"),
        ([feature(rectangle(-50, 10, 40, 40))], "is it of another slide, or of a smaller copy"),
        ([feature(rectangle(10, 10, 1e300, 40))], "outside the slide"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line_with_its_name(tmp_path: Path, content: Any, line: str) -> None:
    path = write(tmp_path / "a.geojson", content)
    with pytest.raises(InputError, match=line) as caught:
        area_of(path, BOUNDS)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_stroke_that_ends_just_outside_the_slide_is_used(tmp_path: Path) -> None:
    assert count(write_geojson(tmp_path / "a.geojson", [feature(rectangle(-1, -1, 10, 10))])) == 100


def test_files_and_outlines_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_geojson(tmp_path / "a.geojson", [feature(SQUARE), feature(SQUARE)])
    monkeypatch.setattr(geojson, "MOST_VERTICES", 7)
    with pytest.raises(InputError, match="more than 7 vertices; simplify the annotations"):
        area_of(path, BOUNDS)
    monkeypatch.setattr(geojson, "MOST_BYTES", 1000)
    (tmp_path / "b.geojson.gz").write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(InputError, match="MB of GeoJSON; export annotations only, no cells"):
        area_of(tmp_path / "b.geojson.gz", BOUNDS)


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "a.geojson.gz", [feature(SQUARE)])
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="damaged gzip file"):
        area_of(path, BOUNDS)


def test_without_shapely_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(InputError, match=r"pip install 'longvit\[regions\]'"):
        area_of(write_geojson(tmp_path / "a.geojson", [feature(SQUARE)]), BOUNDS)
