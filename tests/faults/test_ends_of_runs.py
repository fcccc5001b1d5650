"""No slide of a list is lost without a word: it has a result, or a row of problems.csv and exit code 1.

A part of the cases of `ends_of_runs.py --all`: every fault with every place, with every command, and with one and two
workers. With every fault also the last slide of one worker, after which nothing is read ahead.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.ends_of_runs import CASES, Case, make_inputs, wrong_with

PART = (
    Case("crash", "last", 1, "canvas"),
    Case("hang", "last", 1, "tiles"),
    Case("passing", "last", 1, "features"),
    Case("lasting", "last", 1, "embed"),
    Case("memory", "last", 1, "predict"),
    Case("removed", "last", 1, "canvas"),
    Case("crash", "first", 2, "tiles"),
    Case("crash", "middle", 1, "features"),
    Case("passing", "first", 1, "tiles"),
    Case("passing", "middle", 2, "canvas"),
    Case("lasting", "first", 1, "canvas"),
    Case("lasting", "middle", 1, "predict"),
    Case("memory", "first", 1, "embed"),
    Case("memory", "middle", 2, "features"),
    Case("removed", "first", 2, "canvas"),
    Case("removed", "middle", 1, "embed"),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.mark.parametrize("case", PART, ids=str)
def test_every_slide_has_a_result_or_a_row(case: Case, inputs: Path, tmp_path: Path) -> None:
    assert case in CASES
    assert not wrong_with(case, inputs, tmp_path)
