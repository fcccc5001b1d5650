"""The demo: regions that do not overlap, a made answer, a heat map that finds it, and one folder with a report."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from longvit import demo
from longvit.cli import main
from longvit.config import load_settings
from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings
from longvit.slides.reader import open_slide
from tests.conftest import EXAMPLE_SLIDE, ROOT
from tests.docs.images import differences
from tests.small_slides import write_slide

pytestmark = pytest.mark.xdist_group("demo")  # one worker: the fixture trains
SIZE_PX, MPP = (2220, 2967), 0.499


@pytest.mark.parametrize(("size_px", "mpp"), [(SIZE_PX, MPP), ((40_000, 30_000), 0.25), ((1200, 1100), 0.99)])
def test_regions_do_not_overlap_and_train_keeps_its_distance_from_test(size_px: tuple[int, int], mpp: float) -> None:
    regions = demo.lay_out(size_px, mpp)
    assert len(regions) == 64
    side_px = regions[0].side_level0_px
    assert 127 < side_px * mpp <= 128
    columns = sorted({region.x_level0_px for region in regions})
    rows = sorted({region.y_level0_px for region in regions})
    for starts, length_px in ((columns, size_px[0]), (rows, size_px[1])):
        assert starts[0] >= 0
        assert starts[-1] + side_px <= length_px
        assert all(b - a >= side_px for a, b in pairwise(starts))
    ends_px = max(region.x_level0_px for region in regions if region.split == "train") + side_px
    begins_px = min(region.x_level0_px for region in regions if region.split == "test")
    assert (begins_px - ends_px) * mpp >= 0.98 * demo.GAP_UM
    assert sum(region.split == "train" for region in regions) == 40


def test_on_the_example_the_gap_is_150_px() -> None:
    regions = demo.lay_out(SIZE_PX, MPP)
    assert regions[5].x_level0_px - (regions[4].x_level0_px + 256) >= 150


def test_a_slide_that_is_too_small_says_what_is_needed() -> None:
    with pytest.raises(InputError, match=r"1024 × 1024 µm.*needs 1099 × 1024 µm"):
        demo.lay_out((2048, 2048), 0.5)


def test_haematoxylin_is_told_from_eosin_and_glass() -> None:
    stains = np.array(demo.STAINS) / np.linalg.norm(demo.STAINS, axis=1, keepdims=True)

    def pixel(haematoxylin: float, eosin: float) -> np.ndarray:
        density = haematoxylin * stains[0] + eosin * stains[1]
        return np.round(256 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8).reshape(1, 1, 3)

    for amount in (0.2, 0.8):
        assert demo.haematoxylin(pixel(amount, 0)).item() == pytest.approx(amount, abs=0.01)
        assert demo.haematoxylin(pixel(amount, 0.5)).item() == pytest.approx(amount, abs=0.02)
    assert demo.haematoxylin(pixel(0, 0.8)).item() == pytest.approx(0, abs=0.02)
    assert abs(demo.haematoxylin(np.full((2, 2, 3), 255, np.uint8))).max() < 1e-6


def test_no_example_slide_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "EXAMPLE", "not-there.svs")
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--slide" in error


def test_a_slide_without_resolution_names_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slide = write_slide(tmp_path / "a.tif", mpp=None)
    assert main(["demo", "--slide", str(slide), "--out", str(tmp_path / "demo")]) == 2
    assert "no resolution in the file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoOutcome:
    """The demo on the real slide."""
    settings = replace(load_settings(FinetuneSettings, "tiny"), device="cpu", threads=1, bootstrap=100)
    return demo.run_demo(tmp_path_factory.mktemp("demo") / "out", settings=settings)


@pytest.mark.slow
def test_the_demo_learns_on_the_left_what_holds_on_the_right_where_colour_tells_nothing(
    outcome: demo.DemoOutcome,
) -> None:
    metrics = outcome.finetuned.metrics
    assert metrics["splits"]["test"]["slides"] == 26
    assert metrics["splits"]["test"]["auc"] > 0.9
    controls = {name: metrics["controls"][name]["test"]["auc"] for name in ("mean_colour", "random_encoder")}
    assert max(controls.values()) < 0.75
    assert controls["mean_colour"] == pytest.approx(0.5, abs=0.1)
    assert "mean colour" in outcome.summary()


@pytest.mark.slow
def test_the_heat_map_finds_the_squares_without_having_been_given_a_place(outcome: demo.DemoOutcome) -> None:
    assert outcome.heat_map_auc > 0.7
    assert f"AUC {outcome.heat_map_auc:.2f}" in outcome.summary()


@pytest.mark.slow
def test_the_readme_has_the_numbers_of_the_demo(outcome: demo.DemoOutcome) -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = re.search(r"\(AUC (\.\d+), mean colour (\.\d+)\)\. Its heat map finds the squares \(AUC (\.\d+)\)", text)
    assert found is not None
    metrics = outcome.finetuned.metrics
    values = [metrics["splits"]["test"]["auc"], metrics["controls"]["mean_colour"]["test"]["auc"], outcome.heat_map_auc]
    assert [float(number) for number in found.groups()] == pytest.approx(values, abs=0.02)  # processors differ


@pytest.mark.slow
def test_the_image_of_the_readme_is_the_heat_map_of_the_demo(outcome: demo.DemoOutcome) -> None:
    found = differences(ROOT / "docs" / "demo.png", outcome.heat_map_png)
    assert not found, "copy known_answer/heat_map.png of longvit demo to docs/demo.png"


@pytest.mark.slow
def test_everything_lies_in_one_folder(outcome: demo.DemoOutcome) -> None:
    folder = outcome.report.parent
    with (folder / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows].count("test") == 26
    assert [row["label"] for row in rows] == [*demo.CLASSES] * 35
    with open_slide(folder / rows[0]["path"]) as sharp, open_slide(folder / rows[1]["path"]) as changed:
        assert sharp.size_px == (256, 256)
        assert sharp.mpp is not None
        assert sharp.mpp.x == pytest.approx(MPP, rel=1e-3)
        before, after = (slide.read_region(0, 0, 0, 256, 256) for slide in (sharp, changed))
    with open_slide(EXAMPLE_SLIDE) as slide:
        position = (int(rows[0]["x_level0_px"]), int(rows[0]["y_level0_px"]))
        np.testing.assert_array_equal(before, slide.read_region(*position, 0, 256, 256))
    y, x = np.nonzero((before != after).any(2))
    left, top, side = (int(rows[1][f"square_{name}"]) for name in ("x_px", "y_px", "side_px"))
    assert (left <= x.min()) & (x.max() < left + side) & (top <= y.min()) & (y.max() < top + side)
    assert outcome.heat_map_png.exists()
    assert (folder / "known_answer" / "squares.csv").exists()
    text = outcome.report.read_text(encoding="utf-8")
    for words in ("known answer", "one slide", "No place was given", "control: mean colour"):
        assert words in text


@pytest.mark.slow
def test_the_demo_given_again_computes_nothing(outcome: demo.DemoOutcome) -> None:
    folder = outcome.report.parent
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    settings = load_settings(FinetuneSettings, folder / "run" / "settings.yaml")
    again = demo.run_demo(folder, settings=settings)
    assert again.finetuned.was_finished
    assert again.heat_map_auc == outcome.heat_map_auc
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == kept


@pytest.mark.slow
def test_a_folder_with_another_slides_demo_is_refused(outcome: demo.DemoOutcome, tmp_path: Path) -> None:
    other = write_slide(tmp_path / "other.tif", size_px=(320, 320), mpp=4)
    with pytest.raises(InputError, match=rf"holds the demo of {EXAMPLE_SLIDE.name}; choose another folder"):
        demo.run_demo(outcome.report.parent, slide=other)
