"""Downloads stay below the bound of their disk, and nothing that a dead process left blocks the living."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from longvit.transfer.client import Stopped, TransferError
from longvit.transfer.disk_bound import DiskBound, folder_bytes

MB = 2**20


def reserve_later(bound: DiskBound, slide_id: str, sizes: list[int], stopping: threading.Event) -> threading.Thread:
    def wait() -> None:
        with contextlib.suppress(Stopped):
            bound.reserve(slide_id, sizes, stopping)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_slide_waits_until_another_gives_its_bytes_back(tmp_path: Path) -> None:
    stopping = threading.Event()
    with DiskBound(tmp_path, 10 * MB) as ours, DiskBound(tmp_path, 10 * MB) as theirs:  # as in two processes
        folder = ours.reserve("a", [4 * MB, 2 * MB], stopping)
        (folder / "file").write_bytes(b"x" * MB)
        assert theirs.reserve("b", [4 * MB], stopping).is_dir()
        thread = reserve_later(theirs, "c", [5 * MB], stopping)
        thread.join(0.5)
        assert thread.is_alive()  # the whole slide is reserved, not what has arrived
        ours.release("a")
        thread.join(10)
        assert not thread.is_alive()
        assert not folder.exists()


def test_a_stopped_worker_does_not_wait(tmp_path: Path) -> None:
    stopping = threading.Event()
    with DiskBound(tmp_path, 10 * MB) as bound:
        bound.reserve("a", [9 * MB], stopping)
        threading.Timer(0.2, stopping.set).start()
        with pytest.raises(Stopped):
            bound.reserve("b", [9 * MB], stopping)


def test_a_slide_above_the_bound_is_refused_at_once(tmp_path: Path) -> None:
    with DiskBound(tmp_path, 10 * MB) as bound, pytest.raises(TransferError, match="--disk-gb"):
        bound.reserve("a", [11 * MB], threading.Event())


def test_what_a_dead_process_left_counts_and_makes_way_only_where_space_is_needed(tmp_path: Path) -> None:
    program = f"""
import os, threading
from pathlib import Path
from longvit.transfer.disk_bound import DiskBound
bound = DiskBound(Path({str(tmp_path)!r}), {10 * MB}).__enter__()
for name in "ab":
    folder = bound.reserve(name, [4 * {MB}], threading.Event())
    (folder / "part").write_bytes(b"x" * 3 * {MB})
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 9
    assert len(list(tmp_path.glob("*.claim"))) == 2
    with DiskBound(tmp_path, 10 * MB) as bound:
        bound.reserve("a", [4 * MB], threading.Event())  # resumed: its files stay
        assert folder_bytes(tmp_path / "a") == 3 * MB
        bound.reserve("c", [2 * MB], threading.Event())  # fits beside the rest of b
        assert (tmp_path / "b" / "part").exists()
        bound.reserve("d", [2 * MB], threading.Event())
        assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob("*.claim"))


def test_a_slide_of_another_living_process_is_neither_counted_twice_nor_removed(tmp_path: Path) -> None:
    with DiskBound(tmp_path, 10 * MB) as theirs, DiskBound(tmp_path, 10 * MB) as ours:
        folder = theirs.reserve("a", [4 * MB], threading.Event())
        (folder / "file").write_bytes(b"x" * 4 * MB)
        ours.discard("a")
        ours.reserve("b", [6 * MB], threading.Event())
        assert (folder / "file").exists()
        assert json.loads((tmp_path / "a.claim").read_text())["bytes"] == 4 * MB


def test_files_that_are_kept_for_a_later_try_count_until_then(tmp_path: Path) -> None:
    with DiskBound(tmp_path, 10 * MB) as bound:
        folder = bound.reserve("a", [8 * MB], threading.Event())
        (folder / "part").write_bytes(b"x" * MB)
        bound.release("a", keep_files=True)
        bound.reserve("b", [9 * MB], threading.Event())
        assert (folder / "part").exists()
        assert bound.reserve("a", [MB], threading.Event()) == folder
