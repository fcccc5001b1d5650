"""`feature_slides`: bags in either layout whose rows are their tiles', resume, workers, slides that fail."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.slide_jobs.test_tiles import FOLDER, TILES, TISSUE, rows, write_slides
from tests.slides.slide_files import write_svs
from tests.small_slides import write_model

from longvit.data.bags import find_bags, read_bag
from longvit.data.slide_list import find_slides
from longvit.errors import InputError
from longvit.slide_jobs.features import FeaturesJob, batches, feature_slides
from longvit.slide_jobs.reading import ReadSettings, SlideFailedError
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.stain_texture import describe_tile
from longvit.slide_jobs.status import status
from longvit.slide_jobs.tile_encoders import StainTexture
from longvit.slide_jobs.tile_process import TileProcess
from longvit.slide_jobs.tile_reader import ThreadTiles, TilesRequest
from longvit.slide_jobs.tiles import tile_slides
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide
from longvit.slides.tile_reading import TilePixels
from longvit.slides.tiles import TileGrid, TileSettings, tile_grid
from longvit.slides.tissue import Tissue

STAIN = "features_stain-texture"


def test_rows_of_a_bag_are_those_of_its_tiles(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides")
    result = feature_slides(slides, tmp_path / "out", "stain-texture", TILES, TISSUE, batch=3)
    assert result.done == ("s0", "s1")
    folder = tmp_path / "out" / FOLDER / STAIN
    for slide in slides:
        bag = read_bag(folder / f"{slide.slide_id}.h5")
        assert bag.attributes["encoder"] == "stain-texture"
        assert bag.tile_level0_px == 128
        with open_slide(slide.path) as opened:
            for row, (x, y) in zip(bag.features, bag.coords, strict=True):
                tile = opened.read_region(x, y, 1, 64, 64)
                np.testing.assert_array_equal(row, describe_tile(tile))
    table = rows(folder / "features.csv")
    assert [(row["slide_id"], row["features"], row["dim"]) for row in table] == [
        ("s0", "s0.h5", "137"),
        ("s1", "s1.h5", "137"),
    ]
    record = json.loads((folder / "s0.json").read_text())
    assert record["encoder"]["name"] == "stain-texture"
    assert record["tiles"] == len(read_bag(folder / "s0.h5"))
    assert record["mpp"]["source"] == "openslide.mpp-x"
    assert status(tmp_path / "out")[0].verb == "features"


def test_tiles_are_those_of_longvit_tiles(tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides", 1), tmp_path / "out"
    tile_slides(slides, out, TILES, TISSUE)
    feature_slides(slides, out, "stain-texture", TILES, TISSUE)
    with (
        h5py.File(out / FOLDER / "patches" / "s0_patches.h5") as coordinates,
        h5py.File(out / FOLDER / STAIN / "s0.h5") as bag,
    ):
        np.testing.assert_array_equal(coordinates["coords"][()], bag["coords"][()])
        theirs, ours = dict(coordinates["coords"].attrs), dict(bag["coords"].attrs)
        assert theirs.keys() == ours.keys()
        assert {**theirs, "savetodir": ""} == {**ours, "savetodir": ""}
    assert list(find_bags(out, ["s0.svs"]).paths) == ["s0.svs"]  # patches are no bags


def test_clams_layout_holds_the_same_numbers(tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides", 1), tmp_path / "out"
    feature_slides(slides, out, "stain-texture", TILES, TISSUE)
    trident = read_bag(out / FOLDER / STAIN / "s0.h5")
    assert feature_slides(slides, out, "stain-texture", TILES, TISSUE, layout="clam").done == ("s0",)
    folder = out / FOLDER / STAIN
    np.testing.assert_array_equal(read_bag(folder / "h5_files" / "s0.h5").features, trident.features)
    np.testing.assert_array_equal(read_bag(folder / "h5_files" / "s0.h5").coords, trident.coords)
    np.testing.assert_array_equal(read_bag(folder / "pt_files" / "s0.pt").features, trident.features)
    assert feature_slides(slides, out, "stain-texture", TILES, TISSUE, layout="clam").skipped == ("s0",)
    (folder / "pt_files" / "s0.pt").unlink()
    assert feature_slides(slides, out, "stain-texture", TILES, TISSUE, layout="clam").done == ("s0",)


def test_finished_slides_are_skipped_until_encoder_or_tiles_change(tmp_path: Path) -> None:
    slides, out = write_slides(tmp_path / "slides"), tmp_path / "out"
    one = f"longvit:{write_model(tmp_path / 'model', seed=1)}"
    assert feature_slides(slides, out, one, TILES, TISSUE).done == ("s0", "s1")
    assert feature_slides(slides, out, one, TILES, TISSUE).skipped == ("s0", "s1")
    assert feature_slides(slides, out, one, TILES, TISSUE, batch=2).skipped == ("s0", "s1")
    other = f"longvit:{write_model(tmp_path / 'other' / 'model', seed=2)}"
    assert feature_slides(slides, out, other, TILES, TISSUE).done == ("s0", "s1")
    assert feature_slides(slides, out, other, TILES, TISSUE, ReadSettings(mpp=0.3)).done == ("s0", "s1")
    (out / FOLDER / "features_longvit-model" / "s1.h5").write_bytes(b"half")
    assert feature_slides(slides, out, other, TILES, TISSUE, ReadSettings(mpp=0.3)).done == ("s1",)


def test_a_blank_slide_has_an_empty_bag(tmp_path: Path) -> None:
    glass = np.random.default_rng(0).normal(240, 2, (500, 600, 3)).astype(np.uint8)
    slide = write_svs(tmp_path / "blank.svs", [glass])
    result = feature_slides(find_slides([slide]), tmp_path / "out", "stain-texture", TILES, TISSUE)
    assert not result.problems
    with h5py.File(tmp_path / "out" / FOLDER / STAIN / "blank.h5") as file:
        assert (file["features"].shape, file["features"].dtype) == ((0, 137), np.float32)
        assert file["coords"].shape == (0, 2)


def test_one_bad_slide_costs_one_row(tmp_path: Path) -> None:
    write_slides(tmp_path / "slides")
    (tmp_path / "slides" / "x.svs").write_text("no slide\n")
    slides = find_slides([tmp_path / "slides"])
    result = feature_slides(slides, tmp_path / "out", "stain-texture", TILES, TISSUE)
    assert result.done == ("s0", "s1")
    (row,) = rows(tmp_path / "out" / "problems.csv")
    assert (row["slide"], row["stage"]) == ("x", "open")


def damage(path: Path) -> None:
    """Ruins two tiles of level 1, of which features are made, and none of level 0, of which the thumbnail is."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        offsets = tiff.pages[1].dataoffsets[5:7]
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(b"\0" * 40)


