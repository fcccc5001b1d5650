"""`longvit doctor SLIDES`, and `--exclude-qc` of the commands that use its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import EXAMPLE_SLIDE
from tests.finetuning.study import write_study
from tests.slides.slide_files import write_svs
from tests.small_slides import write_model, write_slide

from longvit.cli import main

Captured = pytest.CaptureFixture[str]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, blank glass, a file that is no slide, and a slide without a resolution."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "example.svs").symlink_to(EXAMPLE_SLIDE)
    write_svs(folder / "blank.svs", [np.full((700, 700, 3), 240, np.uint8)])
    (folder / "broken.svs").write_bytes(b"II*\0 no slide")
    write_slide(folder / "no_mpp.tif", mpp=None)
    return folder


def test_every_slide_is_a_row_and_a_failed_one_has_its_reason(slides: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "qc"
    assert main(["doctor", str(slides), "--out", str(out), "--threads", "1"]) == 1
    found = {row["slide_id"]: row for row in rows(out / "qc.csv")}
    assert set(found) == {"example", "blank", "broken", "no_mpp"}
    example = found["example"]
    assert (example["opens"], example["reader"], example["width_px"], example["mpp"]) == (
        "yes",
        "tiff",
        "2220",
        "0.499",
    )
    assert float(example["tissue_mm2"]) > 0.5
    assert float(example["focus"]) > -0.7
    assert example["qc"] != "fail"
    assert found["blank"]["qc"] == "fail"
    assert "tissue 0 mm²" in found["blank"]["reason"]
    assert (found["broken"]["qc"], found["broken"]["opens"]) == ("fail", "no")
    assert "broken.svs" in found["broken"]["reason"]
    assert found["no_mpp"]["qc"] == "fail"
    assert "no resolution" in found["no_mpp"]["reason"]
    said = capsys.readouterr()
    assert "fail 3" in said.out
    assert "2 without a result" in said.err
    html = (out / "qc.html").read_text(encoding="utf-8")
    assert html.count("data:image/jpeg") == 2
    assert "Not checked" in html
    assert "http://" not in html
    assert "https://" not in html


def test_a_rerun_checks_nothing_again_and_workers_find_the_same(slides: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "qc"
    given = ["doctor", str(slides / "example.svs"), str(slides / "blank.svs"), "--out", str(out), "--threads", "1"]
    assert main([*given, "--workers", "2"]) == 1
    first = rows(out / "qc.csv")
    capsys.readouterr()
    assert main([*given, "--json"]) == 1
    said = capsys.readouterr()
    assert "2 finished before" in said.err
    assert json.loads(said.out)["ok"] is False
    assert [row["slide_id"] for row in json.loads(said.out)["slides"]] == ["example", "blank"]
    assert rows(out / "qc.csv") == first
    (out / "slides" / "example.jpg").unlink()
    assert main([*given, "--json"]) == 1
    assert "1 done, 1 finished before" in capsys.readouterr().err
    assert main(["status", str(out)]) == 0
    assert "qc" in capsys.readouterr().out


def test_a_wrong_resolution_option_checks_the_slide_again(slides: Path, tmp_path: Path) -> None:
    given = ["doctor", str(slides / "no_mpp.tif"), "--out", str(tmp_path), "--threads", "1"]
    assert main(given) == 1
    assert "no resolution" in rows(tmp_path / "qc.csv")[0]["reason"]
    main([*given, "--mpp", "10"])
    assert rows(tmp_path / "qc.csv")[0]["mpp_source"] == "explicit"


def test_help_shows_both_forms(capsys: Captured) -> None:
    main(["doctor", "--help"])
    text = capsys.readouterr().out
    assert "longvit doctor slides/ --out qc" in text
    assert "longvit doctor --json > doctor.json" in text


def test_predict_leaves_out_what_failed_and_says_so(tmp_path: Path, capsys: Captured) -> None:
    for name in "abc":
        write_slide(tmp_path / "slides" / f"{name}.tif", seed=ord(name))
    qc = tmp_path / "qc.csv"
    qc.write_text("slide_id,qc,reason\na,fail,pen\nb,warn,folds\n")
    given = ["predict", str(write_model(tmp_path / "model")), str(tmp_path / "slides"), "--out", str(tmp_path / "p")]
    assert main([*given, "--exclude-qc", str(qc), "--device", "cpu", "--threads", "1"]) == 0
    said = capsys.readouterr().err
    assert "--exclude-qc: 1 of 3 slides left out" in said
    assert f"1 are not in {qc} and stay" in said
    assert [row["slide_id"] for row in rows(tmp_path / "p" / "predictions.csv")] == ["b", "c"]
    assert rows(tmp_path / "p" / "excluded.csv") == [{"slide_id": "a", "qc": "fail", "reason": "pen"}]
    qc.write_text("slide_id,qc\na,fail\nb,fail\nc,fail\n")
    assert main([*given, "--exclude-qc", str(qc)]) == 2
    assert "all 3 slides fail" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cross_validation_never_sees_what_failed_and_its_reports_list_it(tmp_path: Path, capsys: Captured) -> None:
    cohort = write_study(tmp_path / "study", n=24, split=False)
    qc = tmp_path / "qc.csv"
    qc.write_text("slide_id,qc,reason\ns03,fail,pen on 60 % of the tissue\ns04,warn,folds on 3 % of the tissue\n")
    given = ["train", str(cohort), "--exclude-qc", str(qc), "--out", str(tmp_path / "run"), "--folds", "2"]
    given += ["--model", "longvit_tiny_patch32", "--side-px", "64", "--epochs", "1", "--bootstrap", "20"]
    assert main([*given, "--jobs", "2", "--device", "cpu", "--threads", "1"]) == 0
    assert "1 of 24 slides left out" in capsys.readouterr().err
    used = {row["slide_id"] for path in (tmp_path / "run").rglob("predictions.csv") for row in rows(path)}
    assert "s03" not in used
    assert "s04" in used
    html = (tmp_path / "run" / "index.html").read_text(encoding="utf-8")
    assert "Quality of the slides" in html
    assert "pen on 60 % of the tissue" in html
    assert "folds on 3 % of the tissue" in html
