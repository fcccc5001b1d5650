"""Result files of trials: nothing finished is repeated, lost or overwritten, whatever ends the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT


@dataclass(frozen=True)
class Trial:
    task: str
    seed: int
    rates: tuple[float, ...] = (1e-4,)


def test_a_finished_trial_is_not_run_again_and_a_failed_one_is(tmp_path: Path) -> None:
    from trials import TrialFile, run_trials

    file, ran, is_broken = TrialFile(tmp_path / "r.json", "made"), [], [True]

    def run(trial: Trial) -> dict[str, Any]:
        ran.append(trial.seed)
        if trial.seed == 1 and is_broken[0]:
            raise ValueError("no luck")
        return {"auc": trial.seed / 10}

    trials = [Trial("a", seed) for seed in range(3)]
    assert "no luck" in run_trials(file, trials, run)[1]["failed"]
    is_broken[0] = False
    rows = run_trials(file, trials, run)
    assert ran == [0, 1, 2, 1]
    assert [row["auc"] for row in rows] == [0, 0.1, 0.2]
    assert len(file.rows()) == 3
    assert run_trials(file, [Trial("a", 0, (1e-3,))], run)[0]["rates"] == [1e-3]  # other settings are another trial
    assert len(file.rows()) == 4


def test_commands_that_share_a_file_lose_no_row(tmp_path: Path) -> None:
    from trials import TrialFile

    def add(seed: int) -> None:
        TrialFile(tmp_path / "r.json", "made").add(Trial("a", seed), {"auc": 0.5})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(24)))
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert sorted(row["seed"] for row in rows) == list(range(24))
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_killed_command_keeps_its_finished_trials(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from dataclasses import dataclass
from trials import TrialFile, run_trials

@dataclass(frozen=True)
class Trial:
    task: str
    seed: int

def run(trial):
    if trial.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"auc": 1.0}

run_trials(TrialFile(Path(sys.argv[1]), "made"), [Trial("a", seed) for seed in range(4)], run)
"""
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.json")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [row["seed"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == [0, 1]


@pytest.mark.slow
def test_trials_in_processes_give_the_rows_of_trials_in_turn(tmp_path: Path) -> None:
    from trainability import Trial, run_trial
    from trials import TrialFile, run_trials

    size = {"steps": 2, "rates": (1e-3,), "image_px": 64, "batch": 4, "n_test": 8}
    trials = [Trial("texture", variant, 0, **size) for variant in ("plain_stem", "longvit")]
    rows = [run_trials(TrialFile(tmp_path / f"{jobs}.json", "made"), trials, run_trial, jobs=jobs) for jobs in (1, 2)]
    for one, two in zip(*rows, strict=True):
        assert "failed" not in one
        assert one["ranks"] == two["ranks"]