def test_tiles_that_cannot_be_read_are_counted_or_end_the_slide(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 1)
    damage(slides[0].path)
    out = tmp_path / "out"
    result = feature_slides(slides, out, "stain-texture", TILES, TISSUE)
    assert result.done == ("s0",)
    (problem,) = result.problems
    assert problem.stage == "tiles"
    assert "2 of " in problem.error
    result = feature_slides(slides, out, "stain-texture", TILES, TISSUE, ReadSettings(max_bad_tiles=1))
    (problem,) = result.left_out
    assert problem.stage == "read"
    assert "--max-bad-tiles 1" in problem.error


def test_features_that_are_not_finite_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slides = write_slides(tmp_path / "slides", 1)

    def encode(self: StainTexture, tiles: np.ndarray) -> np.ndarray:
        features = np.ones((len(tiles), self.dim), np.float32)
        features[0, 0] = np.nan
        return features

    monkeypatch.setattr(StainTexture, "encode", encode)
    result = feature_slides(slides, tmp_path / "out", "stain-texture", TILES, TISSUE)
    (problem,) = result.left_out
    assert problem.stage == "model"
    assert "the features of 1 tiles are not finite, the first at level-0 (" in problem.error
    assert not list((tmp_path / "out" / FOLDER / STAIN).glob("*.h5"))


def test_an_encoder_that_cannot_be_used_is_one_line_before_any_slide(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 1)
    with pytest.raises(InputError, match="--encoder resnet: take one of"):
        feature_slides(slides, tmp_path / "out", "resnet", TILES, TISSUE)
    with pytest.raises(InputError, match="no such file"):
        feature_slides(slides, tmp_path / "out", "torchscript:none.ts", TILES, TISSUE)
    with pytest.raises(InputError, match="--batch 0"):
        feature_slides(slides, tmp_path / "out", "stain-texture", TILES, TISSUE, batch=0)


def test_batches_are_full_whatever_the_blocks() -> None:
    sizes = (1, 5, 0, 2, 9, 3)
    total = sum(sizes)

    def blocks() -> Iterator[TilePixels]:
        first = 0
        for n in sizes:
            numbers = np.arange(first, first + n)
            yield TilePixels(numbers, np.broadcast_to(numbers[:, None, None, None], (n, 2, 2, 3)).astype(np.uint8))
            first += n

    got = list(batches(blocks(), 4))
    assert [len(numbers) for numbers, _ in got] == [4, 4, 4, 4, 4]
    np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in got]), np.arange(total))
    for numbers, pixels in got:
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], numbers)
    assert [len(numbers) for numbers, _ in batches(blocks(), 7)] == [7, 7, 6]
    assert list(batches(iter(()), 4)) == []


