"""Matched slides: the column must exist, and a run with matched slides resumes to the same bits."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from tests.finetuning.study import SETTINGS, write_study

from longvit.data.cohort_table import read_cohort
from longvit.errors import InputError
from longvit.finetuning.run import finetune


def write_pairs(folder: Path) -> Path:
    path = write_study(folder)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], "pair"])
        writer.writeheader()
        writer.writerows({**line, "pair": f"pair{number % 7}"} for number, line in enumerate(lines))
    return path


def test_a_column_that_is_not_there_is_refused_before_a_slide_is_read(tmp_path: Path) -> None:
    cohort = read_cohort(write_pairs(tmp_path))
    with pytest.raises(InputError, match=r"no column twin for match_on; it has case_id, slide_id, label, split, pair"):
        finetune(cohort, tmp_path / "run", replace(SETTINGS, match_on="twin"))
    assert not list((tmp_path / "run").rglob("*.tif"))


def test_matched_slides_change_the_order_of_training_alone(tmp_path: Path) -> None:
    cohort = read_cohort(write_pairs(tmp_path))
    losses = {}
    for name in (None, "pair"):
        settings = replace(SETTINGS, epochs=1, match_on=name)
        result = finetune(cohort, tmp_path / f"run_{name}", settings)
        losses[name] = result.metrics["splits"]["test"]["loss"]
    assert losses[None] != losses["pair"]


def test_drawing_with_replacement_cannot_keep_sets_together() -> None:
    with pytest.raises(InputError, match="omit one"):
        replace(SETTINGS, match_on="pair", balanced=True)
