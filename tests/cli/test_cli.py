"""The commands: help with examples, one-line errors, exit codes, and the path from a CSV to predictions."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE
from tests.finetuning.study import write_study
from tests.small_slides import write_model, write_slide

import longvit
from longvit import device as devices
from longvit.cli import main
from longvit.device import pick_device
from longvit.errors import InputError

pytestmark = pytest.mark.xdist_group("cli")  # one worker: a fixture trains
COMMANDS = (
    *("demo", "doctor", "info", "cohort", "train", "predict", "embed", "evaluate", "tables", "recipes", "convert"),
    *("plan", "canvas", "status", "init"),
)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slides" / "a.tif")


def one_line(capsys: Captured) -> str:
    """Stderr, checked to be a single line without a traceback."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("longvit: ")
    return error


def longvit_command(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from longvit.cli import main; sys.exit(main())"
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, **settings
    )


# --- help and misspelt words -----------------------------------------------------------------------------------------


def test_help_lists_every_command_with_a_line(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: Captured) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples" in text
    assert f"longvit {command}" in text.split("Examples")[1]


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"longvit {longvit.__version__}"


def test_help_of_train_is_the_doc_of_the_settings(capsys: Captured) -> None:
    main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Peak learning rate of AdamW. [default: 5e-05]" in text
    assert "--empty-" not in text


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["trian", "a.csv"], "train"),
        (["embed", "m", "s", "--devise", "cpu"], "--device"),
        (["train", "a.csv", "--batch-sise", "4"], "--batch-size"),
        (["train", "a.csv", "--augmentation", "flip"], "flips"),
    ],
)
def test_a_misspelt_word_suggests_the_nearest_one(words: list[str], nearest: str, capsys: Captured) -> None:
    assert main(words) == 2
    assert nearest in one_line(capsys)


def test_a_missing_argument_is_named(capsys: Captured) -> None:
    assert main(["embed", "model"]) == 2
    assert "SLIDES" in one_line(capsys)


def test_a_wrong_type_names_the_option(capsys: Captured) -> None:
    assert main(["train", "a.csv", "--epochs", "many"]) == 2
    assert "--epochs" in one_line(capsys)
    assert main(["train", "a.csv", "--epochs", "2.5"]) == 2
    assert "not a whole number" in one_line(capsys)


# --- errors of the user ----------------------------------------------------------------------------------------------


