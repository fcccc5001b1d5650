"""`longvit embed`, `predict` and `canvas` with several workers, as a user types them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tests.small_slides import write_model, write_slide

from longvit.cli import main

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", ["embed", "predict", "canvas", "status"])
def test_help_shows_examples(command: str, capsys: Captured) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"longvit {command} " in text
    assert command == "status" or "--cluster" in text


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--workers", "0", "--workers 0: at least 1"),
        ("--retries", "-1", "--retries -1: at least 0"),
        ("--timeout-s", "-5", "--timeout-s -5: more than 0"),
        ("--threads", "0", "--threads 0: at least 1"),
    ],
)
def test_an_invalid_number_is_one_line_before_any_slide(
    flag: str, value: str, words: str, tmp_path: Path, capsys: Captured
) -> None:
    slide = write_slide(tmp_path / "a.tif")
    for command in (["embed", str(write_model(tmp_path / "model"))], ["canvas"]):
        assert main([*command, str(slide), "--out", str(tmp_path / "out"), flag, value]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_a_missing_model_is_one_line_before_any_worker(tmp_path: Path, capsys: Captured) -> None:
    slide = write_slide(tmp_path / "a.tif")
    words = ["embed", str(tmp_path / "no"), str(slide), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main(words) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_by_two_workers_writes_the_table_of_one(tmp_path: Path, capsys: Captured) -> None:
    model = write_model(tmp_path / "model")
    for i in range(5):
        write_slide(tmp_path / "slides" / f"s{i}.tif", seed=i)
    (tmp_path / "slides" / "x.svs").write_text("no slide\n")
    tables = []
    for more in ([], ["--workers", "2"]):
        out = tmp_path / f"out{len(tables)}"
        words = ["predict", str(model), str(tmp_path / "slides"), "--out", str(out), "--device", "cpu"]
        assert main([*words, "--threads", "1", "--pictures", *more]) == 1
        stderr = capsys.readouterr().err
        assert stderr.count("problem: x: open: ") == 1
        assert f"5 done, 1 without a result, see {out / 'problems.csv'}" in stderr
        assert len(list((out / "slides").glob("*.png"))) == 5
        with (out / "predictions.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
        assert (out / "problems.csv").read_text().splitlines()[1].startswith("x,open,")
    assert len(tables[0]) == 5
    assert tables[0] == tables[1]


def test_canvas_writes_images_and_a_table(tmp_path: Path, capsys: Captured) -> None:
    slide = write_slide(tmp_path / "a.tif")
    words = ["canvas", str(slide), "--side-px", "96", "--fit", "pad", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert (tmp_path / "out" / "a.tif").exists()
    assert main(words) == 0
    assert "1 finished before" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "out")]) == 0
