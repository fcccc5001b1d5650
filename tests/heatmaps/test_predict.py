"""`longvit predict --heatmaps`: files of the wanted formats, resumed where one is missing, never a lost prediction."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.small_slides import write_model, write_slide

from longvit.cli import main
from longvit.data.slide_list import find_slides
from longvit.errors import InputError
from longvit.heatmaps import formats
from longvit.heatmaps.formats import HeatMapSettings
from longvit.interpret import class_contributions
from longvit.model.pretrained import load_model
from longvit.slide_jobs.predict import PredictJob, predict_slides
from longvit.slides.reader import open_slide

Captured = pytest.CaptureFixture[str]
SUFFIXES = (".geojson.gz", ".scores.ome.tif", ".colour.ome.tif", ".heat.png", ".heat.groovy")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", fit="pad")
    for name in "ab":
        write_slide(tmp_path / "slides" / f"{name}.tif", seed=ord(name))
    return tmp_path


def predict(folder: Path, *more: str) -> int:
    words = [str(folder / "model"), str(folder / "slides"), "--out", str(folder / "out")]
    return main(["predict", *words, "--device", "cpu", "--threads", "1", *more])


def test_every_format_is_written_and_agrees_with_the_contributions(made: Path) -> None:
    assert predict(made, "--heatmaps", "geojson,ome-tiff", "--heatmaps", "png,patches", "--top-k", "1") == 0
    folder = made / "out" / "heatmaps"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}{suffix}" for name in "ab" for suffix in SUFFIXES),
        "a.patches",
        "b.patches",
    }
    record = json.loads((made / "out" / "slides" / "a.json").read_text())
    highest = record["heatmaps"]["meaning"]["class"]
    assert highest == record["prediction"]["prediction"]
    model = load_model(made / "model")
    with open_slide(made / "slides" / "a.tif") as slide:
        canvas = slide.canvas(64, "pad")
    expected = class_contributions(model, canvas, ["benign", "tumour"].index(highest)).per_patch
    content = json.loads(gzip.decompress((folder / "a.geojson.gz").read_bytes()))
    tiles = [f for f in content["features"] if f["properties"]["objectType"] == "tile"]
    assert len(content["features"]) == len(tiles) + 2
    values = [f["properties"]["measurements"][f"contribution to {highest}"] for f in tiles]
    assert np.allclose(values, expected.ravel())
    raster = tifffile.imread(folder / "a.scores.ome.tif")
    assert set(np.unique(raster)) <= set(expected.ravel())
    with (made / "out" / "patches.csv").open() as file:
        assert {row["slide_id"] for row in csv.DictReader(file)} <= {"a", "b"}
    assert len(list((made / "out" / "top").rglob("*.jpg"))) >= 2
    assert len(list((made / "out" / "bottom").rglob("*.jpg"))) >= 2


def test_a_slide_whose_heat_map_is_missing_is_done_again_and_no_other(made: Path, capsys: Captured) -> None:
    assert predict(made) == 0
    assert predict(made, "--heatmaps", "geojson,png") == 0
    assert "2 done" in capsys.readouterr().err
    assert predict(made, "--heatmaps", "geojson,png") == 0
    assert predict(made, "--heatmaps", "png") == 0
    assert predict(made) == 0
    assert capsys.readouterr().err.count("0 done, 2 finished before") == 3
    (made / "out" / "heatmaps" / "b.heat.groovy").unlink()
    assert predict(made, "--heatmaps", "geojson,png") == 0
    assert "1 done, 1 finished before" in capsys.readouterr().err
    assert (made / "out" / "heatmaps" / "b.heat.groovy").exists()
    assert predict(made, "--heatmaps", "geojson", "--top-k", "2") == 0
    assert "2 done" in capsys.readouterr().err


def test_a_run_that_was_interrupted_between_two_files_resumes(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the OME-TIFF was written: the record is missing, so that the slide is done again, whole."""
    write = formats.write_scores

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    slides = find_slides([made / "slides" / "a.tif"])
    wanted = ("geojson", "ome-tiff")
    monkeypatch.setattr(formats, "write_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_slides(slides, made / "out", made / "model", heatmaps=wanted)
    assert (made / "out" / "heatmaps" / "a.geojson.gz").exists()
    assert not (made / "out" / "slides" / "a.json").exists()
    monkeypatch.setattr(formats, "write_scores", write)
    assert predict_slides(slides, made / "out", made / "model", heatmaps=wanted).done == ("a",)
    assert (made / "out" / "heatmaps" / "a.colour.ome.tif").exists()
    assert predict_slides(slides, made / "out", made / "model", heatmaps=wanted).skipped == ("a",)


def test_a_heat_map_that_cannot_be_written_costs_no_prediction(
    made: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = formats.write_geojson

    def fails_on_a(heat_map: Any, *arguments: Any) -> None:
        if heat_map.slide_id == "a":
            raise InputError("a.geojson.gz: not written: no space left on the disk")
        write(heat_map, *arguments)

    monkeypatch.setattr(formats, "write_geojson", fails_on_a)
    assert predict(made, "--heatmaps", "geojson,png") == 1
    assert "2 done, 1 without a heat map" in capsys.readouterr().err
    with (made / "out" / "problems.csv").open() as file:
        (problem,) = csv.DictReader(file)
    assert (problem["slide"], problem["stage"]) == ("a", "heatmap")
    assert problem["error"] == "heat map geojson: a.geojson.gz: not written: no space left on the disk"
    with (made / "out" / "predictions.csv").open() as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == ["a", "b"]
    assert (made / "out" / "heatmaps" / "a.heat.png").exists()
    monkeypatch.setattr(formats, "write_geojson", write)
    assert predict(made, "--heatmaps", "geojson,png") == 0
    assert "1 done, 1 finished before" in capsys.readouterr().err
    assert not (made / "out" / "problems.csv").exists()


def test_a_slide_that_was_removed_since_it_was_read_has_no_patches_but_a_prediction(made: Path) -> None:
    model = load_model(made / "model")
    (listed,) = find_slides([made / "slides" / "a.tif"])
    job = PredictJob(model, made / "out" / "slides", heat_maps=HeatMapSettings(("patches", "geojson"), 1))
    with open_slide(listed.path) as slide:
        canvas = slide.canvas(64, "pad")
    os.unlink(listed.path)  # noqa: PTH108
    record = job.finish(listed, "0", canvas)
    assert "no such file" in record["heatmap_problem"]
    assert record["prediction"]
    assert list(record["heatmaps"]["files"]) == ["geojson"]
    assert not job.is_finished("a", "0")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--heatmaps", "geojsn"], "--heatmaps geojsn: no such format; did you mean geojson?"),
        (
            ["--heatmaps", "png,zarr"],
            "--heatmaps zarr: no such format; choose from geojson, ome-tiff, png, patches, dicom",
        ),
        (["--heatmaps", "png", "--top-k", "0"], "--top-k 0: from 1 to 99"),
    ],
)
def test_a_wrong_format_is_one_line_before_any_slide(more: list[str], words: str, made: Path, capsys: Captured) -> None:
    assert predict(made, *more) == 2
    assert words in capsys.readouterr().err
    assert not (made / "out").exists()


def test_a_long_slide_name_has_heat_maps_too(made: Path) -> None:
    name = "x" * 180  # the longest that is accepted
    slide = write_slide(made / "slides" / f"{name}.tif")
    wanted = [name for name in formats.FORMATS if name != "dicom"]  # the slide is a TIFF
    result = predict_slides(find_slides([slide]), made / "out", made / "model", heatmaps=wanted, top_k=1)
    assert result.problems == ()
    assert len(list((made / "out" / "heatmaps").iterdir())) == len(SUFFIXES) + 1


@pytest.mark.slow
def test_workers_write_the_heat_maps_of_one_process(made: Path) -> None:
    assert predict(made, "--heatmaps", "geojson") == 0
    path = made / "out" / "heatmaps" / "a.geojson.gz"
    here = path.read_bytes()
    path.unlink()
    assert predict(made, "--heatmaps", "geojson", "--workers", "2") == 0
    assert path.read_bytes() == here
