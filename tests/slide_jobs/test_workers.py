"""Several workers on one machine: every slide once, same bits as one process, a dead worker costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.slide_jobs.many_slides import (
    Run,
    assert_each_once,
    assert_nothing_left,
    assert_same_bits,
    in_model,
    lines_of,
    make,
    wait_for,
)
from tests.small_slides import write_model, write_slide

from longvit.data.slide_list import find_slides
from longvit.errors import InputError
from longvit.slide_jobs.canvas import canvas_slides
from longvit.slide_jobs.embed import embed_slides
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.status import status
from longvit.slides.canvas import read_canvas
from longvit.slides.reader import open_slide

ONE = RunSettings(device="cpu", threads=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums depend on the number of threads."""
    import torch

    torch.set_num_threads(1)


@pytest.mark.slow
def test_a_killed_worker_of_two_leaves_every_slide_done_once_with_the_bits_of_one_process(tmp_path: Path) -> None:
    model, slides = make(tmp_path, 30)
    run = Run(model, slides, tmp_path / "out", workers=2)
    process, _ = wait_for(lambda: in_model(tmp_path / "out"))
    os.kill(process, signal.SIGKILL)
    during = wait_for(lambda: status(tmp_path / "out"))[0]
    assert (during.state, during.total) == ("running", 30)
    result = run.result()
    assert result.done == tuple(listed.slide_id for listed in slides)
    assert_each_once(tmp_path / "out", slides)
    assert_nothing_left(tmp_path / "out")
    died = [line["how"] for _, line in lines_of(tmp_path / "out") if line["event"] == "died"]
    assert died == ["SIGKILL"]
    embed_slides(slides, tmp_path / "one", model, run_settings=ONE)
    assert_same_bits(tmp_path / "out", tmp_path / "one", slides)
    (after,) = status(tmp_path / "out")
    assert (after.state, after.done, after.waiting, after.workers_lost) == ("finished", 30, 0, 1)


@pytest.mark.slow
def test_a_slide_that_kills_its_worker_twice_is_a_row_and_the_others_are_done(tmp_path: Path) -> None:
    model, slides = make(tmp_path, 6, image_px=1024)
    run = Run(model, slides, tmp_path / "out", workers=2, retries=5)
    killed: set[int] = set()

    def worker_on_s3() -> int | None:
        processes: dict[str, int] = {}
        found = None
        for worker, line in lines_of(tmp_path / "out"):
            if line["event"] == "start":
                processes[worker] = line["process"]
            elif line.get("slide") == "s03":
                found = processes[worker] if line["event"] == "model" else None
        return None if found in killed else found

    for _ in range(2):
        killed.add(process := wait_for(worker_on_s3))
        os.kill(process, signal.SIGSEGV)
    result = run.result()
    assert [(p.slide, p.stage) for p in result.problems] == [("s03", "model")]
    assert "the process that worked on it" in result.problems[0].error
    assert "died (SIGSEGV); tried 2 times" in result.problems[0].error
    assert len(result.done) == 5
    assert_nothing_left(tmp_path / "out")


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_within_seconds_and_leaves_no_claim(tmp_path: Path) -> None:
    model, slides = make(tmp_path, 40)
    out = tmp_path / "out"
    code = "import sys; from longvit.cli import main; sys.exit(main())"
    words = ["embed", model, tmp_path / "slides", "--out", out, "--device", "cpu", "--workers", "2", "--threads", "1"]
    command = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True)
    process, _ = wait_for(lambda: in_model(out))
    begun = time.monotonic()
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "rerun the same command to resume" in said
    assert "Traceback" not in said
    assert time.monotonic() - begun < 20  # not a measurement: 5 s of patience and what a busy machine adds
    wait_for(lambda: not Path(f"/proc/{process}").exists(), 5)
    assert_nothing_left(out)
    (stopped,) = status(out)
    assert stopped.state == "stopped"
    assert stopped.waiting + stopped.done == 40
    again = embed_slides(slides, out, model, run_settings=ONE)
    assert len(again.done) + len(again.skipped) == 40
    assert len(again.skipped) >= stopped.done > 0


