"""Cells in processes side by side: the same bits, a process that dies costs its cell, a stop ends all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.comparison.made import QUICK, write_study

from longvit.comparison.compare import Comparison, compare
from longvit.comparison.trial_process import Trial, TrialProcess
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import folds_of_column
from longvit.errors import InputError


def run(folder: Path, out: str, *, jobs: int, systems: tuple[str, ...] = QUICK.systems, **inputs: Any) -> Comparison:
    cohort = read_cohort(folder / "cohort.csv", need_files=False)
    settings = replace(QUICK, systems=systems)
    folds = folds_of_column(cohort)
    return compare(cohort, folder / out, folds, settings, features=folder / "features", jobs=jobs, **inputs)


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/fold_*/outputs.csv"))}


def test_side_by_side_gives_the_bits_of_one_by_one_and_names_what_fails(tmp_path: Path) -> None:
    write_study(tmp_path)
    systems = ("mcat", *QUICK.systems)
    one, two = (run(tmp_path, f"of{jobs}", jobs=jobs, systems=systems) for jobs in (1, 2))
    assert len(outputs(tmp_path / "of1")) == 4
    assert outputs(tmp_path / "of2") == outputs(tmp_path / "of1")
    assert {p.slide: p.error for p in two.failed} == {p.slide: p.error for p in one.failed}
    assert all("needs omics; give --omics" in p.error for p in two.failed)
    for row in two.summary["systems"][1:]:
        assert row["seconds"] > 0
    with pytest.raises(InputError, match="--jobs 0: at least 1"):
        run(tmp_path, "of0", jobs=0)


def test_a_process_that_dies_costs_its_cell_which_the_same_command_does_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path)
    send = TrialProcess.send

    def deadly(self: TrialProcess, what: Any) -> None:
        if isinstance(what, Trial) and what.note == "mean_pooling, fold 0":
            self.child.process.kill()
            self.child.wait()
        send(self, what)

    with monkeypatch.context() as patch:
        patch.setattr(TrialProcess, "send", deadly)
        found = run(tmp_path, "out", jobs=2)
    failed = [(p.slide, p.error) for p in found.failed]
    assert failed == [("mean_pooling, fold 0", "its process died (SIGKILL: out of memory?)")]
    assert len(outputs(tmp_path / "out")) == 3
    assert not run(tmp_path, "out", jobs=2).failed
    assert len(outputs(tmp_path / "out")) == 4


def children(process: int) -> list[int]:
    """Those that run cells."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process and b"trial_process" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, IndexError):  # it has just ended
            continue
    return found


def is_alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_leaves_no_process_behind_and_goes_on_to_the_same_bits(tmp_path: Path, number: signal.Signals) -> None:
    write_study(tmp_path)
    options = ["--folds", "column", "--epochs", "60", "--lr", "0.01", "--threads", "1", "--device", "cpu", "--jobs"]
    command = [sys.executable, "-m", "longvit", "benchmark", str(tmp_path / "cohort.csv"), *options, "2"]
    command += ["--features", str(tmp_path / "features"), "--systems", "mean_pooling", "mil", "--set", "mil.hidden=8"]
    command += ["--bootstrap", "10", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "out")])
    end = time.monotonic() + 120
    while not list((tmp_path / "out").glob("*/fold_*/checkpoints/*.json")):
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.01)
    started = children(process.pid)
    assert len(started) == 2
    os.kill(process.pid, number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -number)
    end = time.monotonic() + 20
    while any(is_alive(child) for child in started):
        assert time.monotonic() < end, "a process outlives the comparison"
        time.sleep(0.05)
    assert not (tmp_path / "out" / "benchmark.json").exists()
    subprocess.run([*command, str(tmp_path / "out")], check=True)
    command[command.index("--jobs") + 1] = "1"
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert len(outputs(tmp_path / "out")) == 4
