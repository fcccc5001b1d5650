"""A damaged checkpoint is passed over or refused in a line, whoever damaged it: a part of `damaged_checkpoints.py`."""

from __future__ import annotations

import pytest
from tests.faults.damaged_checkpoints import CASES, KINDS, Checkpoints

PART = CASES[: 3 * len(KINDS)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_gives_the_older_one_or_a_line(kind: str, checkpoints: Checkpoints) -> None:
    wrong = {number: checkpoints.wrong_with(kind, number) for of, number in PART if of == kind}
    assert not any(wrong.values()), wrong
