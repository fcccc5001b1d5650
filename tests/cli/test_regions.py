"""`--regions` of the commands, as a user types them: what is kept, what recomputes, what fails and how."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.annotations.made import feature, rectangle, write_geojson
from tests.conftest import EXAMPLE_SLIDE
from tests.finetuning.study import write_study
from tests.small_slides import write_model, write_slide

from longvit.cli import main
from longvit.data.problems import read_problems
from longvit.slides.canvas import read_canvas

Captured = pytest.CaptureFixture[str]
NAME = EXAMPLE_SLIDE.stem
GRID = "20x_128px_0px_overlap"


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def digests(folder: Path) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["digest"] for path in folder.glob("*.json")}


def tiles(out: Path) -> list[list[int]]:
    with h5py.File(out / GRID / "patches" / f"{NAME}_patches.h5") as file:
        coords: list[list[int]] = file["coords"][:].tolist()
        return coords


def make_tiles(out: Path, *more: str | Path) -> list[list[int]]:
    assert run("tiles", EXAMPLE_SLIDE, "--out", out, "--tile-px", "128", *more) == 0
    return tiles(out)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two small slides of 160 × 96 px, and annotations of each."""
    for i, name in enumerate("ab"):
        write_slide(tmp_path / "slides" / f"{name}.tif", seed=i)
        write_geojson(tmp_path / "r" / f"{name}.geojson", [feature(rectangle(0, 0, 80, 96), "Tumor")])
    return tmp_path


@pytest.mark.parametrize("command", ["canvas", "train", "predict", "embed", "tiles", "features", "pretrain"])
def test_help_names_the_options(command: str, capsys: Captured) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--regions", "--region-class", "--exclude-class"))
    assert "--regions annotations/" in text  # an example


def test_tissue_that_is_read_back_gives_the_same_tiles_and_edited_tissue_others(tmp_path: Path) -> None:
    first = make_tiles(tmp_path / "1")
    written = tmp_path / "1" / GRID / "tissue" / f"{NAME}.geojson"
    assert 20 < len(first) < 414
    assert make_tiles(tmp_path / "2", "--regions", written.parent) == first

    content = json.loads(written.read_text())
    biggest = max(content["features"], key=lambda f: len(f["geometry"]["coordinates"][0]))
    added = rectangle(0, 0, 300, 300)  # glass
    write_geojson(tmp_path / "edited" / f"{NAME}.geojson", [biggest, feature(added, "Tissue")])
    edited = make_tiles(tmp_path / "3", "--regions", tmp_path / "edited")
    corner = [[x, y] for x, y in edited if x < 300 and y < 300]
    assert len(corner) >= 4
    assert corner not in first
    record = json.loads((tmp_path / "3" / GRID / "patches" / f"{NAME}.json").read_text())
    assert record["regions"]["classes"] == ["Tissue"]

    artefact = feature(rectangle(1000, 1000, 1600, 1600), "Artefact")
    write_geojson(tmp_path / "fold" / f"{NAME}.geojson", [*content["features"], artefact])
    without = make_tiles(tmp_path / "4", "--regions", tmp_path / "fold", "--exclude-class", "Artefact")
    side = 128 * 0.5 / 0.499
    assert without == [[x, y] for x, y in first if not (1000 <= x + side / 2 < 1600 and 1000 <= y + side / 2 < 1600)]
    assert len(without) < len(first)


def test_features_are_those_of_the_tiles_inside(tmp_path: Path) -> None:
    write_geojson(tmp_path / "r" / f"{NAME}.geojson.gz", [feature(rectangle(800, 900, 1500, 1700), "Tumor")])
    out = tmp_path / "job"
    inside = make_tiles(out, "--regions", tmp_path / "r", "--region-class", "Tumor")
    words = ("--regions", tmp_path / "r", "--region-class", "Tumor", "--tile-px", "128", "--threads", "1")
    assert run("features", EXAMPLE_SLIDE, "--out", out, *words) == 0
    with h5py.File(out / GRID / "features_stain-texture" / f"{NAME}.h5") as file:
        assert file["coords"][:].tolist() == inside
    assert 0 < len(inside) < 40


