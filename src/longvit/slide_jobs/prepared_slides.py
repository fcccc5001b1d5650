"""Slides of a work list that are prepared (downloaded) in threads, ahead of the reader.

Each thread takes a slide, prepares it and waits until the reader takes it. So a worker holds at most one slide per
thread besides those that it reads and computes.

A thread starts when the one before it has its first slide. The first slide thus has the worker's whole network, and the
reader starts early; later slides become ready one after another instead of several at once.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from longvit.errors import InputError
from longvit.slide_jobs.job import SlideJob
from longvit.slide_jobs.reading import SlideFailedError
from longvit.slide_jobs.work_list import SlideQueue, TakenSlide

_POLL_S = 0.5


@dataclass(eq=False)
class ReadySlide:
    """A slide after its preparation."""

    taken: TakenSlide
    is_wanted: bool = True
    """False: an earlier run wrote its result."""
    error: SlideFailedError | None = None


class PreparedSlides:
    """Slides of a queue, each prepared by the job; those that are ready first come first."""

    def __init__(self, queue: SlideQueue, job: SlideJob) -> None:
        self._queue, self._job = queue, job
        self._ready = deque[ReadySlide]()
        self._changed = threading.Condition()
        self._taking = threading.Lock()
        self._started = self._running = 0
        self._fatal: Exception | None = None
        self._start_next()

    def next(self) -> ReadySlide | None:
        """The next slide; None after the last one. Raises `InputError` where nothing can be written."""
        with self._changed:
            while not self._ready:
                if self._fatal is not None:
                    raise self._fatal
                if not self._running or self._queue.stopping.is_set():
                    return None
                self._changed.wait(_POLL_S)
            ready = self._ready.popleft()
            self._changed.notify_all()
            return ready

    def stop(self) -> None:
        """Ends the waiting of all threads; nothing can be taken afterwards."""
        self._queue.stopping.set()
        with self._changed:
            self._changed.notify_all()

    def _start_next(self) -> None:
        """Starts the next thread, where one is left to start."""
        with self._changed:
            if self._started == self._job.ahead:
                return
            number, self._started, self._running = self._started, self._started + 1, self._running + 1
        # A daemon: a thread that waits for a silent server must not keep the process.
        threading.Thread(target=self._prepare, name=f"prepare-{number}", daemon=True).start()

    def _prepare(self) -> None:
        is_first = True
        try:
            while True:
                with self._taking:
                    taken = None if self._queue.stopping.is_set() else self._queue.next()
                if taken is None:
                    return
                ready = self._prepared(taken)
                if is_first:
                    self._start_next()
                    is_first = False
                with self._changed:
                    self._ready.append(ready)
                    self._changed.notify_all()
                    while ready in self._ready and not self._queue.stopping.is_set():
                        self._changed.wait(_POLL_S)
        except Exception as error:
            self._fatal = self._fatal or error
            self._queue.stopping.set()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _prepared(self, taken: TakenSlide) -> ReadySlide:
        try:
            if taken.listed.fault is not None:
                raise SlideFailedError("open", taken.listed.fault)
            return ReadySlide(taken, self._job.prepare(taken.listed, self._queue.stopping))
        except SlideFailedError as error:
            return ReadySlide(taken, error=error)
        except InputError:
            raise
        except Exception as error:  # any error fails this slide only
            return ReadySlide(taken, error=SlideFailedError.from_error("fetch", error))
