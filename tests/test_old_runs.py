"""Runs that version 449ad7b wrote are resumed and read by this one, with the numbers that it got.

The stored runs are in tests/old_runs, made by make.py there. A serialised name that changes by accident fails here.
Numbers are compared within 1e-4, since another processor rounds otherwise; names, counts, labels and hashes exactly.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longvit.cli import main
from longvit.process_identity import this_host
from tests.old_runs.make import EXAMPLES, FOLDER, HOST, STORE, TILE_PX

TOLERANCE = 1e-4
MEASURED = {"seconds", "cpu_seconds", "peak_memory_mib", "fit_and_prepare_seconds", "device", "longvit", "versions"}
"""Keys and columns that depend on the machine, the time or the version."""
MEASURED |= {"torch", "python", "commit", "path", "bytes", "read_s", "model_s", "reader_version"}
MEASURED |= {"package_version", "longvit_version"}
DONE_BEFORE = {"tiles": 1}
"""Slides that had ended when the run was killed, where not 2."""

Unpack = Callable[[str, str], tuple[list[str], Path, Path]]


@pytest.fixture
def unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unpack:
    """(example, whole or stopped) -> its command, the folder it works in, the results of the uninterrupted command.

    The working folder holds the inputs and, as the command's output folder, the stored run.
    """

    def unpacked(name: str, kind: str) -> tuple[list[str], Path, Path]:
        for archive in ("inputs", name):
            with tarfile.open(STORE / f"{archive}.tar.xz") as file:
                file.extractall(tmp_path, filter="data")
        example = EXAMPLES[name]
        shutil.copytree(tmp_path / kind / example.out, tmp_path / example.out)
        settle_here(tmp_path / example.out / "work", tmp_path)
        return list(example.command), tmp_path / example.out, tmp_path / "whole" / example.out

    monkeypatch.chdir(tmp_path)
    return unpacked


def settle_here(work: Path, folder: Path) -> None:
    """Leases of a process of this machine that has ended, renewed a moment ago; its number is another process's now.

    So a lease is free at once, and only where host, process and start are read as they were written.
    """
    for path in [*work.rglob("*.json"), *work.glob("*.claim")]:
        text = path.read_text().replace(HOST, this_host()).replace(FOLDER, str(folder))
        content = json.loads(text)
        if isinstance(content, dict) and "process" in content:
            content["process"] = os.getpid()
        path.write_text(json.dumps(content))


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Every value of `old` that `new` lacks or has otherwise; `new` may have more keys. Notes are counted."""
    if isinstance(old, dict):
        for key in old.keys() - MEASURED:
            if not isinstance(new, dict) or key not in new:
                yield f"{where}: no {key!r}"
            elif key == "notes":
                yield from differences(len(old[key]), len(new[key]), f"{where}.{key}")
            else:
                yield from differences(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list):
        if not isinstance(new, list) or len(old) != len(new):
            yield f"{where}: {old} -> {new}"
        else:
            for i, (one, other) in enumerate(zip(old, new, strict=True)):
                yield from differences(one, other, f"{where}[{i}]")
    elif old != new and not are_close(old, new):
        yield f"{where}: {old!r} -> {new!r}"


def are_close(old: Any, new: Any) -> bool:
    """Two numbers that are not whole, or the texts of such, are equal within the tolerance."""
    if type(old) is not type(new) or not isinstance(old, (float, str)) or (str(old) + str(new)).isdecimal():
        return False
    try:
        return math.isclose(float(old), float(new), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except ValueError:
        return False


def read(path: Path) -> Any:
    """The content of a JSON file; the rows of a CSV as texts."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_as_before(whole: Path, out: Path, *names: str) -> None:
    """The files of these names (patterns) have what the old version wrote into them."""
    for pattern in names:
        paths = sorted(whole.glob(pattern))
        assert paths, f"nothing stored as {pattern}"
        for path in paths:
            place = path.relative_to(whole)
            assert not list(differences(read(path), read(out / place), str(place)))


def times(folder: Path) -> dict[Path, int]:
    """When each file was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def changed(command: list[str], option: str, value: str) -> list[str]:
    """The command with another value of an option."""
    place = command.index(option) + 1
    return [*command[:place], value, *command[place + 1 :]]


def test_an_interrupted_fine_tuning_resumes_to_the_same_numbers(unpack: Unpack) -> None:
    command, out, whole = unpack("finetune", "stopped")
    before = times(out)
    assert main(command) == 0
    unchanged = {path.name for path, time in before.items() if path.exists() and path.stat().st_mtime_ns == time}
    assert unchanged >= {"run.json", "controls.csv", *(path.name for path in before if path.parent.name == "canvases")}
    assert read(out / "costs.json")["seconds"] is None  # resumed, not restarted
    assert_as_before(
        whole, out, "run.json", "metrics.json", "outputs.csv", "controls.csv", "predictions.csv", "history.csv"
    )
    assert_as_before(whole, out, "model/config.json")


def test_another_setting_than_the_stored_one_is_refused(unpack: Unpack, capsys: pytest.CaptureFixture[str]) -> None:
    command, _, _ = unpack("finetune", "stopped")
    assert main(changed(command, "--lr", "0.02")) == 2
    assert "0.02" in capsys.readouterr().err


def test_a_finished_fine_tuning_is_read_by_every_reader(unpack: Unpack, capsys: pytest.CaptureFixture[str]) -> None:
    command, out, whole = unpack("finished", "whole")
    before = times(out)
    recipe = "train cohort.csv --slides-dir slides --recipe finished/settings.yaml --out finished"
    assert main(recipe.split()) == 0
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} <= {out / "settings.yaml"}
    metrics = read(whole / "metrics.json")
    c_index = metrics["splits"]["test"]["c_index"]
    assert f"{c_index:.2f}" in capsys.readouterr().out
    assert f"{c_index:.2f}" in (out / "index.html").read_text()
    (out / "problems.csv").write_text("slide,stage,error\ns98,tiles,1 of 9 tiles\ns99,open,no such file\n")
    assert main(command) == 1  # a slide is left out
    capsys.readouterr()

    assert main(["evaluate", "finished/predictions.csv", "--bootstrap", "0", "--json"]) == 0
    groups = {group["split"]: group for group in json.loads(capsys.readouterr().out)["groups"]}
    assert groups["test"]["figures"]["c_index"]["mean"] == pytest.approx(c_index)

    assert main(["predict", "finished/model", "slides", "--device", "cpu", "--out", "new"]) == 0
    risks = {row["slide_id"]: float(row["risk"]) for row in read(Path("new/predictions.csv"))}
    stored = {row["slide_id"]: float(row["risk"]) for row in read(whole / "predictions.csv")}
    assert {slide_id: risks[slide_id] for slide_id in stored} == pytest.approx(stored, rel=TOLERANCE)


