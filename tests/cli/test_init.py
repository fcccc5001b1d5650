"""`longvit init` as a user types it: its file is accepted by train without an edit, and its commands run as printed."""

from __future__ import annotations

import csv
import json
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.finetuning.study import write_study

from longvit.cli import main
from longvit.config import read_recipe

pytestmark = pytest.mark.xdist_group("cli")
Captured = pytest.CaptureFixture[str]
QUICK = ["--epochs", "1", "--bootstrap", "20", "--deletion-slides", "0", "--num-workers", "0", "--threads", "1"]
"""Options that shorten a training; the file stays as it was written."""


def table(folder: Path, *, n: int = 20, **columns: list[object]) -> Path:
    """n images of n / 2 patients, and their cohort.csv with further columns: a value per slide, or per patient."""
    path = write_study(folder, n=n, split=False)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, values in columns.items():
        for i, row in enumerate(rows):
            row[name] = str(values[i if len(values) == n else i // 2 % len(values)])
    if "survival_months" in columns:
        rows = [{name: cell for name, cell in row.items() if name != "label"} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def next_commands(out: str) -> list[list[str]]:
    """The commands after `next:`, without `longvit`."""
    lines = out.split("next:\n")[1].splitlines()
    words = [shlex.split(line) for line in lines]
    assert [word[0] for word in words] == ["longvit"] * 3
    return [word[1:] for word in words]


def one_line(capsys: Captured) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_help_shows_examples(capsys: Captured) -> None:
    assert main(["init", "--help"]) == 0
    text = capsys.readouterr().out
    assert "longvit init cohort.csv" in text.split("Examples")[1]
    for option in ("--force", "--slides-dir", "--label-columns", "--json"):
        assert option in text
    assert "--n-bins" not in text


SPLIT: list[object] = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
TASKS = {
    "subtyping": ({}, []),
    "survival": ({"survival_months": [3, 9, 14, 25, 7, 31, 12, 18, 5, 22], "event": [1, 1, 0], "split": SPLIT}, []),
    "regression": ({"age": [41.5, 63.0, 57.25, 70.5, 48.0], "split": SPLIT}, ["--label-columns", "age"]),
    "multilabel": ({"MSI": [0, 1], "BRAF": [1, 1, 0, 0], "split": SPLIT}, ["--label-columns", "MSI", "BRAF"]),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_train_accepts_the_file_without_an_edit(
    task: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    columns, options = TASKS[task]
    table(tmp_path, **columns)  # type: ignore[arg-type]
    assert main(["init", "cohort.csv", *options]) == 0
    _, train, _ = next_commands(capsys.readouterr().out)
    recipe = ["train", "cohort.csv", "--recipe", "longvit.yaml"]
    folds = [] if "split" in columns else ["--folds", train[-3]]
    assert train == [*recipe, *folds, "--out", "runs/cv" if folds else "runs/first"]
    assert ("--folds" in Path("longvit.yaml").read_text()) is bool(folds)
    written = read_recipe("longvit.yaml")
    assert (written["task"], written["side_px"]) == (task, 64)
    assert main([*recipe, "--out", "runs/first", *QUICK]) == 0
    stored = read_recipe("runs/first/settings.yaml")
    same = set(written) - {"epochs"}
    assert {key: stored[key] for key in same} == {key: written[key] for key in same}
    assert not folds or main([*train, *QUICK, "--fold", "0"]) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_commands_run_as_printed_with_blanks_in_paths(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohort = table(tmp_path / "my slides", split=SPLIT)
    moved = tmp_path / "tables of it's" / "cohort 1.csv"
    moved.parent.mkdir()
    cohort.rename(moved)
    words = ["tables of it's/cohort 1.csv", "--slides-dir", "my slides", "--out", "a b/x y.yaml"]
    assert main(["init", *words]) == 0
    doctor, train, view = next_commands(capsys.readouterr().out)
    assert main(doctor) in (0, 1)  # images without tissue may fail the check of quality
    assert len((tmp_path / "qc" / "qc.csv").read_text().splitlines()) == 21
    assert main([*train, *QUICK]) == 0
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("longvit.viewer.server.ViewServer.start", lambda self: finished(self.server_close))
    capsys.readouterr()
    assert main(view) == 0
    assert "first: 8 slides." in capsys.readouterr().err
    assert len(opened) == 1


def finished(run: Callable[[], None]) -> threading.Thread:
    """A thread that ends after `run`."""
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_every_line_has_a_reason_and_json_agrees_with_the_file(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    assert main(["init", "cohort.csv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == read_recipe("longvit.yaml")
    assert found["folds"] in ("3", "4", "5")
    assert (found["slides"], found["patients"], found["classes"]) == (20, 10, {"pale": 10, "stained": 10})
    assert (len(found["opened"]), found["unreadable"], found["um_per_px"]) == (5, [], None)
    assert found["memory"]["peak_bytes"] < found["memory"]["budget_bytes"]
    assert found["time"]["source"] == "measured"
    lines = Path("longvit.yaml").read_text().splitlines()
    for key in found["settings"]:
        assert lines[next(i for i, line in enumerate(lines) if line.startswith(f"{key}:")) - 1].startswith("# ")
        assert found["reasons"][key]


def test_a_file_that_exists_stays(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path, split=SPLIT)
    Path("longvit.yaml").write_text("epochs: 3\n")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert main(["init", "cohort.csv"]) == 2
    assert "longvit.yaml: exists; give --force" in one_line(capsys)
    assert Path("longvit.yaml").read_text() == "epochs: 3\n"
    assert main(["init", "cohort.csv", "--force"]) == 0
    assert read_recipe("longvit.yaml")["task"] == "subtyping"
    _, train, view = next_commands(capsys.readouterr().out)
    assert (train[-1], view[1]) == ("runs/first-2", "runs/first-2")  # the folder of another run is not proposed


def test_a_slide_that_cannot_be_read_is_named_and_the_exit_code_is_1(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path, split=SPLIT)
    (tmp_path / "s00.png").write_bytes(b"no image")
    assert main(["init", "cohort.csv", "--json"]) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert [slide["slide_id"] for slide in found["unreadable"]] == ["s00"]
    assert len(found["opened"]) == 4
    assert "cannot be read: s00: " in shown.err
    assert read_recipe("longvit.yaml") == found["settings"]


def test_a_cohort_without_slides_on_disk_is_one_line(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    assert main(["init", "cohort.csv"]) == 2
    assert "no slide s00" in (line := one_line(capsys))
    assert "19 more of 20 slides" in line
    assert main(["init", "cohort.csv", "--allow-missing"]) == 2
    assert "no slide of the table has a file" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("longvit.yaml").exists()


@pytest.mark.slow
def test_three_patients_have_no_folds(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path, n=6, age=[41.5, 44.0, 63.0, 60.5, 57.25, 52.0])
    assert main(["init", "cohort.csv", "--label-columns", "age"]) == 0
    assert "--folds" not in Path("longvit.yaml").read_text()
    assert "3 patients are too few for folds" in capsys.readouterr().out
    assert main(["train", "cohort.csv", "--recipe", "longvit.yaml", "--out", "runs/first", *QUICK]) == 0
    capsys.readouterr()
    assert main(["init", "cohort.csv", "--force"]) == 2  # of two classes, one has a single patient
    assert "has 1 patient; training and testing need at least 2 of each class" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing.csv"], "nothing.csv: cannot be read: No such file"),
        (["cohort.csv", "--slides", "0"], "--slides 0: at least 1"),
        (["cohort.csv", "--task", "subtypes"], "task 'subtypes': choose subtyping, survival"),
        (["cohort.csv", "--label-column", "lable"], "did you mean --label-column label?"),
        (["cohort.csv", "--task", "survival"], "survival_months"),
        (["cohort.csv", "--device", "tpu"], "--device tpu: choose auto, cpu"),
    ],
)
def test_a_problem_of_the_cohort_is_one_line(
    words: list[str], text: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path, n=8)
    assert main(["init", *words]) == 2
    assert text in one_line(capsys)
    assert not Path("longvit.yaml").exists()