@pytest.mark.slow
def test_a_command_that_is_killed_takes_its_workers_with_it(tmp_path: Path) -> None:
    model, _ = make(tmp_path, 60)
    out = tmp_path / "out"
    code = "import sys; from longvit.cli import main; sys.exit(main())"
    words = ["embed", model, tmp_path / "slides", "--out", out, "--device", "cpu", "--workers", "2", "--threads", "1"]
    command = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.DEVNULL)
    wait_for(lambda: in_model(out))
    command.kill()
    command.wait()
    processes = [line["process"] for _, line in lines_of(out) if line["event"] == "start"]
    assert len(processes) == 2
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes), 30)
    assert status(out)[0].state == "stopped"


def test_workers_that_cannot_load_the_model_stop_the_run_in_one_line(tmp_path: Path) -> None:
    model, slides = make(tmp_path, 2)
    (model / "model.safetensors").write_bytes(b"no weights")
    error = Run(model, slides, tmp_path / "out", workers=2).error()
    assert "model.safetensors" in str(error)
    assert "\n" not in str(error)
    assert_nothing_left(tmp_path / "out")


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    from longvit.processes.leases import Leases

    model, slides = make(tmp_path, 2)
    (tmp_path / "out" / "work").mkdir(parents=True)
    with Leases() as leases:
        assert leases.acquire(tmp_path / "out" / "work" / "embed.claim")
        with pytest.raises(InputError, match=rf"process {os.getpid()} on .* has been working there since"):
            embed_slides(slides, tmp_path / "out", model, run_settings=ONE)
    assert len(embed_slides(slides, tmp_path / "out", model, run_settings=ONE).done) == 2


def test_a_run_whose_machine_is_gone_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease on the folder is an hour old by the folder's clock, and stays at rest while it is observed."""
    from longvit.processes import leases as lease_module

    monkeypatch.setattr(lease_module, "_OBSERVED_S", 0.3)
    model, slides = make(tmp_path, 2)
    lease_path = tmp_path / "out" / "work" / "embed.claim"
    lease_path.parent.mkdir(parents=True)
    lease_path.write_text(json.dumps({"host": "elsewhere", "process": 1, "token": "theirs", "since": "yesterday"}))
    with pytest.raises(InputError, match="process 1 on elsewhere has been working there since yesterday"):
        embed_slides(slides, tmp_path / "out", model, run_settings=ONE)
    os.utime(lease_path, (time.time() - 3600, time.time() - 3600))
    assert len(embed_slides(slides, tmp_path / "out", model, run_settings=ONE).done) == 2
    assert not lease_path.exists()


def test_canvases_are_those_of_one_slide_at_a_time(tmp_path: Path) -> None:
    for i in range(4):
        write_slide(tmp_path / "slides" / f"s{i}.tif", seed=i)
    (tmp_path / "slides" / "bad.tif").write_bytes(b"no slide")
    slides = find_slides([tmp_path / "slides"])
    settings = RunSettings(workers=2, threads=1)
    result = canvas_slides(slides, tmp_path / "out", 128, "pad", run_settings=settings)
    assert result.done == ("s0", "s1", "s2", "s3")
    assert [p.slide for p in result.left_out] == ["bad"]
    for listed in slides[1:]:
        canvas = read_canvas(tmp_path / "out" / f"{listed.slide_id}.tif")
        assert (canvas.pixels == open_slide(listed.path).canvas(128, "pad").pixels).all()
    table = (tmp_path / "out" / "canvases.csv").read_text().splitlines()
    assert table[0] == "slide_id,path,canvas,level,n_bad_tiles,mpp,mpp_source"
    assert len(table) == 5
    (tmp_path / "out" / "s1.tif").write_bytes(b"cut off")
    assert canvas_slides(slides, tmp_path / "out", 128, "pad", run_settings=RunSettings()).done == ("s1",)


def test_a_model_that_lies_in_no_folder_reaches_the_workers(tmp_path: Path) -> None:
    from longvit.model.pretrained import load_model

    write_slide(tmp_path / "slides" / "a.tif")
    model = load_model(write_model(tmp_path / "model"))
    slides = find_slides([tmp_path / "slides"])
    embed_slides(slides, tmp_path / "two", model, run_settings=RunSettings(workers=2, device="cpu", threads=1))
    embed_slides(slides, tmp_path / "one", model)
    assert_same_bits(tmp_path / "two", tmp_path / "one", slides)
