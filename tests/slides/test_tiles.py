"""Tiles: the same µm on every scanner, no drift, pixels as a plain read gives them, a picture that shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.slides.slide_files import pyramid, tissue, write_svs

from longvit.errors import InputError
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide
from longvit.slides.tile_overview import draw_tiles
from longvit.slides.tile_reading import level_for, pieces_read, read_tiles
from longvit.slides.tiles import TileGrid, TileSettings, tile_grid
from longvit.slides.tissue import Tissue, TissueSettings, tissue_of_canvas


def everywhere(width: float, height: float, x: float = 0, y: float = 0) -> Tissue:
    """Tissue all over a slide."""
    return Tissue(np.ones((8, 8), bool), Box(x, y, width, height), (8.0, 8.0), 0.1, (1, 1, 1), 0.0)


def grid_of(width: float, height: float, slide_mpp: float, **settings: float) -> TileGrid:
    return tile_grid(everywhere(width, height), Mpp(slide_mpp, slide_mpp, "explicit"), TileSettings(**settings))


def pixels_of(path: Path, grid: TileGrid, threads: int = 2) -> np.ndarray:
    """(N, P, P, 3), in the order of the grid; every tile comes once."""
    pixels = np.zeros((len(grid), grid.settings.tile_px, grid.settings.tile_px, 3), np.uint8)
    seen: list[int] = []
    with open_slide(path) as slide:
        for some in read_tiles(slide, grid, threads=threads):
            pixels[some.numbers] = some.pixels
            seen += some.numbers.tolist()
    assert sorted(seen) == list(range(len(grid)))
    return pixels


def test_a_tile_has_the_same_um_on_every_scanner() -> None:
    half, quarter = grid_of(2560, 1536, 0.5), grid_of(5120, 3072, 0.25)
    assert (half.width_level0_px, quarter.width_level0_px) == (256, 512)
    np.testing.assert_array_equal(quarter.coords, 2 * half.coords)
    assert len(half) == half.places == 60
    np.testing.assert_array_equal(half.coords[:2], [[0, 0], [256, 0]])


def test_corners_do_not_drift_where_a_tile_is_a_fraction_of_pixels() -> None:
    grid = grid_of(100_000, 700, 0.2347, tile_px=224, mpp=0.5)
    side = 224 * 0.5 / 0.2347
    exact = np.arange(int(100_000 // side)) * side
    assert len(grid) == len(exact)
    assert np.abs(grid.coords[:, 0] - exact).max() <= 0.5


def test_overlap_is_in_pixels_of_the_tile() -> None:
    grid = grid_of(1024, 512, 0.25, overlap_px=64)
    assert sorted(set(grid.coords[:, 0])) == [0, 384]
    assert grid.width_level0_px == 512


def test_bounds_that_begin_inside_the_file_keep_level0_coordinates() -> None:
    grid = tile_grid(everywhere(600, 600, x=1000, y=2000), Mpp(0.5, 0.5, "explicit"), TileSettings())
    np.testing.assert_array_equal(grid.coords, [[1000, 2000], [1256, 2000], [1000, 2256], [1256, 2256]])


def test_pixels_that_are_not_square_give_tiles_that_are() -> None:
    grid = tile_grid(everywhere(1024, 1024), Mpp(0.25, 0.5, "explicit"), TileSettings())
    assert (grid.width_level0_px, grid.height_level0_px) == (512, 256)
    assert len(grid) == 8


def test_min_tissue_decides_and_zero_takes_the_whole_grid() -> None:
    mask = np.zeros((4, 4), bool)
    mask[:, :2] = True
    mask[0, 2] = True
    half = Tissue(mask, Box(0, 0, 1024, 1024), (128.0, 128.0), 0.1, (1, 1, 1), 0.0)
    mpp = Mpp(0.5, 0.5, "explicit")
    counts = {
        share: len(tile_grid(half, mpp, TileSettings(tile_px=512, min_tissue=share))) for share in (0, 0.25, 0.3, 1)
    }
    assert counts == {0: 4, 0.25: 3, 0.3: 2, 1: 2}
    grid = tile_grid(half, mpp, TileSettings(tile_px=512))
    np.testing.assert_allclose(grid.tissue, [1, 0.25, 1])


def test_a_slide_a_little_smaller_than_a_tile_is_one_tile_and_a_smaller_one_is_refused() -> None:
    assert len(grid_of(256, 256, 0.499)) == 1
    with pytest.raises(InputError, match=r"200 × 256 px at level 0, smaller than one tile of 256 × 256 px.*--tile-px"):
        grid_of(200, 256, 0.5)


def test_a_slide_coarser_than_its_tiles_is_refused_with_the_way_out() -> None:
    assert len(grid_of(1000, 1000, 0.55))
    with pytest.raises(
        InputError, match=r"its 1.1 µm/px are coarser than tiles of 0.5.*2.2 times; pass --tile-mpp 1.1"
    ):
        grid_of(1000, 1000, 1.1)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"tile_px": 0}, "--tile-px 0"),
        ({"mpp": 0}, "--tile-mpp 0"),
        ({"overlap_px": 256}, "--overlap-px 256"),
        ({"min_tissue": 1.5}, "--min-tissue 1.5"),
    ],
)
def test_a_number_that_makes_no_sense_names_its_flag(settings: dict[str, float], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        TileSettings(**settings)


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    """1,100 × 900 px of real tissue at 0.25 µm/px, with a level at 0.5 µm/px; lossless."""
    return write_svs(tmp_path / "a.svs", pyramid(tissue(1100, 900), 2), compression="adobe_deflate")


def test_a_tile_at_the_scale_of_a_level_has_its_very_pixels(slide_path: Path) -> None:
    for tile_mpp, level in ((0.25, 0), (0.5, 1)):
        grid = grid_of(1100, 900, 0.25, tile_px=100, mpp=tile_mpp, overlap_px=13)
        pixels = pixels_of(slide_path, grid)
        with open_slide(slide_path) as slide:
            assert level_for(slide, grid).index == level
            for tile, (x, y) in zip(pixels, grid.coords, strict=True):
                np.testing.assert_array_equal(tile, slide.read_region(x, y, level, 100, 100))


def test_a_tile_between_two_levels_is_resampled_from_the_finer_one(slide_path: Path) -> None:
    grid = grid_of(1100, 900, 0.25, tile_px=96, mpp=0.4)
    pixels = pixels_of(slide_path, grid)
    with open_slide(slide_path) as slide:
        assert level_for(slide, grid).index == 0
        whole = Image.fromarray(slide.read_region(0, 0, 0, 1100, 900))
    side = grid.width_level0_px
    for tile, (x, y) in zip(pixels, grid.coords, strict=True):
        wanted = np.asarray(whole.resize((96, 96), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side)))
        assert np.abs(tile.astype(int) - wanted).max() <= 1


def test_a_slide_at_055_is_enlarged_a_little_from_level_0(slide_path: Path) -> None:
    grid = grid_of(1100, 900, 0.55, tile_px=200, mpp=0.5)
    pixels = pixels_of(slide_path, grid)
    assert len(grid) == 6 * 4
    with open_slide(slide_path) as slide:
        whole = Image.fromarray(slide.read_region(0, 0, 0, 1100, 900))
    side = 200 * 0.5 / 0.55
    box = (*grid.coords[9].astype(float), *(grid.coords[9] + side))
    wanted = np.asarray(whole.resize((200, 200), Image.Resampling.BICUBIC, box=box))
    assert np.abs(pixels[9].astype(int) - wanted).max() <= 1


def test_tiles_are_the_same_whatever_the_threads_and_the_selection(slide_path: Path) -> None:
    grid = grid_of(1100, 900, 0.25, tile_px=64, mpp=0.31)
    one, four = pixels_of(slide_path, grid, threads=1), pixels_of(slide_path, grid, threads=4)
    np.testing.assert_array_equal(one, four)


def test_what_lies_behind_the_end_of_the_slide_is_background(slide_path: Path) -> None:
    grid = TileGrid(
        np.array([[1000, 800]]),
        np.ones(1, np.float32),
        256,
        256,
        1,
        TileSettings(mpp=0.25),
        Mpp(0.25, 0.25, "explicit"),
    )
    tile = pixels_of(slide_path, grid)[0]
    assert (tile[100:] == 255).all()
    assert (tile[:, 100:] == 255).all()
    assert (tile[:99, :99] != 255).any()


def test_neighbours_are_read_together(slide_path: Path) -> None:
    grid = grid_of(1100, 900, 0.25, tile_px=50, mpp=0.25)
    with open_slide(slide_path) as slide:
        everything = slide.levels[0].tiles_in(0, 0, 1100, 900)
        assert everything <= pieces_read(slide, grid) <= 1.1 * everything
        none = TileGrid(grid.coords[:0], grid.tissue[:0], 50, 50, grid.places, grid.settings, grid.mpp)
        assert pieces_read(slide, none) == 0
        assert list(read_tiles(slide, none)) == []


def test_an_abandoned_reading_ends_its_threads(slide_path: Path) -> None:
    import threading

    with open_slide(slide_path) as slide:
        tiles = read_tiles(slide, grid_of(1100, 900, 0.25, tile_px=50, mpp=0.25), threads=2)
        next(tiles)
        tiles.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_the_picture_shows_tiles_where_they_are(slide_path: Path, tmp_path: Path) -> None:
    with open_slide(slide_path) as slide:
        canvas = slide.canvas(1024, "pad")
        found = tissue_of_canvas(canvas, TissueSettings(min_piece_um2=0))
        grid = tile_grid(found, slide.require_mpp(), TileSettings(tile_px=128, mpp=0.5))
    assert len(grid)
    path = draw_tiles(canvas, found, grid, tmp_path / "pictures" / "a.jpg", title="a")
    picture = np.asarray(Image.open(path)).astype(int)
    scale = round(1200 / 1024) * 1024 / 1100
    blue = (picture[..., 2] - picture[..., 0] > 60) & (picture[..., 2] > picture[..., 1] + 20)
    for x, y in grid.coords:
        top, left = round(y * scale), round(x * scale)
        assert blue[max(0, top - 1) : top + 2, left + 10 : left + 200].any(0).mean() > 0.6
    assert picture.shape[0] > 900 * scale  # the words below
