"""The loop of one worker: takes slides from the work list and reads the next one while the model computes.

A worker holds two canvases at most, and its reading process a third one while it sends that. One worker runs the loop
in the process of the command; several run it in separate processes (`worker`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longvit.files import write_error
from longvit.processes.leases import Leases
from longvit.slide_jobs.job import SlideJob
from longvit.slide_jobs.prepared_slides import PreparedSlides
from longvit.slide_jobs.reading import Reader, SlideFailedError
from longvit.slide_jobs.work_list import SlideQueue, TakenSlide, WorkList
from longvit.slide_jobs.worker_log import WorkerLog

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas

OnSlideProgress = Callable[[str, int, int], None]
"""Called with (slide_id, tiles read, tiles in all)."""


@dataclass
class _ReadSlide:
    """A slide that was read: its canvas, or an error, or neither where its result exists already."""

    taken: TakenSlide
    digest: str = ""
    canvas: Canvas | None = None
    error: SlideFailedError | None = None
    read_s: float = 0.0


def work(
    job: SlideJob,
    work_list: WorkList,
    reader: Reader,
    log: WorkerLog,
    *,
    on_progress: OnSlideProgress | None = None,
) -> None:
    """Works until every slide of the list has ended, here or elsewhere, or until the work list is removed.

    The work list tells which of the two it was. Raises `InputError` where results cannot be written.
    """
    with Leases() as leases, ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        queue = SlideQueue(work_list, leases, log)
        prepared = PreparedSlides(queue, job) if job.ahead else None

        def read_next() -> _ReadSlide | None:
            if prepared is None:
                taken = queue.next()
                return None if taken is None else _read(job, taken, reader, on_progress)
            ready = prepared.next()
            if ready is None or ready.error is not None or not ready.is_wanted:
                return None if ready is None else _ReadSlide(ready.taken, error=ready.error)
            return _read(job, ready.taken, reader, on_progress)

        try:
            pending = pool.submit(read_next)
            while (slide := pending.result()) is not None:
                pending = pool.submit(read_next)
                _finish(job, queue, slide, log)
                del slide  # frees its canvas before the next one arrives
        except OSError as error:  # errors of slides and results are handled by now: the work list cannot be written
            raise write_error(work_list.folder, error) from error
        finally:
            queue.stopping.set()
            reader.stop()
            if prepared is not None:
                prepared.stop()


def _read(job: SlideJob, taken: TakenSlide, reader: Reader, on_progress: OnSlideProgress | None) -> _ReadSlide:
    listed, begun = taken.listed, time.monotonic()
    slide = _ReadSlide(taken)

    def is_wanted(identity: str) -> bool:
        slide.digest = job.digest(identity, request)
        return not job.is_finished(listed.slide_id, slide.digest)

    def on_tiles(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(listed.slide_id, done, total)

    try:
        if listed.fault is not None:
            raise SlideFailedError("open", listed.fault)
        request = job.request(listed)
        slide.canvas = reader.read(request, is_wanted, on_tiles)
    except SlideFailedError as error:
        slide.error = error
    except Exception as error:  # any error fails this slide only
        slide.error = SlideFailedError.from_error("read", error)
    slide.read_s = time.monotonic() - begun
    return slide


def _finish(job: SlideJob, queue: SlideQueue, slide: _ReadSlide, log: WorkerLog) -> None:
    taken, seconds, error = slide.taken, None, None
    try:
        seconds = _compute(job, slide, log)
    except SlideFailedError as failed:
        error = failed
    finally:
        job.release(taken.listed)
    if error is not None:
        queue.failed(taken, error)
    elif seconds is None:
        queue.ended(taken, "done" if taken.was_in_model else "skipped")
    else:
        queue.ended(taken, "done", **seconds)


def _compute(job: SlideJob, slide: _ReadSlide, log: WorkerLog) -> dict[str, float] | None:
    """Seconds of reading and of the model; None where the result exists already. Raises `SlideFailedError`."""
    if slide.error is not None:
        raise slide.error
    if slide.canvas is None:
        return None
    log.write("model", slide.taken.listed.slide_id)
    begun, job.read_s = time.monotonic(), slide.read_s
    job.finish(slide.taken.listed, slide.digest, slide.canvas)
    return {"read_s": round(slide.read_s, 4), "model_s": round(time.monotonic() - begun, 4)}
