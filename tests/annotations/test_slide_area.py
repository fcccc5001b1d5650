"""Kept area on canvases and tiles, against shapely's membership of their centres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from tests.annotations.made import area_of, feature, random_polygon, rectangle, write_geojson
from tests.slides.slide_files import pyramid, tissue, write_mrxs, write_scn, write_svs

from longvit.slides.canvas import read_canvas, write_canvas
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import Slide, open_slide
from longvit.slides.strips import canvas_strips
from longvit.slides.tiles import TileSettings, tile_grid
from longvit.slides.tissue import Tissue


def slides(folder: Path) -> list[Slide]:
    """Without and with an offset of the scanned area, and with a background that is not white."""
    return [
        open_slide(write_svs(folder / "a.svs", pyramid(tissue(390, 270), 2))),
        open_slide(write_scn(folder / "b.scn", pyramid(tissue(384, 512), 2), 104, 52, (600, 700))),
        open_slide(write_mrxs(folder / "c.mrxs", tissue(256, 256))),
    ]


def contains(rings: Any, x: np.ndarray, y: np.ndarray, bounds: Box) -> np.ndarray:
    """shapely's answer for a grid in level-0 px; the rings are in QuPath's."""
    polygon = shapely.Polygon(rings[0], rings[1:])
    return np.asarray(shapely.contains_xy(polygon, *np.meshgrid(x - bounds.x, y - bounds.y)))


def test_200_random_polygons_blank_the_canvas_where_shapely_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    some = [(slide, fit, slide.canvas(96, fit)) for slide in slides(tmp_path) for fit in ("stretch", "pad")]  # type: ignore[arg-type]
    for number in range(200):
        slide, fit, whole = some[number % len(some)]
        rings = random_polygon(rng, slide.bounds.width, slide.bounds.height)
        area = area_of(write_geojson(tmp_path / "r" / "a.geojson", [feature(rings)]), slide.bounds)
        x, y = whole.placement.to_level0(np.arange(96) + 0.5, np.arange(96) + 0.5)
        inside = contains(rings, x, y, slide.bounds)
        expected = np.where(inside[..., None], whole.pixels, np.array(slide.background, np.uint8))
        assert inside.any()
        got = slide.canvas(96, fit, area=area)  # type: ignore[arg-type]
        assert np.array_equal(got.pixels, expected)


@pytest.mark.parametrize("decode", ["exact", "reduced"])
def test_any_strip_and_any_threads_have_the_bits_of_the_whole(tmp_path: Path, decode: Any) -> None:
    rng = np.random.default_rng(1)
    for slide in slides(tmp_path):
        rings = random_polygon(rng, slide.bounds.width, slide.bounds.height)
        area = area_of(write_geojson(tmp_path / "r" / "a.geojson", [feature(rings)]), slide.bounds)
        for fit in ("stretch", "pad"):
            plain = slide.canvas(90, fit, decode=decode, threads=1)  # type: ignore[arg-type]
            whole = slide.canvas(90, fit, decode=decode, threads=1, area=area).pixels  # type: ignore[arg-type]
            assert not np.array_equal(plain.pixels, whole)
            for rows, strip_px, threads in [((0, 90), 1, 3), ((0, 90), 32, 2), ((17, 61), 7, 1), ((33, 34), None, 2)]:
                strips = canvas_strips(
                    slide, 90, fit, decode=decode, rows=rows, strip_px=strip_px, threads=threads, area=area  # type: ignore[arg-type]
                )  # fmt: skip
                assert np.array_equal(np.concatenate([s.pixels for s in strips]), whole[rows[0] : rows[1]])


def all_tissue(bounds: Box) -> Tissue:
    return Tissue(np.ones((40, 50), bool), bounds, (8.0, 8.0), 0.1, (1.0, 1.0, 1.0), 0.0)


def test_200_random_polygons_keep_the_tiles_whose_centre_shapely_finds_inside(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for number in range(200):
        bounds = (Box(0, 0, 5000, 4000), Box(1200, 300, 5000, 4000))[number % 2]
        rings = random_polygon(rng, 5000, 4000)
        area = area_of(write_geojson(tmp_path / "a.geojson", [feature(rings)]), bounds)
        settings = TileSettings(tile_px=128, mpp=0.5, overlap_px=int(rng.integers(0, 60)))
        mpp = Mpp(0.49, 0.51, "test")
        every = tile_grid(all_tissue(bounds), mpp, settings)
        kept = tile_grid(all_tissue(bounds), mpp, settings, area)
        step_um = (128 - settings.overlap_px) * 0.5
        x = bounds.x + np.arange(len(np.unique(every.coords[:, 0]))) * (step_um / 0.49) + 64 / 0.49 / 2
        y = bounds.y + np.arange(len(np.unique(every.coords[:, 1]))) * (step_um / 0.51) + 64 / 0.51 / 2
        inside = contains(rings, x, y, bounds).ravel()
        assert 0 < inside.sum() < len(inside)
        assert np.array_equal(kept.coords, every.coords[inside])
        assert kept.places == every.places


def test_a_canvas_file_says_what_limited_it_and_others_do_not(tmp_path: Path) -> None:
    slide = slides(tmp_path)[0]
    area = area_of(
        write_geojson(tmp_path / "r" / "a.geojson", [feature(rectangle(9, 9, 99, 99), "Tumor")]), slide.bounds
    )
    limited = read_canvas(write_canvas(slide.canvas(64, area=area), tmp_path / "a.tif"))
    assert limited.area is not None
    assert (limited.area["file"], limited.area["classes"]) == ("a.geojson", ["Tumor"])
    assert limited.provenance()["regions"]["digest"] == limited.area["digest"]
    assert "regions" not in read_canvas(write_canvas(slide.canvas(64), tmp_path / "b.tif")).provenance()


def test_annotated_tissue_decides_by_its_fraction_and_other_classes_by_the_centre(tmp_path: Path) -> None:
    """A class Tissue has no rule of the centre, else the outline of the tissue would not give the same tiles again."""
    bounds, x, y = Box(0, 0, 100, 80), np.array([5.0, 50.0]), np.array([5.0, 50.0])
    some = [feature(rectangle(0, 0, 10, 10), "Tissue"), feature(rectangle(40, 40, 60, 60), "Tumor")]
    path = write_geojson(tmp_path / "a.geojson", some)
    for keep, exclude, corner, middle in [
        ((), (), True, True),
        (("Tissue",), (), True, True),
        (("Tumor",), (), False, True),
        (("Tissue",), ("Tumor",), True, False),
    ]:
        area = area_of(path, bounds, keep=keep, exclude=exclude)
        inside = area.for_tiles.inside(x, y)
        assert (inside[0, 0], inside[1, 1]) == (corner, middle)
        assert area.tissue is not None
        assert area.tissue.inside(x, y).tolist() == [[True, False], [False, False]]
