"""A new task is one file and one line: the one of docs/extending.md, unchanged."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tests.conftest import ROOT

from longvit.cli import main
from longvit.tasks.catalogue import TASKS

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def age() -> Iterator[None]:
    module = ModuleType("longvit.tasks.age")
    exec(compile(BLOCKS[0], "docs/extending.md", "exec"), module.__dict__)
    sys.modules["longvit.tasks.age"] = module
    exec(BLOCKS[1], {"TASKS": TASKS})
    yield
    del sys.modules["longvit.tasks.age"], TASKS["age"]


def write_cohort(folder: Path, n: int = 24) -> Path:
    lines = ["case_id,slide_id,age"]
    for i in range(n):
        years = 30 + 2 * i
        pixels = np.random.default_rng(i).normal(220 - 1.5 * years, 10, (64, 64, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"s{i:02d}.png")
        lines.append(f"P{i},s{i:02d},{years}")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


@pytest.mark.usefixtures("age")
def test_a_task_of_ones_own_is_one_file_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort, out = write_cohort(tmp_path), tmp_path / "cv"
    settings = "--task age --model longvit_tiny_patch32 --side-px 64 --epochs 3 --lr 1e-3 --batch-size 4 --bootstrap 50"
    quiet = "--device cpu --threads 1 --num-workers 1"
    assert main(["train", str(cohort), "--folds", "2", "--out", str(out), *settings.split(), *quiet.split()]) == 0
    summary = json.loads((out / "crossval.json").read_text())
    assert summary["figure"] == "minus_mae"
    assert summary["controls"]["mean_colour"]["mean"] > -5  # the age is the darkness
    assert -40 < summary["mean"] < 0
    assert (
        main(["predict", str(out / "fold_0" / "model"), str(tmp_path / "s03.png"), "--out", str(tmp_path / "p")]) == 0
    )
    with (tmp_path / "p" / "predictions.csv").open() as file:
        assert 0 < float(next(csv.DictReader(file))["predicted_age"]) < 120
    capsys.readouterr()

    lines = cohort.read_text().splitlines()
    cohort.write_text("\n".join([*lines[:-1], "P99,s23,"]) + "\n")
    assert main(["train", str(cohort), "--task", "age", "--out", str(tmp_path / "other")]) == 2
    assert "slide s23 has no age; fill in the column age" in capsys.readouterr().err


def test_an_unknown_task_names_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(write_cohort(tmp_path)), "--task", "agee", "--out", str(tmp_path / "run")]) == 2
    assert "task 'agee': choose subtyping, survival" in capsys.readouterr().err
