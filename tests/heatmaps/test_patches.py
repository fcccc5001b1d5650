"""Top and bottom patches: the right ones, at full resolution, ranked over the cohort within each class."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.heatmaps.made import made_contributions
from tests.small_slides import write_slide

from longvit.errors import InputError
from longvit.heatmaps import patches as patches_module
from longvit.heatmaps.cohort_patches import write_cohort_patches
from longvit.heatmaps.heat_map import HeatMap, of_contributions
from longvit.heatmaps.patches import contact_sheet, patch_pixels, patches_of, write_patches
from longvit.slides.reader import open_slide


def slide_and_map(folder: Path, slide_id: str = "a") -> tuple[Any, HeatMap]:
    slide = open_slide(write_slide(folder / f"{slide_id}.tif", size_px=(320, 200)))
    return slide, of_contributions(slide_id, slide.canvas(128), made_contributions(4))


def test_the_patches_are_the_highest_and_lowest_and_none_is_both(tmp_path: Path) -> None:
    _, heat_map = slide_and_map(tmp_path)
    chosen = patches_of(heat_map, 3)
    order = np.argsort(heat_map.scores)
    assert [patch.score for patch in chosen] == [float(heat_map.scores[i]) for i in (*order[::-1][:3], *order[:3])]
    assert [patch.file for patch in chosen][::3] == ["top_01.jpg", "bottom_01.jpg"]
    assert len(patches_of(heat_map, 99)) == 16
    one = replace(heat_map, boxes=heat_map.boxes[:1], scores=heat_map.scores[:1])
    assert len(patches_of(one, 5)) == 2


def test_a_patch_is_the_slide_at_full_resolution(tmp_path: Path) -> None:
    """Patches of 80 × 50 px of the slide, though the canvas has 32 × 32 px for each."""
    slide, heat_map = slide_and_map(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "top_07.jpg").touch()
    patches = write_patches(heat_map, slide, tmp_path / "out", 2)
    for patch in patches:
        x, y = int(patch.x_level0_px), int(patch.y_level0_px)
        assert (x % 80, y % 50, patch.width_level0_px, patch.height_level0_px) == (0, 0, 80, 50)
        expected = slide.read_region(x, y, 0, 80, 50)
        assert (patch_pixels(slide, patch) == expected).all()
        image = np.asarray(Image.open(tmp_path / "out" / patch.file))
        assert np.abs(image.astype(int) - expected).mean() < 7  # of noise; another patch: 13
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "contact_sheet.jpg", "top_01.jpg", "top_02.jpg", "bottom_01.jpg", "bottom_02.jpg",
    }  # fmt: skip


def test_a_patch_that_begins_between_pixels_has_every_pixel_it_touches(tmp_path: Path) -> None:
    slide, heat_map = slide_and_map(tmp_path)
    (patch, *_) = patches_of(heat_map, 1)
    between = replace(patch, x_level0_px=10.5, y_level0_px=7.25, width_level0_px=20.0, height_level0_px=3.5)
    assert (patch_pixels(slide, between) == slide.read_region(10, 7, 0, 21, 4)).all()


def test_a_patch_that_is_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, heat_map = slide_and_map(tmp_path)
    monkeypatch.setattr(patches_module, "_MOST_READ_PX", 60)
    with pytest.raises(InputError, match="80 × 50 px at the lowest level"):
        write_patches(heat_map, slide, tmp_path / "out", 1)


def record(slide_id: str, name: str, scores: dict[str, float], folder: Path) -> dict[str, Any]:
    """Record of a slide with patches of these scores, whose images are of one colour."""
    place = folder / f"{slide_id}.patches"
    place.mkdir(parents=True)
    found = []
    for file, score in scores.items():
        Image.new("RGB", (40, 30), (round(100 * score) + 100,) * 3).save(place / f"{file}.jpg")
        kind, rank = file.split("_")
        place_px = {f"{side}_level0_px": 1.0 for side in ("x", "y", "width", "height")}
        found.append({"kind": kind, "rank": int(rank), "score": score, "file": f"{file}.jpg", **place_px})
    return {"slide_id": slide_id, "heatmaps": {"meaning": {"class": name}, "patches": found}}


def test_the_cohort_is_ranked_within_each_class(tmp_path: Path) -> None:
    images = tmp_path / "heatmaps"
    records = [
        record("a", "tumour", {"top_01": 0.5, "top_02": 0.4, "bottom_01": -0.3, "bottom_02": -0.1}, images),
        record("b", "tumour", {"top_01": 0.9, "top_02": 0.1, "bottom_01": -0.2, "bottom_02": 0.0}, images),
        record("c", "benign/x", {"top_01": 1.0, "bottom_01": -1.0}, images),
        {"slide_id": "d"},
    ]
    (tmp_path / "top" / "tumour").mkdir(parents=True)
    (tmp_path / "top" / "tumour" / "09_old.jpg").touch()
    with write_cohort_patches(records, images, tmp_path, 2).open() as file:
        rows = list(csv.DictReader(file))
    ranked = [(row["class"], row["kind"], row["slide_id"], float(row["score"])) for row in rows]
    assert ranked == [
        ("benign/x", "top", "c", 1.0),
        ("benign/x", "bottom", "c", -1.0),
        ("tumour", "top", "b", 0.9),
        ("tumour", "top", "a", 0.5),
        ("tumour", "bottom", "a", -0.3),
        ("tumour", "bottom", "b", -0.2),
    ]
    for row in rows:
        value = np.asarray(Image.open(tmp_path / row["file"])).mean()
        assert value == pytest.approx(round(100 * float(row["score"])) + 100, abs=2)
    assert (tmp_path / "top" / "tumour.jpg").exists()
    assert {path.name for path in (tmp_path / "top" / "tumour").iterdir()} == {"01_b.jpg", "02_a.jpg"}


def test_the_lowest_patches_begin_a_row_of_the_contact_sheet() -> None:
    """Beside the highest, in the same row, they were taken for some of them."""
    dark, light = np.full((8, 8, 3), 0, np.uint8), np.full((8, 8, 3), 200, np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([dark] * 7 + [light] * 2, [""] * 9, 7))).convert("L"))
    middle = sheet[104::232, 104::200]  # of each thumbnail
    assert middle.shape == (3, 6)
    assert middle[0] == pytest.approx([0] * 6, abs=5)
    assert middle[1] == pytest.approx([0, *[255] * 5], abs=5)
    assert middle[2] == pytest.approx([200, 200, *[255] * 4], abs=5)


def test_a_contact_sheet_holds_any_number_of_images_of_any_shape(tmp_path: Path) -> None:
    for n in (0, 1, 7):
        images = [np.full((5 + 300 * i, 20, 3), 90, np.uint8) for i in range(n)]
        (tmp_path / "a.jpg").write_bytes(contact_sheet(images, [f"µ\x00 {i}\n$x$" for i in range(n)]))
        width, height = Image.open(tmp_path / "a.jpg").size
        assert width == 8 + 200 * max(1, min(n, 6))
        assert height == 8 + 232 * (2 if n == 7 else 1)
