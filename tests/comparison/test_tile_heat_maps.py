"""Heat maps of tile scores: in their place also on slides with an offset, resumed, problems counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tests.comparison.made import TILE_PX
from tests.comparison.test_attention import scores_file

from longvit.comparison.tile_heat_maps import write_trials
from longvit.comparison.tile_score_plots import draw_trials
from longvit.comparison.tile_scores import read_attention
from longvit.data.problems import Problem
from longvit.heatmaps.formats import HeatMapSettings
from longvit.progress import Progress
from longvit.slides.placement import Box
from longvit.slides.reader import Slide

ALL = HeatMapSettings(("geojson", "ome-tiff", "png", "patches"), 1)


def write(trial: Path, settings: HeatMapSettings = ALL) -> tuple[int, tuple[Problem, ...]]:
    with Progress("heat maps", 1, brief=True) as progress:
        return write_trials([trial], {name: trial.parents[1] / f"{name}.png" for name in "ab"}, settings, progress)


def corners(trial: Path, name: str) -> set[tuple[float, float]]:
    path = trial / "attention" / name
    text = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    features = json.loads(text)["features"]
    rings = [f["geometry"]["coordinates"][0] for f in features if f["properties"]["objectType"] == "tile"]
    return {(min(x for x, _ in ring), min(y for _, y in ring)) for ring in rings}


def test_every_slide_with_scores_has_its_files_once(tmp_path: Path) -> None:
    trial = scores_file(tmp_path).parent
    assert write(trial) == (2, ())
    place = trial / "attention"
    assert {path.name for path in place.iterdir()} == {
        f"{name}{suffix}"
        for name in "ab"
        for suffix in (
            ".geojson.gz", ".scores.ome.tif", ".colour.ome.tif", ".heat.png", ".heat.groovy", ".patches",
            ".heatmaps.json",
        )
    }  # fmt: skip
    coords = read_attention(trial / "attention.h5")["a"].coords
    assert coords is not None
    assert corners(trial, "a.geojson.gz") == {(x, y) for x, y in coords.tolist()}
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert write(trial) == (2, ())
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before
    (place / "a.heat.png").unlink()
    assert write(trial) == (2, ())
    assert (place / "a.heat.png").exists()
    assert (place / "b.heat.png").stat().st_mtime_ns == before[place / "b.heat.png"]
    assert (place / "a.patches" / "top_01.jpg").exists()


def test_new_scores_give_new_maps(tmp_path: Path) -> None:
    trial = scores_file(tmp_path).parent
    only = HeatMapSettings(("geojson",), 1)
    write(trial, only)
    before = (trial / "attention" / "a.geojson.gz").read_bytes()
    import h5py

    with h5py.File(trial / "attention.h5", "r+") as file:
        file["a/scores"][0] = 0.9
    write(trial, only)
    assert (trial / "attention" / "a.geojson.gz").read_bytes() != before


def test_a_slide_with_bounds_is_where_qupath_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both GeoJSON files: of --heatmaps and of --pictures."""
    trial = scores_file(tmp_path).parent
    monkeypatch.setattr(Slide, "bounds", property(lambda _: Box(7, 11, 5 * TILE_PX - 7, 2 * TILE_PX - 11)))
    write(trial, HeatMapSettings(("geojson",), 1))
    with Progress("plots", 1, brief=True) as progress:
        draw_trials([trial], {"a": tmp_path / "a.png"}, 1, progress)
    coords = read_attention(trial / "attention.h5")["a"].coords
    expected = {(x - 7, y - 11) for x, y in np.asarray(coords).tolist()}
    assert corners(trial, "a.geojson.gz") == expected
    assert corners(trial, "a.geojson") == expected


def test_a_slide_that_is_gone_is_a_problem_of_its_own(tmp_path: Path) -> None:
    trial = scores_file(tmp_path).parent
    (tmp_path / "b.png").unlink()
    maps, (problem,) = write(trial)
    assert maps == 1
    assert (problem.slide, problem.stage, problem.is_left_out) == ("b", "heatmap", False)
    assert "system, fold 0: " in problem.error
    assert "no such file" in problem.error


def test_damaged_scores_are_a_problem_of_the_system(tmp_path: Path) -> None:
    path = scores_file(tmp_path)
    path.write_bytes(b"nothing")
    maps, (problem,) = write(path.parent)
    assert (maps, problem.slide) == (0, "system")
