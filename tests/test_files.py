"""Temporary names: no two writers share one, and those of a killed process can be found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil  # noqa: F401  # before a test pretends to be on another system
import pytest

from longvit import files, process_identity
from longvit.errors import InputError
from longvit.files import atomic_path, part_of, remove_dead_parts, remove_parts, write_csv, write_text


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


KILLED = """
import os, signal, sys
from pathlib import Path
from longvit.files import atomic_path
with atomic_path(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_writer_into_a_folder_removes_what_killed_ones_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x.h5")], check=False)
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".x.h5.")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(files, "this_host", lambda: "another machine")
        theirs, old = part_of(tmp_path / "y.h5"), part_of(tmp_path / "z.h5")
    number_again = tmp_path / half.name.replace(f"-{half.name.split('-')[1]}-", f"-{os.getpid()}-")
    for path in (theirs, old, number_again, tmp_path / ".x.h5.part.h5"):
        path.write_text("half")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    with atomic_path(tmp_path / "a") as mine:
        mine.write_text("whole")
        remove_dead_parts(tmp_path)
        assert mine.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a", theirs.name, ".x.h5.part.h5"}  # a process elsewhere may be at work; the last one is a user's


def test_a_folder_that_is_removed_while_a_file_is_written_is_one_line(tmp_path: Path) -> None:
    def remove_while_writing() -> None:
        with atomic_path(tmp_path / "d" / "x") as part:
            part.parent.rmdir()

    with pytest.raises(InputError, match="its folder was removed meanwhile"):
        remove_while_writing()


def test_a_csv_quotes_what_it_must_and_ends_lines_as_unix_does(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "a" / "t.csv", ["", "b"], ([i, text] for i, text in enumerate(["x,y", 'q"', "two\nlines", ""]))
    )
    assert (tmp_path / "a" / "t.csv").read_bytes() == b',b\n0,"x,y"\n1,"q"""\n2,"two\nlines"\n3,\n'


def test_a_rename_over_a_file_that_is_open_elsewhere_waits_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer or a virus scanner has the old file open for a moment; on Linux the error stays at once."""
    rename, refusals = Path.replace, [1, 2]

    def replace(self: Path, target: Path) -> Path:
        if refusals:
            refusals.pop()
            raise PermissionError(13, "Access is denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(InputError, match="no permission"):
        write_text(tmp_path / "a.txt", "new")
    assert len(refusals) == 1
    monkeypatch.setattr(sys, "platform", "win32")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_stays_open_elsewhere_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = PermissionError(13, "The process cannot access the file")
    error.winerror = 32  # type: ignore[attr-defined]
    assert "another program has the file open" in str(files.write_error(tmp_path / "a.csv", error))


def test_the_state_of_processes_is_the_same_by_psutil_as_by_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no /proc."""
    memory = process_identity.memory_bytes()
    monkeypatch.setattr(sys, "platform", "darwin")
    start = process_identity.start_of(os.getpid())
    assert start is not None
    assert abs(start / 100 - time.time()) < 24 * 3600
    assert process_identity.is_running(os.getpid(), start)
    assert not process_identity.is_running(os.getpid(), start - 100)
    assert not process_identity.is_running(2**22 + 1)
    assert process_identity.is_running("no number")
    assert process_identity.memory_bytes() == memory


def test_no_result_of_a_slide_is_lost_by_a_name_that_windows_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a:b", "a?b", "con", "COM1.x", "ends.", "ends ", "a<b", "tab\t", "C:\\x"]
    assert [files.file_stem(name) for name in names] == names
    monkeypatch.setattr(sys, "platform", "win32")
    stems = [files.file_stem(name) for name in names]
    assert all(re.fullmatch(r"[\w.]+~[0-9a-f]{16}", stem) for stem in stems)
    assert len({stem.lower() for stem in stems}) == len(names)
    for name in ("TCGA-A1", "console", "a.b", "com10", "x con", "Größe"):
        assert files.file_stem(name) == name