def test_an_error_is_one_line_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    plain = longvit_command("info", tmp_path / "nope.svs")
    assert (plain.returncode, plain.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'nope.svs'}: no such file" in plain.stderr
    debug = longvit_command("info", tmp_path / "nope.svs", env={**os.environ, "LONGVIT_DEBUG": "1"})
    assert debug.returncode == 2
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_missing_gpu_is_one_line_before_any_slide(
    name: str, model: Path, slide: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for words in (
        ["embed", str(model), str(slide), "--out", str(tmp_path / "out")],
        ["train", str(write_study(tmp_path / "study")), "--out", str(tmp_path / "run")],
        ["demo", "--out", str(tmp_path / "demo")],
    ):
        assert main([*words, "--device", name]) == 2
        error = one_line(capsys)
        assert f"--device {name}" in error
        assert "--device cpu" in error


def test_a_named_device_is_used_and_auto_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert pick_device("cpu").reason == "requested"
    with pytest.raises(InputError, match="choose auto, cpu"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    assert pick_device("auto").device.type == "cuda"
    with pytest.raises(InputError, match="there are 1 cards"):
        pick_device("cuda:3")
    with pytest.raises(InputError, match="--threads 0"):
        devices.set_threads(0)


@pytest.mark.parametrize("command", ["embed", "predict", "train", "convert", "demo"])
def test_an_output_folder_that_cannot_be_made_is_one_line_before_any_work(
    command: str, model: Path, slide: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").write_text("not a folder")
    out = str(tmp_path / "file" / "out")  # also root cannot make a folder below a file
    words = {
        "embed": [str(model), str(slide), "--out", out],
        "predict": [str(model), str(slide), "--out", out],
        "train": [str(tmp_path / "no.csv"), "--out", out],
        "convert": [str(tmp_path / "no.pth"), out],
        "demo": ["--out", out],
    }[command]
    assert main([command, *words]) == 2
    assert "a part of the path is a file, not a folder" in one_line(capsys)


def test_an_output_folder_without_permission_is_one_line(
    model: Path, slide: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # chmod does not bind root
    assert main(["embed", str(model), str(slide), "--out", str(tmp_path / "out")]) == 2
    assert "no permission to write there" in one_line(capsys)


def test_a_read_only_file_system_is_one_line(model: Path, slide: Path, capsys: Captured) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    assert main(["embed", str(model), str(slide), "--out", "/proc/longvit"]) == 2
    assert "/proc/longvit: not written" in one_line(capsys)


def test_a_folder_without_a_model_is_one_line(slide: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["embed", str(tmp_path / "no"), str(slide), "--out", str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["embed", str(tmp_path / "empty"), str(slide), "--out", str(tmp_path / "out")]) == 2
    assert "no config.json" in capsys.readouterr().err


def test_sources_without_slides_are_one_line(model: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in ((tmp_path / "empty", "no slides in it"), ("*.xyz", "no file matches"), ("x.svs", "no such")):
        assert main(["embed", str(model), str(source), "--out", str(tmp_path / "out")]) == 2
        assert words in one_line(capsys)


def test_a_checkpoint_that_is_text_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "weights.pth").write_text("hello")
    assert main(["convert", str(tmp_path / "weights.pth"), str(tmp_path / "out")]) == 2
    assert "weights.pth" in one_line(capsys)


# --- from slides to predictions --------------------------------------------------------------------------------------


def test_info_shows_the_resolution_and_its_source(capsys: Captured) -> None:
    assert main(["info", str(EXAMPLE_SLIDE)]) == 0
    text = capsys.readouterr().out
    for words in ("2,220 × 2,967 px", "0.499 µm/px (from openslide.mpp-x)", "1.11 × 1.48 mm", "Aperio SVS"):
        assert words in text
    assert main(["info", str(EXAMPLE_SLIDE), "--json", "--mpp", "0.25"]) == 0
    metadata = json.loads(capsys.readouterr().out)
    assert (metadata["mpp"], metadata["mpp_source"]) == ([0.25, 0.25], "explicit")


def test_info_of_a_slide_without_resolution_names_the_flag(tmp_path: Path, capsys: Captured) -> None:
    assert main(["info", str(write_slide(tmp_path / "a.tif", mpp=None))]) == 0
    assert "pass --mpp" in capsys.readouterr().out


@pytest.mark.slow
def test_embed_by_folder_glob_and_list_gives_the_same(model: Path, tmp_path: Path, capsys: Captured) -> None:
    for name in ("a", "b"):
        write_slide(tmp_path / "slides" / f"{name}.tif", seed=ord(name))
    (tmp_path / "list.csv").write_text("wsi,mpp\na.tif,0.5\nb.tif,0.5\n")
    tables = []
    for source, more in (
        (tmp_path / "slides", []),
        (f"{tmp_path}/slides/*.tif", []),
        (tmp_path / "list.csv", ["--slides-dir", str(tmp_path / "slides")]),
    ):
        out = tmp_path / f"out{len(tables)}"
        assert main(["embed", str(model), str(source), "--out", str(out), "--device", "cpu", *more]) == 0
        with (out / "embeddings.csv").open(newline="") as file:
            tables.append([{k: v for k, v in row.items() if k != "path"} for row in csv.DictReader(file)])
    assert len(tables[0]) == 2
    assert tables[0] == tables[1] == tables[2]
    assert "2 done" in capsys.readouterr().err


def test_a_job_with_problems_exits_with_1_and_counts_them(
    model: Path, slide: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "slides" / "b.svs").write_text("no slide\n")
    (tmp_path / "list.csv").write_text(f"path\n{slide}\nslides/b.svs\nslides/gone.svs\n")
    out = tmp_path / "out"
    assert main(["predict", str(model), str(tmp_path / "list.csv"), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert f"1 done, 2 without a result, see {out / 'problems.csv'}" in error
    assert main(["predict", str(model), str(tmp_path / "list.csv"), "--out", str(out)]) == 1
    assert "1 finished before" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_tells_how_to_resume(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    for i in range(20):
        write_slide(tmp_path / "slides" / f"s{i:02d}.tif", seed=i)
    command = [sys.executable, str(Path(__file__).parents[1] / "small_slides.py")]
    process = subprocess.Popen(
        [*command, str(model), str(tmp_path / "slides"), str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").rglob("s00.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "rerun the same command to resume" in error
    assert not list((tmp_path / "out").rglob("*.part*"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`longvit train` on a study with a slide that cannot be read."""
    folder = tmp_path_factory.mktemp("train")
    cohort = write_study(folder / "study")
    (folder / "study" / "s00.png").write_text("no image")
    (folder / "quick.yaml").write_text("model: longvit_tiny_patch32\nside_px: 64\nepochs: 9\nlr: 1e-3\nbootstrap: 50\n")
    words = ["train", str(cohort), "--recipe", str(folder / "quick.yaml"), "--epochs", "2", "--device", "cpu"]
    assert main([*words, "--threads", "1", "--out", str(folder / "run")]) == 1  # one slide was left out
    return folder


@pytest.mark.slow
def test_train_writes_report_predictions_and_model(run: Path) -> None:
    out = run / "run"
    for name in ("index.html", "predictions.csv", "metrics.json", "roc.png", "loss.png", "settings.yaml"):
        assert (out / name).stat().st_size > 0, name
    assert json.loads((out / "metrics.json").read_text())["training"]["epochs"] == 2
    assert "s00" in (out / "problems.csv").read_text()
    assert longvit.load_model(out / "model").config.class_names == ("pale", "stained")


@pytest.mark.slow
def test_train_rerun_is_finished_and_other_settings_are_refused(run: Path, capsys: Captured) -> None:
    words = ["train", str(run / "study" / "cohort.csv"), "--recipe", str(run / "run" / "settings.yaml")]
    capsys.readouterr()
    assert main([*words, "--out", str(run / "run")]) == 1  # its slide is still missing
    captured = capsys.readouterr()
    assert "nothing was computed" in captured.err
    assert "test: AUC" in captured.out
    assert main([*words, "--out", str(run / "run"), "--lr", "0.5"]) == 2
    assert "lr" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_predict_with_the_trained_model_gives_what_training_predicted(run: Path, tmp_path: Path) -> None:
    assert main(["predict", str(run / "run" / "model"), str(run / "study"), "--out", str(tmp_path / "p")]) == 1
    with (run / "run" / "predictions.csv").open(newline="") as file:
        trained = {row["slide_id"]: row for row in csv.DictReader(file)}
    with (tmp_path / "p" / "predictions.csv").open(newline="") as file:
        predicted = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert set(trained) < set(predicted)
    for name, row in trained.items():
        assert float(row["prob_stained"]) == pytest.approx(float(predicted[name]["prob_stained"]), abs=1e-5)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("slide_id,class\ns01,a\n", "no column 'label'"),
        ("slide_id,label\ns01,a\ns99,b\n", "no slide s99"),
        ("slide_id,label\ns01,a\ns02,a\n", "at least two classes"),
        ("case_id,slide_id,label,split\nP,s01,a,train\nP,s02,b,test\n", "patient P is in two splits"),
    ],
)
def test_an_unusable_cohort_is_one_line(table: str, words: str, tmp_path: Path, capsys: Captured) -> None:
    for i in (1, 2):
        Image.fromarray(np.full((64, 64, 3), 50 * i, np.uint8)).save(tmp_path / f"s0{i}.png")
    (tmp_path / "cohort.csv").write_text(table)
    assert main(["train", str(tmp_path / "cohort.csv"), "--out", str(tmp_path / "run")]) == 2
    assert words in one_line(capsys)


def test_a_recipe_with_an_unknown_key_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "r.yaml").write_text("learning_rate: 1\nepohcs: 3\n")
    assert main(["train", "a.csv", "--recipe", str(tmp_path / "r.yaml")]) == 2
    assert f"{tmp_path / 'r.yaml'}: unknown key 'learning_rate'" in one_line(capsys)


def test_a_closed_pipe_is_no_error() -> None:
    code = "import sys; from longvit.cli import main; sys.exit(main(['info', sys.argv[1]]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(EXAMPLE_SLIDE)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(timeout=60)