def test_a_canvas_is_white_outside_and_only_changed_annotations_are_computed_again(two: Path, capsys: Captured) -> None:
    words = ("canvas", two / "slides", "--side-px", "64", "--out", two / "out")
    assert run(*words) == 0
    whole, before = read_canvas(two / "out" / "a.tif").pixels, digests(two / "out" / "records")
    assert run(*words, "--regions", two / "r") == 0
    assert "2 done" in capsys.readouterr().err
    limited = read_canvas(two / "out" / "a.tif").pixels
    assert (limited[:, 32:] == 255).all()
    assert np.array_equal(limited[:, :32], whole[:, :32])
    with_regions = digests(two / "out" / "records")
    assert with_regions["a"] != before["a"]

    write_geojson(two / "r" / "b.geojson", [feature(rectangle(0, 0, 40, 96), "Tumor")])
    assert run(*words, "--regions", two / "r") == 0
    assert "1 done, 1 finished before" in capsys.readouterr().err
    after = digests(two / "out" / "records")
    assert (after["a"] == with_regions["a"], after["b"] == with_regions["b"]) == (True, False)
    assert run(*words) == 0  # without annotations: the digests of before
    assert digests(two / "out" / "records") == before


def test_embed_and_predict_see_the_blanked_canvas(two: Path) -> None:
    from longvit.model.longvit import LongViT

    model = write_model(two / "model")
    words = ("--regions", two / "r", "--device", "cpu", "--threads", "1")
    assert run("canvas", two / "slides", "--side-px", "64", "--out", two / "c", "--regions", two / "r") == 0
    assert run("embed", model, two / "slides", "--out", two / "e", *words) == 0
    assert run("predict", model, two / "slides", "--out", two / "p", *words) == 0
    longvit = LongViT.from_pretrained(model)
    with (two / "e" / "embeddings.csv").open() as file:
        for row in csv.DictReader(file):
            expected = longvit.embed(read_canvas(two / "c" / f"{row['slide_id']}.tif"))
            assert np.allclose([float(row[f"f{i}"]) for i in range(len(expected))], expected, atol=1e-5)
    record = json.loads((two / "p" / "slides" / "a.json").read_text())
    assert record["canvas"]["regions"]["file"] == "a.geojson"


def test_a_slide_without_or_with_a_damaged_file_is_a_row_and_the_others_are_done(two: Path, capsys: Captured) -> None:
    write_slide(two / "slides" / "c.tif", seed=3)
    (two / "r" / "b.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 9], [9, 9]]]}')
    for command in ("canvas", "tiles", "features"):
        out = two / command
        grid = ("--tile-px", "32", "--threads", "1") if command != "canvas" else ("--side-px", "64")
        assert run(command, two / "slides", "--out", out, "--regions", two / "r", *grid) == 1
        problems = {p.slide: (p.stage, p.error) for p in read_problems(out / "problems.csv")}
        assert sorted(problems) == ["b", "c"]
        assert problems["b"][0] == "read"
        assert "NaN is not a JSON number" in problems["b"][1]
        assert problems["c"][0] == "open"
        assert "c.geojson: no such file" in problems["c"][1]
        capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--region-class", "Tumour"), "class 'Tumour'; did you mean 'Tumor'? classes there: Tumor (2)"),
        (("--exclude-class", "Fold"), "no annotation of class 'Fold'; classes there: Tumor (2)"),
    ],
)  # fmt: skip
def test_a_class_that_is_in_no_file_is_one_line_before_any_slide(
    two: Path, capsys: Captured, words: tuple[str, ...], line: str
) -> None:
    model = write_model(two / "model")
    out = ("--out", two / "out", "--regions", two / "r", *words)
    slides = two / "slides"
    for command in (
        ("canvas", slides),
        ("tiles", slides),
        ("embed", model, slides),
        ("predict", model, slides),
        ("pretrain", slides, "--recipe", "dino-tiny"),
    ):
        assert run(*command, *out) == 2
        error = capsys.readouterr().err
        assert line in error
    assert run("canvas", two / "slides", "--out", two / "out", "--region-class", "Tumor") == 2
    assert "class 'Tumor' is chosen, but no folder of annotations" in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_write_what_one_writes(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two)  # the folder is a relative path
    for out, workers in (("one", "1"), ("many", "2")):
        words = ("--side-px", "64", "--regions", "r", "--region-class", "Tumor", "--workers", workers)
        assert run("canvas", "slides", "--out", out, *words) == 0
    for name in "ab":
        one, many = (read_canvas(two / out / f"{name}.tif") for out in ("one", "many"))
        assert np.array_equal(one.pixels, many.pixels)
        assert (one.pixels[:, 32:] == 255).all()
    assert digests(two / "one" / "records") == digests(two / "many" / "records")


