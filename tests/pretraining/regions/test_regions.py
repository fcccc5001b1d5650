"""Regions: their places, their resolution, and slides without resolution, size or tissue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.annotations.made import feature, rectangle, write_geojson
from tests.slides.slide_files import pyramid, tissue, write_jpeg, write_scn, write_svs
from tests.small_slides import write_slide

from longvit.annotations.settings import AnnotationSettings
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.pretraining.regions.region_reader import RegionReader, read_region
from longvit.pretraining.regions.regions import Regions, RegionSettings, find_regions
from longvit.slides.placement import Box
from longvit.slides.reader import Slide

SMALL = RegionSettings(region_px=(64, 96), per_slide=20)


def listed(*paths: Path, mpp: float | None = None) -> list[ListedSlide]:
    return [ListedSlide(path.stem, path, mpp) for path in paths]


def found(path: Path, settings: RegionSettings = SMALL, seed: int = 0) -> Regions:
    return find_regions(listed(path), settings, seed, progress=False)


def boxes(regions: Regions, slide: int = 0, epoch: int = 0) -> list[tuple[int, ...]]:
    n = regions.settings.per_slide
    every = [regions.region(index, epoch) for index in range(slide * n, slide * n + n)]
    return [(r.side_px, r.x_px, r.y_px, r.width_px, r.height_px) for r in every]


def write_plain(path: Path, pixels: np.ndarray, mpp: float) -> Path:
    """Without loss, so that what is read can be compared to the last bit."""
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="deflate", metadata=None, **resolution)
    return path


def test_regions_of_a_slide_stay_when_others_come_or_go(tmp_path: Path) -> None:
    a, b = (write_slide(tmp_path / f"{name}.tif", seed=i, size_px=(300, 200)) for i, name in enumerate("ab"))
    both, alone = find_regions(listed(a, b), SMALL, 3, progress=False), found(b, seed=3)
    assert boxes(both, 1) == boxes(alone)
    assert boxes(both, 0) != boxes(both, 1)
    assert boxes(alone) != boxes(found(b, seed=4))
    assert len(set(boxes(alone))) == 20
    more = find_regions(listed(b), replace(SMALL, per_slide=30), 3, progress=False)
    assert boxes(more)[:20] == boxes(alone)
    assert both.samples == 40
    assert [both.region(i).name for i in (0, 21)] == ["a#0", "b#1"]


def test_regions_are_kept_over_the_epochs_unless_fresh_ones_are_asked_for(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", size_px=(300, 200))
    assert boxes(found(path), epoch=5) == boxes(found(path))
    fresh = found(path, replace(SMALL, fresh=True))
    assert boxes(fresh, epoch=5) != boxes(fresh)
    assert boxes(fresh, epoch=5) == boxes(fresh, epoch=5)


def test_sides_and_places_are_uniform_and_reach_every_rim(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", size_px=(300, 200))
    drawn = np.array(boxes(found(path, replace(SMALL, per_slide=4000))))
    sides, x, y = drawn[:, 0], drawn[:, 1], drawn[:, 2]
    assert (sides.min(), sides.max()) == (64, 96)
    assert abs(sides.mean() - 80) < 0.5
    assert (x.min(), y.min()) == (0, 0)
    assert ((x + drawn[:, 3]).max(), (y + drawn[:, 4]).max()) == (300, 200)
    share = x / (300 - drawn[:, 3])
    assert abs(share.mean() - 0.5) < 0.02


@pytest.mark.parametrize(("mpp", "level", "scale"), [(0.25, 1, 1.0), (0.125, 2, 1.0), (0.3, 0, 5 / 3), (0.5, 0, 1.0)])
def test_the_resolution_counts_not_the_number_of_the_level(
    tmp_path: Path, mpp: float, level: int, scale: float
) -> None:
    path = write_svs(tmp_path / "a.svs", pyramid(tissue(768, 512), 3), mpp, compression="deflate", tile_px=64)
    settings = RegionSettings(region_px=(40, 60), per_slide=5)
    regions = found(path, settings)
    (source,) = regions.sources
    assert source.level == level
    assert source.scale == pytest.approx((scale, scale))
    region = regions.region(2)
    assert (region.width_px, region.height_px) == (round(region.side_px * scale),) * 2
    # The same field, cut out of level 0 by Pillow at one go.
    down = 768 / pyramid(tissue(768, 512), 3)[level].shape[1]
    box = [v * down for v in (region.x_px, region.y_px, region.x_px + region.width_px, region.y_px + region.height_px)]
    whole = Image.fromarray(tissue(768, 512))
    plain = np.asarray(whole.resize((region.side_px,) * 2, Image.Resampling.BICUBIC, box=tuple(box)))
    assert np.abs(read_region(region, settings).astype(int) - plain).mean() < 4


def test_a_region_is_the_pixels_of_the_slide(tmp_path: Path) -> None:
    pixels = tissue(300, 200)
    regions = found(write_plain(tmp_path / "a.tif", pixels, 0.5))
    for index in range(5):
        r = regions.region(index)
        expected = pixels[r.y_px : r.y_px + r.side_px, r.x_px : r.x_px + r.side_px]
        assert np.array_equal(read_region(r, SMALL), expected)


def test_regions_stay_within_what_was_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.tif", size_px=(400, 300))
    monkeypatch.setattr(Slide, "bounds", property(lambda _: Box(100, 50, 150, 120)))
    drawn = np.array(boxes(found(path, replace(SMALL, per_slide=300))))
    assert (drawn[:, 1].min(), drawn[:, 2].min()) == (100, 50)
    assert ((drawn[:, 1] + drawn[:, 3]).max(), (drawn[:, 2] + drawn[:, 4]).max()) == (250, 170)


def test_a_folder_of_regions_gives_the_same_bits(tmp_path: Path) -> None:
    regions = found(write_jpeg(tmp_path / "a.jpg", tissue(300, 200)), replace(SMALL, mpp=0.25, region_mpp=0.3))
    region, cache = regions.region(3), tmp_path / "cache"
    plain = read_region(region, regions.settings)
    for _ in range(2):
        with RegionReader(regions.settings, cache) as reader:
            assert np.array_equal(reader.pixels(region), plain)
    (file,) = cache.iterdir()
    kept = np.load(file)
    assert kept.shape == (3, region.height_px, region.width_px)
    file.write_bytes(file.read_bytes()[:-1000])
    with RegionReader(regions.settings, cache) as reader:  # read again, and mended
        assert np.array_equal(reader.pixels(region), plain)
    assert np.array_equal(np.load(file), kept)


def test_a_slide_smaller_than_a_region_is_a_row_with_both_sizes_and_the_flag(tmp_path: Path) -> None:
    small, large = write_slide(tmp_path / "small.tif"), write_slide(tmp_path / "large.tif", size_px=(400, 300))
    settings = RegionSettings(region_px=(200, 300), per_slide=2)
    regions = find_regions(listed(small, large), settings, progress=False)
    assert [s.slide_id for s in regions.sources] == ["large"]
    (problem,) = regions.problems
    assert problem.slide == "small"
    assert problem.error == (
        f"{small}: 160 × 96 px at 0.5 µm/px, too small for regions of 200 to 300 px (half of the smallest must fit); "
        "pass a smaller --region-px"
    )


def test_a_slide_a_little_smaller_than_a_region_gives_smaller_ones(tmp_path: Path) -> None:
    regions = found(write_slide(tmp_path / "a.tif"), RegionSettings(region_px=(120, 200), per_slide=3))
    assert regions.sources[0].sides_px == (96, 96)
    assert "160 × 96 px, smaller than a region: regions of 96 px" in regions.notes[0]
    assert {box[0] for box in boxes(regions)} == {96}


def test_slide_without_mpp_names_the_ways_out_and_each_works(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", mpp=None, size_px=(300, 200))
    with pytest.raises(InputError, match=r"no resolution in the file .*--mpp 0\.25.*column mpp.*--ignore-mpp"):
        found(path)
    assert found(path, replace(SMALL, ignore_mpp=True)).sources[0].scale == (1, 1)
    assert found(path, replace(SMALL, mpp=0.25)).sources[0].scale == (2, 2)
    by_column = find_regions(listed(path, mpp=0.4), replace(SMALL, mpp=0.25), progress=False)
    assert by_column.sources[0].scale == pytest.approx((1.25, 1.25))


def test_many_tiles_without_mpp_are_one_line_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = Image.fromarray(tissue(100, 100))
    tiles = [tmp_path / f"t{i}.png" for i in range(30)]
    for tile in tiles:
        pixels.save(tile)
    with pytest.raises(InputError) as error:
        find_regions(listed(*tiles), SMALL)
    assert str(error.value).startswith(f"30 slides, the first {tiles[0]}: no resolution in the file")
    assert "\n" not in str(error.value)
    good = write_slide(tmp_path / "good.tif", size_px=(300, 200))
    capsys.readouterr()
    regions = find_regions(listed(*tiles, good), SMALL)
    assert len(regions.problems) == 30
    said = [line for line in capsys.readouterr().err.splitlines() if "no resolution" in line]
    assert len(said) == 1
    assert "30 slides" in said[0]
    assert "--ignore-mpp" in said[0]


def test_a_coarse_slide_is_enlarged_and_that_is_said_once(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", mpp=1.0, size_px=(300, 200))
    regions = found(path)
    assert regions.sources[0].scale == (0.5, 0.5)
    assert regions.notes == (f"{path}: 1 µm/px, coarser than the 0.5 of the regions: it is enlarged 2 times",)
    region = regions.region(0)
    assert read_region(region, SMALL).shape == (region.side_px, region.side_px, 3)


def test_what_is_no_slide_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = write_slide(tmp_path / "good.tif", size_px=(300, 200))
    text, missing, empty = tmp_path / "text.svs", tmp_path / "missing.svs", tmp_path / "empty.tif"
    text.write_text("no slide")
    empty.touch()
    regions = find_regions(listed(text, good, missing, empty), SMALL, progress=False)
    assert [s.slide_id for s in regions.sources] == ["good"]
    assert [(p.slide, p.stage) for p in regions.problems] == [("text", "open"), ("missing", "open"), ("empty", "open")]
    with pytest.raises(InputError, match=r"text\.svs: no TIFF inside.* \(none of 3 slides is usable\)"):
        find_regions(listed(text, missing, empty), SMALL, progress=False)


def test_a_blank_slide_is_said_and_left_out_where_tissue_is_asked_for(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(242, 2, (200, 300, 1)).clip(0, 255).astype(np.uint8)
    blank = write_plain(tmp_path / "blank.tif", np.repeat(noise, 3, axis=2), 0.5)
    good = write_plain(tmp_path / "good.tif", tissue(300, 200), 0.5)
    regions = find_regions(listed(blank, good), SMALL, progress=False)
    assert regions.notes == (f"{blank}: no tissue found, so its regions are empty",)
    assert len(regions.sources) == 2
    regions = find_regions(listed(blank, good), replace(SMALL, tissue=True), progress=False)
    assert [s.slide_id for s in regions.sources] == ["good"]
    assert "no tissue found" in regions.problems[0].error


def test_centres_lie_on_tissue_where_that_is_asked_for(tmp_path: Path) -> None:
    pixels = np.full((600, 900, 3), 243, np.uint8)
    pixels[100:300, 500:800] = tissue(300, 200)
    path = write_plain(tmp_path / "a.tif", pixels, 0.5)
    drawn = np.array(boxes(found(path, RegionSettings(region_px=(40, 60), per_slide=500, tissue=True))))
    x, y = drawn[:, 1] + drawn[:, 3] / 2, drawn[:, 2] + drawn[:, 4] / 2
    near = 48  # px: the mask is one of cells of 8 µm, and smoothed
    assert x.min() > 500 - near
    assert x.max() < 800 + near
    assert y.min() > 100 - near
    assert y.max() < 300 + near
    assert np.ptp(x) > 250  # all over it
    anywhere = np.array(boxes(found(path, RegionSettings(region_px=(40, 60), per_slide=500))))
    assert (anywhere[:, 1] < 400).mean() > 0.3


def test_the_fingerprint_tells_seeds_settings_and_slides_apart(tmp_path: Path) -> None:
    a, b = (write_slide(tmp_path / f"{name}.tif", seed=i, size_px=(300, 200)) for i, name in enumerate("ab"))
    regions = [
        found(a),
        found(a, seed=1),
        found(b),
        found(a, replace(SMALL, region_mpp=0.6)),
        find_regions(listed(a, b), SMALL, progress=False),
    ]
    assert len({r.fingerprint for r in regions}) == len(regions)
    moved = tmp_path / "elsewhere" / "a.tif"
    moved.parent.mkdir()
    moved.write_bytes(a.read_bytes())
    assert found(moved).fingerprint == found(a).fingerprint


def test_a_small_field_that_is_all_tissue_is_taken_whole(tmp_path: Path) -> None:
    regions = found(write_plain(tmp_path / "a.tif", tissue(100, 100), 0.5), replace(SMALL, tissue=True))
    assert len({box[1:3] for box in boxes(regions)}) > 10


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"region_mpp": 0}, "region_mpp 0"),
        ({"region_px": (9, 8)}, "region_px 9 8"),
        ({"per_slide": 0}, "per_slide 0"),
        ({"max_bad_tiles": -1}, "max_bad_tiles -1"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        RegionSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("tissue_only", [False, True])
def test_centres_of_regions_are_inside_the_annotations(tmp_path: Path, tissue_only: bool) -> None:
    """A hole, an offset of the scanned area, and an area of 0.1 % of the slide, which a coarse grid would miss."""
    pixels = tissue(1200, 900, 600, 900)
    path = write_scn(tmp_path / "a.scn", pyramid(pixels, 2), 104, 52, (1400, 1000))
    settings = RegionSettings(region_px=(40, 60), per_slide=200, mpp=0.5, tissue=tissue_only)
    bounds = Box(104, 52, 1200, 900)
    for outer, hole in [((300, 200, 800, 700), (400, 300, 700, 600)), ((500, 400, 530, 430), None)]:
        rings = [*rectangle(*outer), *([] if hole is None else rectangle(*hole))]
        write_geojson(tmp_path / "r" / "a.geojson", [feature(rings, "Tumor"), feature(rectangle(0, 0, 9, 9), "Other")])
        annotations = AnnotationSettings(regions=tmp_path / "r", region_class=("Tumor",))
        regions = find_regions(listed(path), settings, annotations=annotations, progress=False)
        centres = np.array([(x + w / 2, y + h / 2) for _, x, y, w, h in boxes(regions)]) - (bounds.x, bounds.y)
        margin = max(outer[2] - outer[0], 60) / 512 + 1  # a cell, and whole pixels
        low, high = np.array(outer[:2]) - margin, np.array(outer[2:]) + margin
        assert ((centres >= low) & (centres <= high)).all()
        if hole is not None:
            inner, outside = np.array(hole[:2]) + margin, np.array(hole[2:]) - margin
            assert not ((centres > inner) & (centres < outside)).all(1).any()
            assert len(np.unique((centres // 100).astype(int), axis=0)) > 12  # all around
        assert regions.fingerprint != find_regions(listed(path), settings, progress=False).fingerprint
    with pytest.raises(InputError, match=r"b.geojson: no such file|--regions .*: no file of any slide"):
        find_regions([ListedSlide("b", path)], settings, annotations=annotations, progress=False)
