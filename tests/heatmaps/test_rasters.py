"""OME-TIFF and PNG: other readers see the scores, where they lie on the slide, in µm."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from tests.heatmaps.made import PLACEMENTS, made_canvas, made_contributions

from longvit.heatmaps.colours import coloured
from longvit.heatmaps.heat_map import of_contributions, of_tiles
from longvit.heatmaps.ome_tiff import write_colours, write_scores
from longvit.heatmaps.png import write_groovy, write_png
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_raster_pixel_has_the_score_of_the_patch_below_it(name: str) -> None:
    """Each pixel lies inside one patch, with all its corners: the raster is exact, not resampled."""
    canvas = made_canvas(name)
    contributions = made_contributions(canvas.side_px // 32)
    heat_map = of_contributions("a", canvas, contributions)
    height, width = heat_map.raster.shape
    bounds = heat_map.bounds
    for inset in (1e-6, 0.5, 1 - 1e-6):
        x = bounds.x + (np.arange(width) + inset) * bounds.width / width
        y = bounds.y + (np.arange(height) + inset) * bounds.height / height
        columns, rows = (np.floor(v / 32).astype(int) for v in canvas.placement.to_canvas(x, y))
        assert (heat_map.raster == contributions.per_patch[rows[:, None], columns]).all()
    if canvas.placement.fit == "stretch":
        assert heat_map.raster.shape == contributions.per_patch.shape


@pytest.mark.parametrize("name", PLACEMENTS)
def test_tifffile_reads_scores_and_physical_size(name: str, tmp_path: Path) -> None:
    canvas = made_canvas(name)
    heat_map = of_contributions("slide µ", canvas, made_contributions(canvas.side_px // 32))
    write_scores(heat_map, tmp_path / "a.scores.ome.tif")
    with tifffile.TiffFile(tmp_path / "a.scores.ome.tif") as tiff:
        assert tiff.is_ome
        assert tiff.series[0].dtype == np.float32
        assert (tiff.asarray() == heat_map.raster).all()
        text = tiff.ome_metadata
        assert text is not None
        page = tiff.pages.first
        numerator, denominator = page.tags["XResolution"].value
    pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    assert pixels is not None
    assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
    bounds = canvas.placement.bounds
    # mpp is 0.25 along x and 0.5 along y.
    assert int(pixels.get("SizeX", 0)) * float(pixels.get("PhysicalSizeX", 0)) == pytest.approx(bounds.width * 0.25)
    assert int(pixels.get("SizeY", 0)) * float(pixels.get("PhysicalSizeY", 0)) == pytest.approx(bounds.height * 0.5)
    assert 1e4 * denominator / numerator == pytest.approx(float(pixels.get("PhysicalSizeX", 0)))


def test_openslide_reads_the_colours_with_their_resolution(tmp_path: Path) -> None:
    heat_map = of_contributions("a", made_canvas("pad"), made_contributions(8))
    write_colours(heat_map, tmp_path / "a.colour.ome.tif")
    height, width = heat_map.raster.shape
    with openslide.OpenSlide(tmp_path / "a.colour.ome.tif") as slide:
        assert slide.dimensions == (width, height)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(2220 * 0.25 / width)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(2967 * 0.5 / height)
        pixels = np.asarray(slide.read_region((0, 0), 0, (width, height)))[..., :3]
    assert (pixels == coloured(heat_map)).all()


def test_a_large_map_has_a_pyramid_of_true_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coords = np.stack(np.meshgrid(np.arange(200), np.arange(170)), -1).reshape(-1, 2) * 100
    heat_map = of_tiles("a", rng.random(len(coords)).astype(np.float32), coords, 100, Box(0, 0, 20000, 17000), None)
    write_scores(heat_map, tmp_path / "a.ome.tif")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(680, 800), (340, 400), (170, 200)]
        assert (levels[2].asarray() == heat_map.scores.reshape(170, 200)).all()
        assert tiff.ome_metadata is not None
        assert "PhysicalSize" not in tiff.ome_metadata  # the resolution is not known


def test_tiles_lie_where_their_coordinates_say_and_the_rest_is_empty() -> None:
    scores = np.array([0.1, 0.2, 0.3], np.float32)
    coords = np.array([[1000, 500], [1400, 500], [1500, 800]])  # the last two overlap in nothing
    heat_map = of_tiles("a", scores, coords, 100, Box(1000, 400, 800, 600), Mpp(0.5, 0.5, "explicit"))
    assert heat_map.raster.shape == (24, 32)
    assert (heat_map.raster[4:8, 0:4] == np.float32(0.1)).all()
    assert (heat_map.raster[4:8, 16:20] == np.float32(0.2)).all()
    assert (heat_map.raster[16:20, 20:24] == np.float32(0.3)).all()
    assert np.isfinite(heat_map.raster).sum() == 3 * 16
    assert heat_map.raster_mpp == (12.5, 12.5)


def test_the_higher_score_counts_where_tiles_overlap_and_tiles_outside_are_cut() -> None:
    coords = np.array([[0, 0], [50, 0], [-50, 0], [350, 350]])
    scores = np.array([0.4, 0.1, 0.2, 0.3], np.float32)
    raster = of_tiles("a", scores, coords, 100, Box(0, 0, 400, 400), None).raster
    assert (raster[:4, :4] == np.float32(0.4)).all()
    assert (raster[:4, 4:6] == np.float32(0.1)).all()
    assert (raster[14:, 14:] == np.float32(0.3)).all()


def test_the_png_is_transparent_where_nothing_is_and_red_for_the_class(tmp_path: Path) -> None:
    canvas, contributions = made_canvas("stretch"), made_contributions(8)
    contributions.per_patch[0, :3] = (1, -1, 0)
    heat_map = of_contributions("a", canvas, contributions)
    write_png(heat_map, tmp_path / "a.heat.png")
    rgba = np.asarray(Image.open(tmp_path / "a.heat.png"))
    assert rgba.shape == (8, 8, 4)
    (red, blue, nothing) = rgba[0, :3].astype(int)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert (red[3], blue[3], nothing[3]) == (200, 200, 0)
    tiles = of_tiles("a", np.ones(1, np.float32), np.zeros((1, 2)), 100, Box(0, 0, 200, 100), None)
    write_png(tiles, tmp_path / "b.png")
    alpha = np.asarray(Image.open(tmp_path / "b.png"))[..., 3]
    assert (alpha[:, :4] == 200).all()
    assert (alpha[:, 4:] == 0).all()


def test_the_script_names_the_png_and_has_twelve_lines(tmp_path: Path) -> None:
    heat_map = of_contributions("sl\nide", made_canvas("stretch"), made_contributions(8, class_name="a\nb"))
    write_groovy(heat_map, tmp_path / "a.groovy", tmp_path / "a$b.heat.png")
    text = (tmp_path / "a.groovy").read_text()
    assert len(text.splitlines()) <= 12
    assert re.search(r'new File\(".*/a\\\$b\.heat\.png"\)', text)