@pytest.mark.slow
def test_a_training_on_annotations_resumes_only_with_the_same(tmp_path: Path, capsys: Captured) -> None:
    cohort = write_study(tmp_path / "slides")
    for i in range(20):
        write_geojson(tmp_path / "r" / f"s{i:02d}.geojson", [feature(rectangle(0, 0, 40, 64), "Tumor")])
    (tmp_path / "r" / "s03.geojson").unlink()
    small = ("--model", "longvit_tiny_patch32", "--side-px", "64", "--epochs", "1", "--bootstrap", "20")
    words = ("train", cohort, "--out", tmp_path / "run", *small, "--device", "cpu", "--threads", "1")
    annotated = (*words, "--regions", tmp_path / "r")
    assert run(*annotated) == 1
    problems = {p.slide: p.error for p in read_problems(tmp_path / "run" / "problems.csv")}
    assert "s03.geojson: no such file" in problems.pop("s03")
    assert not problems
    canvases = sorted((tmp_path / "run" / "canvases").glob("*.tif"))
    assert len(canvases) == 19
    assert all((read_canvas(path).pixels[:, 32:] == 255).all() for path in canvases)
    assert list((tmp_path / "run").glob("contributions_*.png"))  # the report finds these canvases
    capsys.readouterr()
    assert run(*annotated) == 1
    assert "finished before with these settings" in capsys.readouterr().err
    write_geojson(tmp_path / "r" / "s05.geojson", [feature(rectangle(0, 0, 30, 64), "Tumor")])
    assert run(*annotated) == 2
    assert "started with other settings (annotations" in capsys.readouterr().err
    assert run(*words) == 2
    capsys.readouterr()
    assert run(*(str(word).replace("/run", "/other") for word in annotated)) == 1


@pytest.mark.slow
def test_pretraining_takes_its_regions_from_the_annotations(tmp_path: Path, capsys: Captured) -> None:
    write_slide(tmp_path / "slides" / "a.tif", size_px=(600, 400))
    write_geojson(tmp_path / "r" / "a.geojson", [feature(rectangle(300, 0, 600, 400), "Tumor")])
    small = ("--recipe", "dino-tiny", "--epochs", "1", "--per-slide", "4", "--batch-size", "4", "--probe-regions", "8")
    sizes = (
        "--region-px",
        "64",
        "96",
        "--global-px",
        "64",
        "--local-px",
        "32",
        "--device",
        "cpu",
        "--num-workers",
        "0",
    )
    words = ("pretrain", tmp_path / "slides", "--out", tmp_path / "run", *small, *sizes, "--threads", "1")
    assert run(*words, "--regions", tmp_path / "r") == 0
    capsys.readouterr()
    write_geojson(tmp_path / "r" / "a.geojson", [feature(rectangle(0, 0, 600, 400), "Tumor")])
    assert run(*words, "--regions", tmp_path / "r") == 2
    assert "started with other settings (regions" in capsys.readouterr().err
