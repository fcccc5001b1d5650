"""Prepared slides: one at a time at the start, several at once later, and no waiting threads at the end."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast

import pytest

from longvit.data.slide_list import ListedSlide
from longvit.processes.leases import Lease
from longvit.slide_jobs import prepared_slides
from longvit.slide_jobs.job import SlideJob
from longvit.slide_jobs.prepared_slides import PreparedSlides
from longvit.slide_jobs.reading import SlideFailedError
from longvit.slide_jobs.work_list import SlideQueue, TakenSlide

NOT_YET_S = 0.3
"""Time in which a thread that may start would start."""
TIMEOUT_S = 20.0


class SlidesInTurn:
    """Stand-in for a queue: its slides, then None."""

    def __init__(self, *names: str) -> None:
        self.stopping = threading.Event()
        self._left = deque(names)

    def next(self) -> TakenSlide | None:
        if not self._left:
            return None
        listed = ListedSlide(self._left.popleft(), Path("slide"))
        return TakenSlide(listed, Lease(Path("slide.claim"), "token", None))


class StepwiseJob:
    """Stand-in for a job whose preparations end when the test says so."""

    ahead = 2

    def __init__(self, *failing: str) -> None:
        self.begun: Queue[str] = Queue()
        self.may_end = {name: threading.Event() for name in "abc"}
        self._failing = failing

    def prepare(self, listed: ListedSlide, stopping: threading.Event) -> bool:
        self.begun.put(listed.slide_id)
        assert self.may_end[listed.slide_id].wait(TIMEOUT_S)
        if listed.slide_id in self._failing:
            raise SlideFailedError("fetch", "no object there")
        return True


def begin(job: StepwiseJob, *names: str) -> PreparedSlides:
    return PreparedSlides(cast(SlideQueue, SlidesInTurn(*names)), cast(SlideJob, job))


@pytest.mark.parametrize("failing", [(), ("a",)])
def test_a_second_download_does_not_slow_the_first_slide_down(failing: tuple[str, ...]) -> None:
    job = StepwiseJob(*failing)
    prepared = begin(job, "a", "b", "c")
    assert job.begun.get(timeout=TIMEOUT_S) == "a"
    with pytest.raises(Empty):
        job.begun.get(timeout=NOT_YET_S)
    job.may_end["a"].set()
    assert job.begun.get(timeout=TIMEOUT_S) == "b"
    first = prepared.next()
    assert first is not None
    assert (first.taken.listed.slide_id, first.error is None) == ("a", not failing)
    assert job.begun.get(timeout=TIMEOUT_S) == "c"  # beside b, which is not ready yet
    for event in job.may_end.values():
        event.set()
    left: list[Any] = [prepared.next(), prepared.next()]
    assert sorted(ready.taken.listed.slide_id for ready in left) == ["b", "c"]
    assert prepared.next() is None


def test_a_reader_that_waits_for_a_slide_ends_when_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_slides, "_POLL_S", 1000.0)
    job = StepwiseJob()
    prepared = begin(job, "a")
    assert job.begun.get(timeout=TIMEOUT_S) == "a"
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.append(prepared.next()))
    reader.start()
    reader.join(NOT_YET_S)
    assert reader.is_alive()
    prepared.stop()
    reader.join(TIMEOUT_S)
    assert found == [None]
    job.may_end["a"].set()
