"""`tile_slides`: TRIDENT's files and an image per slide, resume, blank slides, slides that cannot be cut."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.slides.slide_files import pyramid, tissue, write_svs

from longvit.data.slide_list import ListedSlide, find_slides
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.tiles import tile_slides
from longvit.slides.reader import open_slide
from longvit.slides.tiles import TileSettings
from longvit.slides.tissue import TissueSettings

TILES = TileSettings(tile_px=64, mpp=0.5)  # 128 px at level 0
TISSUE = TissueSettings(min_piece_um2=0)
FOLDER = "20x_64px_0px_overlap"


def write_slides(folder: Path, n: int = 2) -> tuple[ListedSlide, ...]:
    """Real tissue, 600 × 500 px at 0.25 µm/px."""
    folder.mkdir(parents=True)
    for i in range(n):
        write_svs(folder / f"s{i}.svs", pyramid(tissue(600, 500, 1000 + 100 * i), 2))
    return find_slides([folder])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_coordinates_are_tridents_and_say_where_they_came_from(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides")
    result = tile_slides(slides, tmp_path / "out", TILES, TISSUE)
    assert result.done == ("s0", "s1")
    assert not result.problems
    folder = tmp_path / "out" / FOLDER
    with h5py.File(folder / "patches" / "s1_patches.h5") as file:
        assert list(file) == ["coords"]
        coords = file["coords"]
        assert coords.dtype == np.int64
        assert dict(coords.attrs) == {
            "patch_size": 64,
            "patch_size_level0": 128,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "name": "s1",
            "savetodir": str(folder / "patches"),
            "level0_width": 600,
            "level0_height": 500,
        }
        assert {tuple(corner) for corner in coords[()].tolist()} <= {
            (x, y) for x in range(0, 500, 128) for y in range(0, 400, 128)
        }
        n = len(coords)
    assert n > 4
    record = json.loads((folder / "patches" / "s1.json").read_text())
    assert record["mpp"] == {"x": 0.25, "y": 0.25, "source": "openslide.mpp-x"}
    assert record["canvas"]["slide"]["identity"] == open_slide(slides[1].path).identity()
    assert record["tile"]["tile_px"] == 64
    assert record["tissue"]["min_piece_um2"] == 0
    with Image.open(folder / "visualization" / "s1.jpg") as picture:
        assert picture.width >= 1000
    (first, second) = rows(folder / "tiles.csv")
    assert (second["slide_id"], second["coordinates"], int(second["tiles"])) == ("s1", "s1_patches.h5", n)
    assert second["mpp_source"] == "openslide.mpp-x"
    assert 0.005 < float(first["tissue_mm2"]) <= 600 * 500 * 0.0625e-6


def test_finished_slides_are_skipped_until_settings_change_or_a_file_is_gone(tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides"), tmp_path / "out"
    tile_slides(slides, out, TILES, TISSUE)
    assert tile_slides(slides, out, TILES, TISSUE).skipped == ("s0", "s1")
    (out / FOLDER / "visualization" / "s0.jpg").unlink()
    assert tile_slides(slides, out, TILES, TISSUE).done == ("s0",)
    stricter = TileSettings(tile_px=64, mpp=0.5, min_tissue=0.9)
    assert tile_slides(slides, out, stricter, TISSUE).done == ("s0", "s1")
    overlapping = TileSettings(tile_px=64, mpp=0.5, overlap_px=8)
    assert tile_slides(slides, out, overlapping, TISSUE).done == ("s0", "s1")
    assert (out / "20x_64px_8px_overlap" / "tiles.csv").exists()


def test_a_blank_slide_has_no_tiles_and_is_no_problem(tmp_path: Path) -> None:
    glass = np.random.default_rng(0).normal(240, 2, (500, 600, 3)).astype(np.uint8)
    slide = write_svs(tmp_path / "blank.svs", [glass])
    result = tile_slides(find_slides([slide]), tmp_path / "out", TILES, TISSUE)
    assert result.done == ("blank",)
    assert not result.problems
    with h5py.File(tmp_path / "out" / FOLDER / "patches" / "blank_patches.h5") as file:
        assert file["coords"].shape == (0, 2)
        assert file["coords"].dtype == np.int64
    assert (tmp_path / "out" / FOLDER / "visualization" / "blank.jpg").exists()


def test_slides_that_cannot_be_cut_are_a_row_each_with_the_way_out(tmp_path: Path) -> None:
    write_slides(tmp_path / "slides", 1)
    tifffile.imwrite(tmp_path / "slides" / "unscaled.tif", tissue(300, 300), photometric="rgb", tile=(64, 64))
    write_svs(tmp_path / "slides" / "tiny.svs", [tissue(100, 300)])
    write_svs(tmp_path / "slides" / "coarse.svs", [tissue(300, 300)], mpp=1.0)
    (tmp_path / "slides" / "x.svs").write_text("no slide\n")
    result = tile_slides(find_slides([tmp_path / "slides"]), tmp_path / "out", TILES, TISSUE)
    assert result.done == ("s0",)
    errors = {row["slide"]: (row["stage"], row["error"]) for row in rows(tmp_path / "out" / "problems.csv")}
    assert set(errors) == {"unscaled", "tiny", "coarse", "x"}
    assert errors["unscaled"][0] == "open"
    assert "no resolution in the file" in errors["unscaled"][1]
    assert "--mpp 0.25" in errors["unscaled"][1]
    assert errors["tiny"][0] == "read"
    assert "100 × 300 px at level 0, smaller than one tile of 128 × 128 px" in errors["tiny"][1]
    assert "tiny.svs: " in errors["tiny"][1]
    assert "pass --tile-mpp 1 or more" in errors["coarse"][1]
    with_mpp = tile_slides(
        find_slides([tmp_path / "slides" / "unscaled.tif"]), tmp_path / "out", TILES, TISSUE, ReadSettings(mpp=0.25)
    )
    assert with_mpp.done == ("unscaled",)
    record = json.loads((tmp_path / "out" / FOLDER / "patches" / "unscaled.json").read_text())
    assert record["mpp"]["source"] == "explicit"


def test_a_long_slide_gets_a_thumbnail_as_fine_as_its_mask(tmp_path: Path) -> None:
    strip = np.tile(tissue(400, 300), (1, 12, 1))
    slide = write_svs(tmp_path / "long.svs", [strip], mpp=3.0)  # 14 mm
    settings = TileSettings(tile_px=64, mpp=3.0)
    tile_slides(find_slides([slide]), tmp_path / "out", settings, TISSUE)
    (record,) = (tmp_path / "out").glob("3.333x*/patches/long.json")
    content = json.loads(record.read_text())
    assert content["canvas"]["side_px"] == 1800  # 4,800 px · 3 µm / 8 µm
    assert content["places"] == 75 * 4


@pytest.mark.slow
def test_two_workers_cut_the_same_tiles_as_one(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 4)
    for out, settings in (("one", None), ("two", RunSettings(workers=2, threads=1))):
        result = tile_slides(slides, tmp_path / out, TILES, TISSUE, None, settings)
        assert len(result.done) == 4
    for slide in slides:
        name = f"{FOLDER}/patches/{slide.slide_id}_patches.h5"
        with h5py.File(tmp_path / "one" / name) as one, h5py.File(tmp_path / "two" / name) as two:
            np.testing.assert_array_equal(one["coords"][()], two["coords"][()])
    assert (tmp_path / "one" / FOLDER / "tiles.csv").read_bytes() == (
        tmp_path / "two" / FOLDER / "tiles.csv"
    ).read_bytes()
