"""Commands that are killed, stopped and interrupted, and given again: the same bits, nothing half left.

A small part of `signals.py --all`.
"""

from __future__ import annotations

import random
import sys

import pytest
from tests.faults.signals import Case, Commands, load

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    load()
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_command_that_a_signal_ends_goes_on_to_the_same_bits(name: str, commands: Commands) -> None:
    import signal

    case = Case("embed", signal.Signals[name], 0)
    assert not commands.wrong_with(case, random.Random(1))
