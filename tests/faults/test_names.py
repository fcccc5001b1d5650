"""Names that no file system, no table or no font takes cost their slide at most, never the run."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from tests.small_slides import write_model, write_slide

from longvit.data.bags import find_bags
from longvit.data.slide_list import ListedSlide
from longvit.files import file_stem, printable, write_text
from longvit.slide_jobs.canvas import canvas_slides
from longvit.slide_jobs.embed import embed_slides
from longvit.slide_jobs.features import feature_slides
from longvit.slide_jobs.predict import predict_slides
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.status import status
from longvit.slide_jobs.tiles import tile_slides
from longvit.slides.tiles import TileSettings
from longvit.slides.tissue import TissueSettings

NOT_UTF8 = os.fsdecode(b"bad\xff\xfe")
NAMES = ("x" * 250, "x" * 250 + "y", "ü" * 120, "nul\0", NOT_UTF8, "..", "a\nb", "$x$", "plain", "nul\0.")


@pytest.fixture
def listed(tmp_path: Path) -> list[ListedSlide]:
    file = write_slide(tmp_path / "in" / "a.tif", size_px=(640, 512))
    strange = tmp_path / "in" / f"{NOT_UTF8}.tif"
    strange.write_bytes(file.read_bytes())
    paths = {NOT_UTF8: strange, "nul\0.": tmp_path / "in" / "a\0.tif"}
    return [ListedSlide(name, paths.get(name, file)) for name in NAMES]


@pytest.mark.parametrize("command", ["canvas", "embed", "predict", "tiles", "features"])
def test_every_name_has_a_result_and_an_end(command: str, listed: list[ListedSlide], tmp_path: Path) -> None:
    out, run = tmp_path / "out", RunSettings(threads=1, device="cpu")
    tiles, tissue = TileSettings(64), TissueSettings(min_piece_um2=100)
    if command in ("embed", "predict"):
        write_model(tmp_path / "model")
    for time in ("first", "again"):
        if command == "canvas":
            result = canvas_slides(listed, out, 64, run_settings=run)
        elif command == "embed":
            result = embed_slides(listed, out, tmp_path / "model", run_settings=run)
        elif command == "predict":
            result = predict_slides(listed, out, tmp_path / "model", run_settings=run, pictures=time == "first")
        elif command == "tiles":
            result = tile_slides(listed, out, tiles, tissue, run_settings=run)
        else:
            result = feature_slides(listed, out, "stain-texture", tiles, tissue, run_settings=run)
        assert [problem.slide for problem in result.problems] == ["nul\0."], result.problems  # a path that is none
        assert (result.done if time == "first" else result.skipped) == NAMES[:-1]
    (run_status,) = status(out)
    assert (run_status.skipped, len(run_status.failed), run_status.waiting) == (len(NAMES) - 1, 1, 0)
    (table,) = (path for path in out.rglob("*.csv") if path.name != "problems.csv")
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row["slide_id"] for row in csv.DictReader(file)]
    assert rows == [name.encode(errors="backslashreplace").decode() for name in NAMES[:-1]]
    assert not [path for path in out.parent.iterdir() if path.name not in ("in", "out", "model")]
    if command == "features":
        (records,) = (path.parent for path in out.rglob("features.csv"))
        assert not find_bags(records, NAMES[:-1]).missing


def test_names_of_files_are_short_different_and_otherwise_the_slides(tmp_path: Path) -> None:
    stems = [file_stem(name) for name in NAMES]
    assert len(set(stems)) == len(NAMES)
    for stem in stems:
        (tmp_path / f".{stem}{'s' * 40}").touch()
        assert "/" not in stem
    assert file_stem("TCGA-A1-A0SB-01Z-00-DX1 (2) [ü].x") == "TCGA-A1-A0SB-01Z-00-DX1 (2) [ü].x"
    assert file_stem("a/b") != file_stem("a_b")


def test_a_text_with_any_letter_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "x.csv", f"{NOT_UTF8}\n")
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == "bad\\udcff\\udcfe\n"
    assert printable(f"a\0\n{NOT_UTF8}ü") == "a\\x00\\nbad\\udcff\\udcfeü"