def everywhere(mpp: float = 0.25) -> TileGrid:
    """The whole grid of such a slide, in many small tiles."""
    whole = Tissue(np.ones((4, 4), bool), Box(0, 0, 600, 500), (8.0, 8.0), 0.1, (1, 1, 1), 0.0)
    return tile_grid(whole, Mpp(0.25, 0.25, "explicit"), TileSettings(tile_px=16, mpp=mpp))


def test_a_process_reads_the_same_tiles_as_threads(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 1)
    damage(slides[0].path)
    request = TilesRequest(slides[0].path, everywhere(0.5), ReadSettings())
    here, apart = ThreadTiles(2), TileProcess(threads=2)
    try:
        for one, other in zip(here.tiles(request), apart.tiles(request), strict=True):
            np.testing.assert_array_equal(one.numbers, other.numbers)
            np.testing.assert_array_equal(one.pixels, other.pixels)
        assert here.bad_tiles == apart.bad_tiles == 2
        assert here.file_tiles == apart.file_tiles > 10
        first = apart.process
        with pytest.raises(SlideFailedError, match="no such file") as caught:
            list(apart.tiles(TilesRequest(tmp_path / "none.svs", request.grid, ReadSettings())))
        assert caught.value.stage == "open"
        assert sum(len(block.numbers) for block in apart.tiles(request)) == len(request.grid)
        assert apart.process == first  # a slide that fails costs no process
    finally:
        apart.stop()


def test_a_process_that_dies_or_is_silent_costs_one_slide(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 1)
    request = TilesRequest(slides[0].path, everywhere(), ReadSettings())
    reader = TileProcess(silence_s=60)
    try:
        tiles = reader.tiles(request)
        assert len(next(tiles).numbers)
        tiles.close()  # an encoder that fails leaves the rest unread
        for cause, words in (("death", r"the process that read its tiles died \(SIGKILL\)"), ("time", "within 1 s")):
            assert sum(len(block.numbers) for block in reader.tiles(request)) == len(request.grid)
            assert reader.process
            os.kill(reader.process, signal.SIGSTOP)
            killer = threading.Timer(0.5, os.kill, (reader.process, signal.SIGKILL))
            if cause == "death":
                killer.start()
            else:
                reader._timeout_s = 1.0
            with pytest.raises(SlideFailedError, match=words) as caught:
                list(reader.tiles(request))
            assert caught.value.cause == cause
            killer.cancel()
    finally:
        reader.stop()


@pytest.mark.slow
def test_two_workers_write_the_bags_of_one(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 4)
    (tmp_path / "slides" / "x.svs").write_text("no slide\n")
    slides = find_slides([tmp_path / "slides"])
    model = f"longvit:{write_model(tmp_path / 'model')}"
    for out, more in (("one", {}), ("two", {"workers": 2})):
        settings: dict[str, Any] = {"device": "cpu", "threads": 1, **more}
        result = feature_slides(slides, tmp_path / out, model, TILES, TISSUE, None, RunSettings(**settings))
        assert len(result.done) == 4
        assert [problem.slide for problem in result.left_out] == ["x"]
    name = f"{FOLDER}/features_longvit-model"
    for slide in slides[:4]:
        one, two = (read_bag(tmp_path / out / name / f"{slide.slide_id}.h5") for out in ("one", "two"))
        np.testing.assert_array_equal(one.features, two.features)
        np.testing.assert_array_equal(one.coords, two.coords)


@pytest.mark.slow
def test_an_encoder_that_workers_cannot_use_is_one_line(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 2)
    with pytest.raises(InputError, match="no such file"):
        feature_slides(slides, tmp_path / "out", "torchscript:none.ts", TILES, TISSUE, None, RunSettings(workers=2))


def test_a_job_is_built_from_what_run_json_says(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", 1)
    feature_slides(slides, tmp_path / "out", "stain-texture", TILES, TISSUE, layout="clam", batch=5)
    facts = json.loads((tmp_path / "out" / "work" / "features" / "run.json").read_text())
    job = FeaturesJob.from_parameters(Path(facts["folder"]), facts["job"], ReadSettings(**facts["read"]), None)
    assert (job.tiles, job.tissue, job.layout, job.batch) == (TILES, TISSUE, "clam", 5)
    assert job.encoder.name == "stain-texture"
