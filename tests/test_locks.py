"""Locks exclude other processes, and end with the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longvit.locks import acquire, folder_lock

OTHER = """
import sys
from pathlib import Path
from longvit.locks import acquire
with Path(sys.argv[1]).open("a") as file:
    try:
        acquire(file.fileno(), wait=False, shared=sys.argv[2] == "shared")
        print("locked")
    except BlockingIOError:
        print("refused")
"""


def other(path: Path, how: str = "alone") -> str:
    done = subprocess.run([sys.executable, "-c", OTHER, str(path), how], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_lock_ends_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with path.open("w") as file:
        acquire(file.fileno(), wait=False)
        assert other(path) == other(path, "shared") == "refused"
    assert other(path) == "locked"
    with path.open("a") as file:
        acquire(file.fileno(), wait=False, shared=True)
        assert (other(path), other(path, "shared")) == ("refused", "locked")


def test_a_folder_lock_leaves_no_file_on_linux(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_has_no_lock_and_no_error(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "absent"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has flock's errors in another place")
def test_an_error_in_the_locked_part_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="inside"), folder_lock(tmp_path):
        raise OSError("inside")
