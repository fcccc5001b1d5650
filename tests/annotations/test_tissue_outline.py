"""Outline of a tissue mask: valid polygons that restore the mask exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from scipy.ndimage import label
from tests.annotations.made import area_of

from longvit.annotations.polygons import Polygons
from longvit.annotations.tissue_outline import mask_polygons, write_tissue_outline
from longvit.slides.placement import Box
from longvit.slides.tissue import Tissue


def tissue_of(mask: np.ndarray, bounds: Box) -> Tissue:
    return Tissue(mask, bounds, (8.0, 8.0), 0.1, (1.0, 1.0, 1.0), 0.0)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 1.0])
def test_any_mask_is_restored_from_valid_polygons(fraction: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        mask = rng.random((rng.integers(1, 30), rng.integers(1, 40))) < fraction
        polygons = mask_polygons(mask)
        assert len(polygons) == label(mask)[1]
        shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in polygons]
        assert all(shape.is_valid for shape in shapes)
        assert sum(shape.area for shape in shapes) == mask.sum()
        height, width = mask.shape
        restored = Polygons.from_rings(polygons).inside(np.arange(width) + 0.5, np.arange(height) + 0.5)
        assert np.array_equal(restored, mask)


@pytest.mark.parametrize("bounds", [Box(0, 0, 2220, 2967), Box(104, 52, 385, 257)])
def test_a_file_gives_the_mask_back_on_slides_with_and_without_an_offset(tmp_path: Path, bounds: Box) -> None:
    mask = np.random.default_rng(1).random((31, 23)) < 0.4
    tissue = tissue_of(mask, bounds)
    path = write_tissue_outline(tmp_path / "a.geojson", tissue, "a")
    area = area_of(path, bounds)
    assert area.tissue is not None
    assert np.array_equal(area.tissue.inside(*tissue.centres()), mask)
    coordinates = np.concatenate(
        [ring for f in json.loads(path.read_text())["features"] for ring in f["geometry"]["coordinates"]]
    )
    assert coordinates.min() >= 0  # QuPath's corner is that of the scanned area
    assert coordinates.max(0).tolist() <= [bounds.width, bounds.height]


def test_qupath_can_edit_what_is_written(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), bool)
    mask[1:4, 1:4] = mask[6, 6] = True
    mask[2, 2] = False
    path = write_tissue_outline(tmp_path / "a.geojson", tissue_of(mask, Box(0, 0, 80, 80)), "a")
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    first, second = content["features"]
    assert first["id"] != second["id"]
    assert [len(ring) for ring in first["geometry"]["coordinates"]] == [5, 5]
    assert all(ring[0] == ring[-1] for ring in first["geometry"]["coordinates"])
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"]["name"] == "Tissue"
    assert first["properties"]["isLocked"] is False
    again = write_tissue_outline(tmp_path / "b.geojson", tissue_of(mask, Box(0, 0, 80, 80)), "a")
    assert again.read_bytes() == path.read_bytes()


def test_a_blank_slide_has_a_file_without_features(tmp_path: Path) -> None:
    path = write_tissue_outline(tmp_path / "a.geojson", tissue_of(np.zeros((4, 4), bool), Box(0, 0, 9, 9)), "a")
    assert json.loads(path.read_text())["features"] == []
