"""GeoJSON for QuPath: every coordinate comes back exactly, QuPath's fields, few objects, small files."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.heatmaps.made import PLACEMENTS, made_canvas, made_contributions

from longvit.heatmaps.geojson import MOST_OBJECTS, geojson_text, merged, write_geojson
from longvit.heatmaps.heat_map import HeatMap, of_contributions, of_tiles
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box

PROPERTIES = {"objectType", "name", "color", "classification", "isLocked", "measurements", "metadata"}


def features(text: str, kind: str) -> list[dict[str, Any]]:
    return [f for f in json.loads(text)["features"] if f["properties"]["objectType"] == kind]


def box_of(feature: dict[str, Any]) -> tuple[float, float, float, float]:
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert len(ring) == 5
    xs, ys = zip(*ring, strict=True)
    assert {(x, y) for x, y in ring} == {(x, y) for x in (min(xs), max(xs)) for y in (min(ys), max(ys))}
    return min(xs), min(ys), max(xs), max(ys)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_corner_comes_back_to_its_patch_on_the_canvas(name: str) -> None:
    """Read as QuPath does (add the offset of the bounds), then through `Placement`: exact, every patch once."""
    canvas = made_canvas(name)
    side = canvas.side_px // 32
    contributions = made_contributions(side)
    text = geojson_text(of_contributions("a", canvas, contributions))
    bounds, image = canvas.placement.bounds, canvas.placement.image_box
    seen = set()
    for feature in features(text, "tile"):
        x, y, right, bottom = box_of(feature)
        assert 0 <= x < right <= bounds.width + 1e-9
        assert 0 <= y < bottom <= bounds.height + 1e-9
        low = canvas.placement.to_canvas(x + bounds.x, y + bounds.y)
        high = canvas.placement.to_canvas(right + bounds.x, bottom + bounds.y)
        column, row = int((low[0] + high[0]) / 2 // 32), int((low[1] + high[1]) / 2 // 32)
        expected = canvas.placement.to_level0(
            np.clip(np.array([column, column + 1]) * 32, image.x, image.right),
            np.clip(np.array([row, row + 1]) * 32, image.y, image.bottom),
        )
        assert (x + bounds.x, right + bounds.x) == tuple(expected[0].tolist())
        assert (y + bounds.y, bottom + bounds.y) == tuple(expected[1].tolist())
        (value,) = feature["properties"]["measurements"].values()
        assert np.float32(value) == contributions.per_patch[row, column]
        seen.add((row, column))
    on_slide = {
        (row, column)
        for row in range(side)
        for column in range(side)
        if column * 32 < image.right and (column + 1) * 32 > image.x
        if row * 32 < image.bottom and (row + 1) * 32 > image.y
    }
    assert seen == on_slide


def test_contributions_outside_the_slide_are_counted() -> None:
    canvas, contributions = made_canvas("pad"), made_contributions(8)
    text = geojson_text(of_contributions("a", canvas, contributions))
    shown = sum(f["properties"]["measurements"]["contribution to tumour"] for f in features(text, "tile"))
    outside = json.loads(text)["longvit"]["outside_the_slide"]
    assert outside != 0
    assert shown + outside == pytest.approx(float(contributions.per_patch.sum(dtype=np.float64)), abs=1e-6)


def test_objects_have_the_fields_that_qupath_reads() -> None:
    contributions = made_contributions(8)
    content = json.loads(geojson_text(of_contributions("a", made_canvas("bounds"), contributions), top_k=3))
    assert content["type"] == "FeatureCollection"
    assert content["longvit"]["origin_level0_px"] == [1013, 77]
    assert content["longvit"]["mpp"] == [0.25, 0.5]
    ids = [uuid.UUID(feature["id"]) for feature in content["features"]]
    assert len(set(ids)) == len(ids) == 64 + 6
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        assert feature["properties"].keys() <= PROPERTIES
        assert all(isinstance(value, float) for value in feature["properties"]["measurements"].values())
        is_tile = feature["properties"]["objectType"] == "tile"
        assert is_tile == ("color" not in feature["properties"])
    top, bottom = content["features"][0], content["features"][3]
    assert top["properties"]["name"] == "top 1: +1"
    assert bottom["properties"]["name"] == "bottom 1: -1"
    for feature in content["features"][:6]:
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["isLocked"] is True
        assert properties["classification"]["color"] == properties["color"]
        assert all(0 <= value <= 255 for value in properties["color"])
    place = np.unravel_index(contributions.per_patch.argmax(), (8, 8))
    assert box_of(top)[:2] == (place[1] * 4001 / 8, place[0] * 2999 / 8)


def test_a_name_with_quotes_and_braces_stays_valid_json() -> None:
    contributions = made_contributions(8, class_name='a"b}{\\ \ud800')
    text = geojson_text(of_contributions('s"1', made_canvas("stretch"), contributions))
    assert features(text, "tile")[0]["properties"]["measurements"].keys() == {'contribution to a"b}{\\ \ud800'}


def test_a_score_that_is_not_finite_has_no_measurement() -> None:
    scores = np.array([0.5, np.nan, np.inf], np.float32)
    heat_map = of_tiles("a", scores, np.array([[0, 0], [64, 0], [128, 0]]), 64, Box(0, 0, 256, 64), None)
    tiles = features(geojson_text(heat_map), "tile")
    assert [f["properties"]["measurements"] for f in tiles] == [{"attention": 0.5}, {}, {}]


def many(n_columns: int, n_rows: int) -> HeatMap:
    x, y = np.meshgrid(np.arange(n_columns), np.arange(n_rows))
    coords = np.stack([x.ravel(), y.ravel()], 1) * 256 + 13
    scores = np.random.default_rng(0).random(len(coords)).astype(np.float32)
    return of_tiles("a", scores, coords, 256, Box(5, 5, n_columns * 256 + 99, n_rows * 256 + 99), Mpp(0.25, 0.25, "x"))


def test_more_patches_than_qupath_can_load_are_merged_into_blocks() -> None:
    heat_map = many(31, 20)
    boxes, scores, block = merged(heat_map, 100)
    assert block == 3
    assert len(boxes) <= 100
    assert scores.sum() == pytest.approx(heat_map.scores.sum(), rel=1e-5)
    # The blocks are disjoint and cover the tiles.
    covered = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert covered.sum() == 31 * 20 * 256**2
    assert boxes.min(axis=0)[:2].tolist() == [13, 13]
    assert boxes.max(axis=0)[2:].tolist() == [13 + 31 * 256, 13 + 20 * 256]
    inside = (heat_map.boxes[:, None, :2] >= boxes[:, :2]) & (heat_map.boxes[:, None, 2:] <= boxes[:, 2:])
    of_block = np.where(inside.all(2))
    assert len(of_block[0]) == 31 * 20
    assert np.bincount(of_block[1], heat_map.scores[of_block[0]]) == pytest.approx(scores, rel=1e-5)


def test_a_hundred_thousand_tiles_are_a_small_file(tmp_path: Path) -> None:
    heat_map = many(400, 250)
    write_geojson(heat_map, tmp_path / "a.geojson.gz")
    assert (tmp_path / "a.geojson.gz").stat().st_size < 10e6
    content = json.loads(gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()))
    assert len(content["features"]) == MOST_OBJECTS + 10
    assert content["longvit"]["rectangles_per_tile"] == 1


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.geojson.gz", "b.geojson.gz"):
        write_geojson(many(5, 5), tmp_path / name)
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()
