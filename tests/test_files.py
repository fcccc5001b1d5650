"""Temporary names: no two writers share one, and those of a killed process can be found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longvit import files
from longvit.files import atomic_path, remove_parts, write_text


def test_two_writers_of_one_file_have_two_temporary_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads; two machines whose processes happen to have one number."""
    names = set()
    with atomic_path(tmp_path / "x.h5") as one, atomic_path(tmp_path / "x.h5") as two:
        names |= {one.name.split("-")[0], two.name.split("-")[0]}
        assert one != two
        assert one.suffix == two.suffix == ".h5"
        one.write_text("one")
        two.write_text("two")
        monkeypatch.setattr(files, "this_host", lambda: "another machine")
        with atomic_path(tmp_path / "x.h5") as three:
            names.add(three.name.split("-")[0])
            three.write_text("three")
    assert len(names) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_half_files_of_a_killed_process_are_removed_and_only_those(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x.tif") as part:
        part.write_text("half")
        mine = part.name
        theirs = tmp_path / mine.replace(f"-{os.getpid()}-", f"-{os.getpid()}1-")
        theirs.write_text("another process at work")
        write_text(tmp_path / ".x.tif.part", "a user's file")
        remove_parts(tmp_path, os.getpid())
        assert not part.exists()
        assert theirs.exists()
        assert (tmp_path / ".x.tif.part").exists()
        part.write_text("whole")
