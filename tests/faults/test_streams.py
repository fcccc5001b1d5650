"""Standard streams that are closed, full or left by their reader: the work is done, and the exit code is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.small_slides import write_slide

START = f"exec {sys.executable} -c 'import sys; from longvit.cli import main; sys.exit(main())' "
INFO, CANVAS = "info {slide} ", "canvas {slide} {missing} --side-px 64 --out {out} "
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@pytest.fixture
def names(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bad.tif").write_text("no slide")
    slide = write_slide(tmp_path / "a.tif")
    return {"slide": str(slide), "missing": str(tmp_path / "bad.tif"), "out": str(tmp_path / "out")}


def shell(command: str, names: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-c", START + command.format(**names)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **more},
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@full
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_on_a_full_disk_is_one_line_and_a_code_of_its_own(names: dict[str, str], unbuffered: str) -> None:
    done = shell(INFO + "> /dev/full", names, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 74
    assert done.stderr.splitlines() == ["longvit: standard output: not written: No space left on device"]


def test_output_that_nobody_wants_is_no_error(names: dict[str, str]) -> None:
    assert shell(INFO + ">&-", names).returncode == 0
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; ({START + INFO.format(**names)}) | true"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@full
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">&-", "2> /dev/full", "> /dev/full 2>&1"])
def test_a_run_is_done_and_its_code_is_true_whatever_becomes_of_its_lines(names: dict[str, str], streams: str) -> None:
    assert shell(CANVAS + streams, names).returncode == 1
    out = Path(names["out"])
    assert (out / "a.tif").exists()
    assert (out / "problems.csv").read_text().count("\n") == 2


def test_a_reader_of_the_lines_that_leaves_does_not_end_the_run(names: dict[str, str]) -> None:
    command = START + CANVAS.format(**names)
    done = subprocess.run(["bash", "-c", f"set -o pipefail; ({command}) 2>&1 | true"], capture_output=True, timeout=120)
    assert done.returncode == 1
    assert (Path(names["out"]) / "a.tif").exists()


def test_an_encoding_without_the_letter_gets_an_escape(names: dict[str, str]) -> None:
    done = shell(INFO, names, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "160 \\xd7 96 px" in done.stdout


@pytest.mark.parametrize("mb", [150, 300, 600])
def test_too_little_memory_is_one_line_or_a_row(names: dict[str, str], mb: int) -> None:
    command = f"ulimit -v {mb * 1024}; {START} {CANVAS.format(**names)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    if "longvit" not in done.stderr and "canvas" not in done.stderr:
        pytest.skip("Python itself does not start")
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2, 71)


def test_an_error_that_nobody_expected_is_one_line_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from longvit import cli

    for error, code, word in (
        (
            ZeroDivisionError("by\nnothing"),
            70,
            "a bug in longvit: ZeroDivisionError: by nothing; please report it with the traceback that LONGVIT_DEBUG=1",
        ),
        (MemoryError(), 71, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 71, "not enough memory"),
        (OSError(24, "Too many open files"), 71, "Too many open files"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "longvit: a/b: No such file or directory"),
        (OSError(5, "Input/output error", "a/b"), 71, "longvit: a/b: Input/output error"),
        (BrokenPipeError(32, "Broken pipe"), 71, "Broken pipe"),  # of a process of ours: the work is not done
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> int:
            raise error

        monkeypatch.setattr(cli, "app", fail, raising=False)
        assert cli.main([]) == code
        said = capsys.readouterr().err
        assert word in said
        assert said.count("\n") == 1
