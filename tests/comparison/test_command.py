"""`longvit benchmark`: from the command line to the report, which says what failed and what cannot be told apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App
from tests.comparison.made import write_study

from longvit.cli.benchmark import benchmark
from longvit.config import recipe_config
from longvit.errors import InputError
from longvit.report.comparison import comparison_content

QUICK = ["--epochs", "2", "--bootstrap", "20", "--device", "cpu", "--threads", "1"]


def command(*words: str) -> int:
    app = App(config=recipe_config, result_action="return_value")
    app.command(benchmark)
    return int(app(["benchmark", *words], exit_on_error=False, print_error=False) or 0)


def test_command_writes_table_and_report_and_names_the_failed_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = write_study(tmp_path)
    given = [str(cohort), "--features", str(tmp_path / "features"), "--folds", "column", "--out", str(tmp_path / "out")]
    assert command(*given, *QUICK, "--systems", "mean_pooling", "--fold", "0") == 0
    said = capsys.readouterr()
    assert "mean pooling" in said.out
    assert "mean_pooling, fold 0: auc" in said.err
    assert "fold 1" not in said.err
    assert command(*given, *QUICK, "--systems", "mean_pooling", "mcat", "--fold", "0") == 1
    said = capsys.readouterr()
    assert "mcat, fold 0: failed: mcat: needs omics" in said.err
    html = (tmp_path / "out" / "index.html").read_text()
    assert "Failed in at least one fold: MCAT" in html
    assert "MCAT, fold 0: mcat: needs omics; give --omics TABLE" in html
    assert html.count("<svg") or "image/svg+xml" in html


def test_recipe_of_a_comparison_can_be_given_again(tmp_path: Path) -> None:
    cohort = write_study(tmp_path)
    given = [str(cohort), "--features", str(tmp_path / "features"), "--folds", "column", "--out", str(tmp_path / "out")]
    systems = ["--systems", "mil", "--set", "mil.hidden=8", "--fold", "0"]
    assert command(*given, *QUICK, *systems) == 0
    before = (tmp_path / "out" / "mil" / "fold_0" / "metrics.json").stat().st_mtime_ns
    assert command(*given, "--recipe", str(tmp_path / "out" / "settings.yaml"), "--fold", "0") == 0
    assert (tmp_path / "out" / "mil" / "fold_0" / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--folds", "column", "--systems", "clam"], "system 'clam': did you mean 'clam_sb'"),
        (["--folds", "column", "--fold", "9"], "--fold 9: choose 0, 1"),
        ([], "no column split; give --folds"),
        (["--folds", "column", "--signatures", "x.csv"], "--signatures needs --omics"),
        (["--folds", "column"], "nothing to compare on: give --features FOLDER, or --omics TABLE"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, more: list[str], words: str) -> None:
    with pytest.raises(Exception, match=words) as found:
        command(str(write_study(tmp_path)), *QUICK, "--out", str(tmp_path / "out"), *more)
    assert isinstance(found.value, InputError) or "clam_sb" in str(found.value)


def test_the_commands_help_loads_no_torch() -> None:
    script = "import sys, longvit.cli.benchmark; print({'torch', 'pandas', 'h5py', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def row(name: str, value: float, low: float, high: float, gap: tuple[float, float, float] | None) -> dict[str, object]:
    return {
        "system": name.lower(),
        "words": name,
        "inputs": "image",
        "mean": value,
        "sd": 0.02,
        "low": low,
        "high": high,
        "best_val": {"mean": None, "sd": None},
        "gap": None if gap is None else dict(zip(("value", "low", "high"), gap, strict=True)),
        "published": None,
        "parameters": 10,
        "seconds": 1.0,
        "peak_memory_mib": 5.0,
        "cells": [{"fold": "0", "value": value, "best_val": None, "seconds": 1.0, "error": None}],
    }


def test_report_says_what_cannot_be_told_apart_and_what_leaks(tmp_path: Path) -> None:
    summary = {
        "task": "subtyping",
        "figure": "auc",
        "figure_words": "AUC",
        "chance": 0.5,
        "cell": None,
        "ddof": 1,
        "evaluated": "test",
        "folds": [{"fold": "0", "bags": {"train": 3, "val": 0, "test": 2}, "leaks": {"train_test": 2}}],
        "systems": [
            row("LongViT", 0.8, 0.7, 0.9, None),
            row("One", 0.55, 0.45, 0.65, (0.25, 0.1, 0.4)),
            row("Two", 0.78, 0.7, 0.9, (0.02, -0.1, 0.1)),
        ],
        "published": [],
        "per_patient": False,
        "bags": 5,
        "tiles": 50,
        "width": 6,
        "settings": {"epochs": 20},
        "notes": [],
        "versions": {"torch": "2"},
    }
    notes = " ".join(comparison_content(summary, tmp_path).notes)
    assert "No significant difference between LongViT and Two" in notes
    assert "contains 0.5 for One" in notes
    assert "evaluated ones: 2" in notes
    assert (tmp_path / "systems.png").exists()
