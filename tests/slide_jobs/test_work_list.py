"""The work list: each slide is one worker's, dead workers lose theirs, and only their model's slide gets the blame."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
from tests.slide_jobs.many_slides import make, wait_for

from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.process_identity import this_host
from longvit.processes.leases import Leases, read_lease
from longvit.slide_jobs import work_list as module
from longvit.slide_jobs.embed import FOLDER, EmbedJob, embed_slides
from longvit.slide_jobs.job import load_longvit
from longvit.slide_jobs.loop import work
from longvit.slide_jobs.reading import SlideFailedError, ThreadReader
from longvit.slide_jobs.work_list import SlideQueue, WorkList
from longvit.slide_jobs.worker_log import LogTail, WorkerLog, note_death


def begin(out: Path, n: int, retries: int = 2) -> WorkList:
    slides = [ListedSlide(f"s{i}", out / f"s{i}.svs", 0.5 if i == 0 else None) for i in range(n)]
    return WorkList.begin(out, "embed", slides, retries=retries, settings={"timeout_s": None})


def dead_process() -> int:
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


def left_by_the_dead(listed: WorkList, slide: str, *, in_model: bool, how: str = "SIGKILL") -> None:
    """Lease of a dead worker, and its log."""
    lease_path = {"host": this_host(), "process": dead_process(), "token": "theirs", "worker": f"dead-{slide}-{how}"}
    listed.slide_file(slide).write_text(json.dumps(lease_path))
    log = WorkerLog(listed.folder, str(lease_path["worker"]))
    log.write("start")
    if in_model:
        log.write("model", slide)
    log.close()
    note_death(listed.folder, str(lease_path["worker"]), how)


def test_of_many_takers_each_slide_gets_one(tmp_path: Path) -> None:
    listed = begin(tmp_path, 100)
    had: Counter[str] = Counter()

    def worker(name: str) -> None:
        with Leases() as leases:
            taking = SlideQueue(listed, leases, WorkerLog(listed.folder, name))
            while (taken := taking.next()) is not None:
                had[taken.listed.slide_id] += 1
                taking.ended(taken, "done")

    threads = [threading.Thread(target=worker, args=(f"w{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert had == Counter({slide.slide_id: 1 for slide in listed.slides})
    assert Counter(line["slide"] for _, line in LogTail(listed.folder).new_lines()) == had


def test_the_last_ones_are_waited_for_and_taken_when_their_worker_lets_go(tmp_path: Path) -> None:
    listed = begin(tmp_path, 2)
    got: list[str] = []
    with Leases() as first, Leases() as second:
        one = SlideQueue(listed, first, WorkerLog(listed.folder, "one"))
        two = SlideQueue(listed, second, WorkerLog(listed.folder, "two"))
        s0, s1 = one.next(), one.next()
        assert s0 is not None
        assert s1 is not None

        def rest() -> None:
            while (taken := two.next()) is not None:
                got.append(taken.listed.slide_id)
                two.ended(taken, "done")

        thread = threading.Thread(target=rest)
        thread.start()
        one.ended(s0, "done")
        assert thread.is_alive()
        one.failed(s1, SlideFailedError("read", "the network", "passing"))
        thread.join(30)
        assert not thread.is_alive()
        assert got == ["s1"]
        assert one.next() is None


def test_the_slide_in_a_dead_workers_model_gets_the_blame_and_is_given_up_the_second_time(tmp_path: Path) -> None:
    listed = begin(tmp_path, 3, retries=9)
    left_by_the_dead(listed, "s1", in_model=True, how="SIGKILL")
    left_by_the_dead(listed, "s2", in_model=False)
    with Leases() as leases:
        taking = SlideQueue(listed, leases, WorkerLog(listed.folder, "heir"))
        names = []
        for _ in range(3):
            taken = taking.next()
            assert taken is not None
            names.append(taken.listed.slide_id)
            assert taken.was_in_model == (taken.listed.slide_id == "s1")
            if taken.listed.slide_id == "s1":
                leases.release(taken.lease)
            else:
                taking.ended(taken, "done")
        assert sorted(names) == ["s0", "s1", "s2"]
        assert [one["error"] for one in listed.tried("s1")] == [
            f"{tmp_path}/s1.svs: the process that worked on it on {this_host().split()[0]} died (SIGKILL)"
        ]
        assert listed.tried("s2") == []  # it was being read, in a separate process
    left_by_the_dead(listed, "s1", in_model=True, how="SIGSEGV")
    with Leases() as leases:
        assert SlideQueue(listed, leases, WorkerLog(listed.folder, "second heir")).next() is None
    end = read_lease(listed.slide_file("s1"))
    assert (end["end"], end["stage"]) == ("failed", "model")
    assert end["error"].endswith("died (SIGSEGV); tried 2 times")


def test_a_result_that_was_written_before_its_worker_died_counts_as_done_in_this_run(tmp_path: Path) -> None:
    model, slides = make(tmp_path, 2, image_px=64)
    out = tmp_path / "out"
    embed_slides(slides, out, model)
    listed = WorkList.begin(out, "embed", slides, retries=2, settings={"timeout_s": None})
    left_by_the_dead(listed, "s01", in_model=True)
    job = EmbedJob(load_longvit(model), out / FOLDER)
    work(job, listed, ThreadReader(), WorkerLog(listed.folder, "heir"))
    assert [read_lease(listed.slide_file(slide))["end"] for slide in ("s00", "s01")] == ["skipped", "done"]


def test_without_retries_the_first_failure_is_the_last(tmp_path: Path) -> None:
    listed = begin(tmp_path, 1, retries=0)
    for cause in ("slide", "passing", "death", "time"):
        assert listed.note_try("s0", SlideFailedError("read", "x", cause)) is not None  # type: ignore[arg-type]


def test_a_worker_of_an_older_run_ends_and_ends_nothing_of_the_newer(tmp_path: Path) -> None:
    old = begin(tmp_path, 3)
    with Leases() as leases:
        taking = SlideQueue(old, leases, WorkerLog(old.folder, "old"))
        taken = taking.next()
        assert taken is not None
        new = begin(tmp_path, 3)
        taking.ended(taken, "done")
        assert taking.next() is None
    assert new.present() == set()
    assert WorkList.read(tmp_path / "work" / "embed") == new


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    listed = begin(tmp_path, 2)
    assert WorkList.read(listed.folder.parent).slides == listed.slides
    with pytest.raises(InputError, match="no run was begun"):
        WorkList.read(tmp_path / "work" / "predict")
    (tmp_path / "work" / "embed" / "run.json").write_text('{"slides": [')
    with pytest.raises(InputError, match="not the work list of a run"):
        WorkList.read(tmp_path / "work" / "embed")


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    listed = begin(tmp_path, 1)
    tail = LogTail(listed.folder)
    path = listed.folder / "workers" / "w.jsonl"
    path.write_text('{"t": 1, "event": "start"}\n{"t": 2, "eve')
    assert [line["t"] for _, line in tail.new_lines()] == [1]
    assert list(tail.new_lines()) == []
    note_death(listed.folder, "w", "SIGKILL")  # after a worker that was killed within a line
    assert [line["event"] for _, line in tail.new_lines()] == ["died"]


def test_a_passing_failure_gets_time_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_AFTER_S", 600)
    listed = begin(tmp_path, 1)
    with Leases() as leases:
        taking = SlideQueue(listed, leases, WorkerLog(listed.folder, "w"))
        taken = taking.next()
        assert taken is not None
        taking.failed(taken, SlideFailedError("read", "the network", "passing"))
        thread = threading.Thread(target=taking.next)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert not listed.slide_file("s0").exists()
        taking.stopping.set()
        wait_for(lambda: not thread.is_alive(), 10)
