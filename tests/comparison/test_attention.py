"""The tiles' scores: one file for all systems, polygons for QuPath, a plot with each tile in its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.comparison.made import TILE_PX, WIDTH, write_features

from longvit.comparison.bag_cohort import make_bag_cohort
from longvit.comparison.tile_score_plots import draw_trials, score_map
from longvit.comparison.tile_scores import TileScores, read_attention, write_attention, write_geojson
from longvit.data.cohort_table import read_cohort
from longvit.errors import InputError
from longvit.progress import Progress
from longvit.slides.canvas import canvas
from longvit.slides.reader import open_slide


def scores_file(folder: Path) -> Path:
    """Slides a and b of one patient, 6 tiles in a row of 5 each; the last tile of a has the highest score."""
    for slide_id in "ab":
        write_features(folder / "features", slide_id, np.ones((6, WIDTH)))
        pixels = np.full((TILE_PX * 2, TILE_PX * 5, 3), 200, np.uint8)
        Image.fromarray(pixels).save(folder / f"{slide_id}.png")
    (folder / "cohort.csv").write_text("case_id,slide_id,survival_months,event\nP0,a,3,1\nP0,b,3,1\n")
    cohort = read_cohort(folder / "cohort.csv", label_column=None)
    bag_cohort = make_bag_cohort(cohort, "survival", folder / "features", None, 10)
    path = folder / "system" / "fold_0" / "attention.h5"
    scores = np.array([0.05] * 5 + [0.4] + [0.05] * 6, np.float32)
    write_attention(path, bag_cohort, bag_cohort.unit_rows(cohort.rows), [scores])
    return path


def test_scores_come_back_slide_by_slide(tmp_path: Path) -> None:
    found = read_attention(scores_file(tmp_path))
    assert list(found) == ["a", "b"]
    assert found["a"].scores[5] == np.float32(0.4)
    assert found["b"].scores.tolist() == pytest.approx([0.05] * 6)
    assert found["a"].coords is not None
    assert found["a"].coords[5].tolist() == [0, TILE_PX]
    assert (found["b"].case_id, found["b"].tile_level0_px) == ("P0", TILE_PX)


def test_geojson_has_a_closed_polygon_per_tile_in_level_0_px(tmp_path: Path) -> None:
    found = read_attention(scores_file(tmp_path))["a"]
    write_geojson(tmp_path / "a.geojson", found)
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == 6
    last = content["features"][5]
    (ring,) = last["geometry"]["coordinates"]
    assert ring[0] == ring[-1] == [0, TILE_PX]
    assert sorted(map(tuple, ring[:-1])) == [(0, 112), (0, 224), (112, 112), (112, 224)]
    assert last["properties"]["measurements"]["attention"] == pytest.approx(0.4)
    assert last["properties"]["measurements"]["attention, share of the highest"] == 1


def test_a_tile_is_drawn_where_it_lies_on_the_slide(tmp_path: Path) -> None:
    found = read_attention(scores_file(tmp_path))["a"]
    of = canvas(open_slide(tmp_path / "a.png"), 560, "pad")  # one canvas px is one slide px; 168 px of margin above
    shares = score_map(of, found)
    assert shares[168 + 112, 0] == 1
    assert shares[168 + 223, 111] == 1
    assert shares[168, 559] == pytest.approx(0.125)
    assert np.isnan(shares[168 + 112, 112])
    assert np.isnan(shares[:168]).all()


def test_pictures_of_a_cell_and_a_slide_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = scores_file(tmp_path).parent
    slides = {name: tmp_path / f"{name}.png" for name in "ab"}
    slides["b"].unlink()
    with Progress("pictures", 1, brief=True) as progress:
        assert draw_trials([trial], slides, 5, progress) == 1
    assert Image.open(trial / "attention" / "a.png").width > 500
    assert (trial / "attention" / "b.geojson").exists()
    assert "b: not drawn" in capsys.readouterr().err


def test_scores_without_coordinates_cannot_be_drawn(tmp_path: Path) -> None:
    without = TileScores("a", "P0", np.ones(3, np.float32), None, None)
    with pytest.raises(InputError, match=r"slide a: no coordinates; extract features that have them"):
        write_geojson(tmp_path / "a.geojson", without)
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match="attention file, or damaged"):
        read_attention(tmp_path / "x.h5")
