"""The report of a pretraining: alarms first, metrics beside their controls, from files alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.report.run_folder import write_folder

from longvit.errors import InputError
from longvit.plots.pretraining import thinned
from longvit.report.pretraining import pretrain_report

pytestmark = pytest.mark.xdist_group("report_pretrained")  # one worker: the fixture draws


def text_of(folder: Path) -> str:
    return pretrain_report(folder).read_text(encoding="utf-8")


def notes(text: str) -> list[str]:
    return re.findall(r'<p class="note">(.*?)</p>', text, re.DOTALL)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = write_folder(tmp_path_factory.mktemp("run"))
    return folder, text_of(folder)


def test_a_run_that_learned_shows_figures_curves_and_pictures(learned: tuple[Path, str]) -> None:
    folder, text = learned
    for words in (
        "A LongViT pretrained on 480 regions of 3 slides",
        "2.9 million parameters, from random weights",
        "20 of 20 epochs, 600 steps of 16 regions, 24 minutes on cpu",
        "k-NN, balanced",
        "random start 0.45; mean colour 0.57; chance 0.33",
        "RankMe",
        "Labelled regions",
        "120 regions of 24 cases, gland, stroma and tumour",
        "Teacher outputs",
        "Patch tokens",
        "TCGA-A1-A0SB-01Z-00-DX1#0",
        "Nearest neighbours among the labelled regions",
        "broken.svs: no TIFF",
        "2 slides are coarser",
        "region_px",
    ):
        assert words in text, words
    assert notes(text) == ["1 file could not be used; see Problems."]
    assert "http" not in text
    assert text.count("data:image/jpeg") == 18
    for name in ("probe", "loss", "outputs", "rank", "rates"):
        assert (folder / "pictures" / f"{name}.svg").exists()


def test_an_alarm_stands_on_top_with_what_to_do(tmp_path: Path) -> None:
    first, *others = notes(text_of(write_folder(tmp_path, collapsed=True, pictures=False)))
    assert first.startswith("Alarm: uniform outputs.")
    assert "Suggestion: Sharpen the teacher" in first
    assert any("the untrained network" in note for note in others)
    assert any("mean colour is at least as good" in note and "k-NN 0.57 against 0.4" in note for note in others)


def test_without_labelled_regions_it_says_what_cannot_be_seen(tmp_path: Path) -> None:
    text = text_of(write_folder(tmp_path, probe=False, pictures=False))
    assert any("No labelled regions" in note for note in notes(text))
    assert "<h2>Labelled regions" not in text


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path, epochs: int) -> None:
    text = text_of(write_folder(tmp_path, epochs=epochs, pictures=False))
    assert f"{epochs} of 20 epochs" in text
    assert "not finished" in text
    assert "Alarm" not in text


def test_what_may_be_absent_may_be_absent(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, probe=False, pictures=False)
    (folder / "metrics.json").write_text('{"epochs": 20, "steps": 600}')
    (folder / "problems.csv").unlink()
    (folder / "controls.json").unlink()
    (folder / "settings.yaml").write_text("")
    steps = [line.split(",")[:3] for line in (folder / "steps.csv").read_text().splitlines()]
    (folder / "steps.csv").write_text("\n".join(",".join(cells) for cells in steps))
    epochs = [line.split(",")[:3] for line in (folder / "history.csv").read_text().splitlines()]
    (folder / "history.csv").write_text("\n".join(",".join(cells) for cells in epochs))
    assert "A LongViT pretrained" in text_of(folder)


def test_an_epoch_that_was_not_looked_at_has_empty_cells(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, pictures=False)
    lines = (folder / "history.csv").read_text().splitlines()
    lines[-1] = ",".join(lines[-1].split(",")[:3]) + "," * (lines[0].count(",") - 2)
    (folder / "history.csv").write_text("\n".join(lines))
    assert "random start 0.45" in text_of(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.json", None, "metrics.json: cannot be read"),
        ("metrics.json", "{", "metrics.json: not JSON"),
        ("metrics.json", "[]", "not a list"),
        ("metrics.json", "{}", "no number 'epochs'"),
        ("steps.csv", "step,lr\n1,2\n", "no column 'loss'; it has step, lr"),
        ("history.csv", "epoch,train_loss\n1,much\n", "not a table of numbers"),
        ("history.csv", "", "no column 'epoch'; it has none"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    folder = write_folder(tmp_path, epochs=2, pictures=False)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(words)):
        pretrain_report(folder)


def test_names_of_slides_are_text_not_markup(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, epochs=2, pictures=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["notes"] = ["<script>alert(1)</script>"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "<script" not in text_of(folder)


def test_the_same_folder_gives_the_same_report(learned: tuple[Path, str]) -> None:
    folder, text = learned
    assert text_of(folder) == text


def test_many_steps_become_few_points_with_the_same_mean() -> None:
    y = np.random.default_rng(0).normal(size=100_000)
    y[5] = np.nan
    few_x, few_y = thinned(np.arange(100_000.0), y)
    assert len(few_x) == len(few_y) == 400
    assert few_y.mean() == pytest.approx(np.nanmean(y), abs=1e-4)
    assert (np.diff(few_x) > 0).all()


def test_importing_the_report_loads_no_torch() -> None:
    code = "import sys, longvit.report.pretraining; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
