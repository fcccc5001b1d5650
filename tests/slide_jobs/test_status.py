"""`longvit status`: the status of a run while it runs, after its end, and after it was stopped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from longvit.cli import main
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.processes.leases import Leases
from longvit.slide_jobs import status as module
from longvit.slide_jobs.status import status
from longvit.slide_jobs.work_list import WorkList
from longvit.slide_jobs.worker_log import WorkerLog, note_death

Captured = pytest.CaptureFixture[str]


def begin(out: Path, n: int) -> WorkList:
    slides = [ListedSlide(f"s{i}", out / f"s{i}.svs") for i in range(n)]
    return WorkList.begin(out, "embed", slides, retries=2, settings={"timeout_s": None})


def test_counts_add_up_and_the_rate_is_that_of_done_slides(tmp_path: Path, capsys: Captured) -> None:
    listed = begin(tmp_path, 10)
    log = WorkerLog(listed.folder, "w0")
    with Leases() as leases:
        run = leases.acquire(tmp_path / "work" / "embed.claim")
        assert run is not None
        for i, end in enumerate(("done", "done", "skipped", "failed")):
            lease = leases.acquire(listed.slide_file(f"s{i}"), {"worker": "w0"})
            assert lease is not None
            more = {"stage": "read", "error": "s3.svs: damaged"} if end == "failed" else {}
            if end == "done":
                log.write("model", f"s{i}")
                time.sleep(0.05)
            leases.complete(lease, {"end": end, **more})
            log.write(end, f"s{i}", **more)
        log.write("again", "s8", stage="read", error="x", cause="passing")
        for slide in ("s4", "s5"):
            leases.acquire(listed.slide_file(slide), {"worker": "w0"})
        log.write("model", "s4")
        os.utime(listed.slide_file("s5"), (time.time() - 40, time.time() - 40))
        (now,) = status(tmp_path)
        assert main(["status", str(tmp_path)]) == 3
        picture = capsys.readouterr().out
    assert (now.state, now.total, now.done, now.skipped, now.waiting) == ("running", 10, 2, 1, 4)
    assert [one.slide for one in now.failed] == ["s3"]
    assert [(one.slide, one.stage, one.process) for one in now.running] == [
        ("s4", "model", os.getpid()),
        ("s5", "read", os.getpid()),
    ]
    assert now.running[0].beat_s < 30 < now.running[1].beat_s < 60
    assert now.per_hour is not None
    assert 0 < now.per_hour <= 2 * 3600 / 0.1
    assert now.left_s == pytest.approx(6 / now.per_hour * 3600)
    assert now.tried_again == 1
    for words in ("embed: 10 slides, running", "s4", "model", str(os.getpid()), "s3.svs: damaged", "1 retried"):
        assert words in picture

    note_death(listed.folder, "w0", "SIGKILL")
    (stopped,) = status(tmp_path)  # the leases are released
    assert (stopped.state, stopped.workers_lost, stopped.left_s) == ("stopped", 1, None)
    assert (stopped.running, stopped.waiting) == ((), 6)
    assert main(["status", str(tmp_path)]) == 4
    assert "rerun the command to resume" in capsys.readouterr().out


def test_a_run_whose_machine_is_gone_counts_as_stopped(tmp_path: Path) -> None:
    begin(tmp_path, 2)
    lease_path = tmp_path / "work" / "embed.claim"
    lease_path.write_text(json.dumps({"host": "elsewhere", "process": 1, "token": "x"}))
    assert status(tmp_path)[0].state == "running"
    os.utime(lease_path, (time.time() - 100, time.time() - 100))
    assert status(tmp_path)[0].state == "stopped"


def test_a_finished_run_ends_the_watch_and_gives_the_exit_code_of_its_problems(
    tmp_path: Path, capsys: Captured
) -> None:
    listed = begin(tmp_path, 1)
    with Leases() as leases:
        lease = leases.acquire(listed.slide_file("s0"))
        assert lease is not None
        leases.complete(lease, {"end": "failed", "stage": "open", "error": "s0.svs: no such file"})  # no line in a log
    assert main(["status", str(tmp_path), "--watch"]) == 1
    assert "s0.svs: no such file" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--json"]) == 1
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["state"], run["failed"][0]["stage"]) == ("finished", "open")


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(InputError, match="no run in it"):
        status(tmp_path)
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_written_to_is_looked_at_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "folder_time", refuse)
    begin(tmp_path, 1)
    assert status(tmp_path)[0].waiting == 1
