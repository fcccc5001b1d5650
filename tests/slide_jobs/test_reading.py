"""A decoder that crashes or hangs costs one slide, not the run; a process reads the pixels that a thread reads."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.slide_jobs.many_slides import lines_of, wait_for
from tests.small_slides import write_model, write_slide

from longvit.data.slide_list import find_slides
from longvit.errors import InputError
from longvit.slide_jobs import read_process, reading, work_list
from longvit.slide_jobs.embed import embed_slides
from longvit.slide_jobs.read_process import ReadProcess
from longvit.slide_jobs.reading import ReadRequest, ReadSettings, SlideFailedError, ThreadReader
from longvit.slide_jobs.run import RunSettings

HOOKS = Path(__file__).resolve().parents[1] / "faults" / "hooks"


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slide whose opening never ends, in processes that are started from here on."""
    path = os.pathsep.join(filter(None, (str(HOOKS), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("LONGVIT_FAULT", "hang hanging.tif")
    (tmp_path / "slides").mkdir(exist_ok=True)
    return write_slide(tmp_path / "slides" / "hanging.tif")


def request(path: Path, side_px: int = 64) -> ReadRequest:
    return ReadRequest(path, side_px, "stretch", ReadSettings())


def test_a_process_reads_what_a_thread_reads(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif")
    reader = ReadProcess(60)
    seen: list[str] = []
    try:
        for side_px in (64, 1500):  # 6.75 MB: more than a socket holds
            ours = reader.read(request(slide, side_px), lambda identity: not seen.append(identity))
            theirs = ThreadReader().read(request(slide, side_px), lambda identity: not seen.append(identity))
            assert ours is not None
            assert theirs is not None
            np.testing.assert_array_equal(ours.pixels, theirs.pixels)
            assert ours.provenance() == theirs.provenance()
        assert len(set(seen)) == 1
        assert reader.read(request(slide), lambda identity: False) is None
        with pytest.raises(SlideFailedError, match="no such file") as caught:
            reader.read(request(tmp_path / "gone.tif"), lambda identity: True)
        assert (caught.value.stage, caught.value.cause) == ("open", "slide")
    finally:
        reader.stop()


def test_a_hanging_read_is_really_ended_and_the_next_slide_is_read(tmp_path: Path, hanging: Path) -> None:
    slide = write_slide(tmp_path / "a.tif")
    reader = ReadProcess(0.3)
    try:
        with pytest.raises(SlideFailedError, match=r"not read within 0\.3 s \(--timeout-s\)") as caught:
            reader.read(request(hanging), lambda identity: True)
        assert caught.value.cause == "time"
        assert reader.process is None
        reader._timeout_s = 60
        assert reader.read(request(slide), lambda identity: True) is not None
    finally:
        reader.stop()


def test_a_decoder_that_crashes_is_told_by_its_signal(hanging: Path) -> None:
    reader = ReadProcess(60)
    process = reader.process
    assert process is not None
    threading.Timer(1.0, os.kill, (process, signal.SIGSEGV)).start()
    try:
        with pytest.raises(SlideFailedError, match=r"the process that read it died \(SIGSEGV\)") as caught:
            reader.read(request(hanging), lambda identity: True)
        assert caught.value.cause == "death"
    finally:
        reader.stop()


def test_the_child_ends_with_the_process_that_started_it(tmp_path: Path, hanging: Path) -> None:
    """Also in the midst of a read that hangs: its standard input ends."""
    reader = ReadProcess(60)
    child = reader._child
    assert child is not None

    def read() -> None:
        with pytest.raises(SlideFailedError, match="exit code 1"):
            reader.read(request(hanging), bool)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.5)
    child.close_input()
    assert child.wait(30) == 1
    thread.join(30)
    assert not thread.is_alive()


def test_stop_ends_a_read_from_another_thread(hanging: Path) -> None:
    reader = ReadProcess(None)
    threading.Timer(0.5, reader.stop).start()
    with pytest.raises(SlideFailedError, match="stopped"):
        reader.read(request(hanging), lambda identity: True)
    with pytest.raises(SlideFailedError, match="stopped"):
        reader.read(request(hanging), lambda identity: True)


def test_a_thread_that_reads_stops_inside_the_canvas(tmp_path: Path) -> None:
    reader = ThreadReader()
    reader.stop()
    with pytest.raises(SlideFailedError, match="stopped"):
        reader.read(request(write_slide(tmp_path / "a.tif")), lambda identity: True)


def test_a_slide_that_hangs_and_one_that_crashes_its_reader_are_a_row_each(
    tmp_path: Path, hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    for name in ("a", "b", "crash", "x"):
        write_slide(tmp_path / "slides" / f"{name}.tif")
    read = ReadProcess.read

    def crashing(reader: ReadProcess, wanted: ReadRequest, *more: Any) -> Any:
        if wanted.path.stem == "crash":
            reader._start()
            threading.Timer(0.3, os.kill, (reader.process, signal.SIGSEGV)).start()
            wanted = replace(wanted, path=hanging)  # so that it is in the midst of a read
        return read(reader, wanted, *more)

    monkeypatch.setattr(ReadProcess, "read", crashing)
    slides = find_slides([tmp_path / "slides"])
    settings = RunSettings(reads_apart=True, timeout_s=1, device="cpu", threads=1)
    result = embed_slides(slides, tmp_path / "out", model, run_settings=settings)
    assert result.done == ("a", "b", "x")
    assert [(p.slide, p.stage) for p in result.problems] == [("crash", "open"), ("hanging", "open")]
    assert "the process that read it died (SIGSEGV); tried 2 times" in result.problems[0].error
    assert "not read within 1 s" in result.problems[1].error


def test_what_may_pass_is_tried_again_and_what_may_not_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model")
    for name in ("a", "b", "c", "d"):
        write_slide(tmp_path / "slides" / f"{name}.tif")
    monkeypatch.setattr(work_list, "RETRY_AFTER_S", 0.05)
    tries = {"a": 0, "b": 0, "c": 0, "d": 0}
    read = reading.read

    def shaky(wanted: ReadRequest, *more: Any) -> Any:
        name = wanted.path.stem
        tries[name] += 1
        if (name == "a" and tries[name] < 3) or name == "b":
            raise SlideFailedError.from_error("read", OSError(5, "Input/output error"))
        if name == "c":
            raise SlideFailedError.from_error("read", InputError("c.tif: damaged"))
        return read(wanted, *more)

    monkeypatch.setattr(reading, "read", shaky)
    slides = find_slides([tmp_path / "slides"])
    result = embed_slides(slides, tmp_path / "out", model, run_settings=RunSettings(retries=2))
    assert tries == {"a": 3, "b": 3, "c": 1, "d": 1}
    assert result.done == ("a", "d")
    assert [p.slide for p in result.problems] == ["b", "c"]
    assert result.problems[0].error == "OSError: [Errno 5] Input/output error; tried 3 times"
    assert result.problems[1].error == "c.tif: damaged"
    assert [line["slide"] for _, line in lines_of(tmp_path / "out") if line["event"] == "again"].count("a") == 2


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(116, "Stale file handle"), "passing"),
        (MemoryError(), "passing"),
        (FileNotFoundError(2, "No such file"), "slide"),
        (PermissionError(13, "Permission denied"), "slide"),
        (InputError("damaged"), "slide"),
        (OSError("a decoder's word, no errno of the system"), "slide"),
        (ValueError("nan"), "slide"),
    ],
)
def test_whose_fault_an_error_is(error: Exception, cause: str) -> None:
    assert SlideFailedError.from_error("read", error).cause == cause
    with pytest.raises(InputError) as caught:
        raise InputError("a.svs: cannot be read") from error
    assert SlideFailedError.from_error("read", caught.value).cause == cause


def test_a_reading_process_loads_no_torch() -> None:
    import subprocess
    import sys

    code = f"import sys, {read_process.__name__}, longvit.slides.reader; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_read_that_is_nobodys_is_waited_for(tmp_path: Path) -> None:
    """A reader that died while it had nothing to do is replaced without a word."""
    slide = write_slide(tmp_path / "a.tif")
    reader = ReadProcess(60)
    try:
        assert reader.read(request(slide), lambda identity: True) is not None
        child = reader._child
        assert child is not None
        child.process.kill()
        wait_for(lambda: child.process.poll() is not None)
        assert reader.read(request(slide), lambda identity: True) is not None
    finally:
        reader.stop()