@pytest.mark.slow
def test_an_interrupted_cross_validation_resumes_to_the_same_numbers(
    unpack: Unpack, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out, whole = unpack("crossval", "stopped")
    before = (out / "fold_0" / "metrics.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "fold_0" / "metrics.json").stat().st_mtime_ns == before
    assert read(out / "fold_0" / "costs.json")["seconds"] is not None
    assert read(out / "fold_1" / "costs.json")["seconds"] is None
    assert_as_before(whole, out, "crossval.json", "predictions.csv", "fold_*/metrics.json", "fold_*/outputs.csv")
    capsys.readouterr()
    assert main(["tables", "whole", "--json"]) == 0
    assert f"{read(whole / 'crossval.json')['mean']}" in capsys.readouterr().out


def test_an_interrupted_comparison_resumes_to_the_same_numbers(unpack: Unpack) -> None:
    command, out, whole = unpack("benchmark", "stopped")
    finished = out / "mean_pooling" / "fold_0" / "metrics.json"
    before = finished.stat().st_mtime_ns
    assert main(command) == 0
    assert finished.stat().st_mtime_ns == before
    resumed = read(out / "attention_mil" / "fold_0" / "metrics.json")
    assert resumed["training"]["seconds"] is None
    assert_as_before(whole, out, "benchmark.json", "benchmark.csv", "*/fold_*/*.json", "*/fold_*/*.csv", "folds/*.csv")


@pytest.mark.slow
def test_a_finished_comparison_takes_in_a_finished_cross_validation(unpack: Unpack) -> None:
    _, _, crossval = unpack("crossval", "whole")
    command, out, whole = unpack("benchmark", "whole")
    before = {path: time for path, time in times(out).items() if path.name == "metrics.json"}
    assert main([*command, "--longvit-run", "crossval", "--pictures", "1", "--slides-dir", "slides"]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    old, new = read(whole / "benchmark.json"), read(out / "benchmark.json")
    *systems, longvit = new["systems"]
    assert longvit["mean"] == pytest.approx(read(crossval / "crossval.json")["mean"])
    for row in (*old["systems"], *systems):
        row.pop("gap")
    assert not list(differences(old["systems"], systems))
    geojson, *_ = out.glob("attention_mil/fold_0/attention/*.geojson")
    corners = json.loads(geojson.read_text())["features"][0]["geometry"]["coordinates"][0]
    assert corners[1][0] - corners[0][0] == TILE_PX
    assert geojson.with_suffix(".png").exists()


@pytest.mark.parametrize("name", ["embed", "predict", "canvas", "tiles", "features"])
def test_an_interrupted_run_over_slides_resumes_to_the_same_files(
    unpack: Unpack, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out, whole = unpack(name, "stopped")
    done = DONE_BEFORE.get(name, 2)
    assert main(["status", str(out), "--json"]) == 4
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["state"], status["total"], status["done"]) == ("stopped", 4, done)
    assert main(command) == 0
    capsys.readouterr()
    assert main(["status", str(out), "--json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["state"], status["skipped"], status["done"]) == ("finished", done, 4 - done)
    names = {path.relative_to(whole) for suffix in ("csv", "json") for path in whole.rglob(f"*.{suffix}")}
    assert_as_before(whole, out, *(str(path) for path in names if path.parts[0] != "work"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "stopped"])
def test_a_pretraining_resumes_and_is_read_when_finished(unpack: Unpack, kind: str) -> None:
    command, out, whole = unpack("pretrain", kind)
    before = times(out)
    assert main([*command, "--lr", "0.1"]) == 2
    assert main(command) == 0
    kept = ["controls.json"] if kind == "stopped" else ["controls.json", "metrics.json", "teacher/model.safetensors"]
    assert all((out / name).stat().st_mtime_ns == before[out / name] for name in kept)
    assert (out / "index.html").exists()
    assert_as_before(whole, out, "run.json", "metrics.json", "steps.csv", "history.csv", "teacher/config.json")


def test_the_checkpoint_of_an_interrupted_pretraining_is_exported(unpack: Unpack) -> None:
    unpack("pretrain", "stopped")
    shutil.copytree("whole/pretrain/teacher", "pretrain/teacher")
    assert main(["convert", "pretrain", "dino.pth", "--to", "dino"]) == 0
    assert main(["convert", "dino.pth", "teacher", "--num-heads", "2"]) == 0
