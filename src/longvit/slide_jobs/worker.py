"""One worker: takes slides from the work list, one being read ahead while the model computes another.

A worker holds two canvases, never more; its reading process a third one while it hands that over. The same loop
runs in the process of the command itself (one worker) and as a process of its own: `python -m longvit.slide_jobs.worker
OUT/work/<verb> NAME INDEX`, which `supervisor` starts and which ends, letting go of its slides, when its standard
input does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.errors import InputError, is_out_of_memory
from longvit.files import write_error
from longvit.processes.interrupts import resend_swallowed_interrupts
from longvit.processes.leases import Leases, holder
from longvit.slide_jobs.job import SlideJob, load_longvit
from longvit.slide_jobs.read_process import ReadProcess
from longvit.slide_jobs.reading import Reader, ReadSettings, SlideFailedError
from longvit.slide_jobs.work_list import Taken, Taking, WorkList
from longvit.slide_jobs.worker_log import WorkerLog

if TYPE_CHECKING:
    from longvit.slides.canvas import Canvas

UNUSABLE = 2
"""Exit code of a worker that found that nothing can be done (no such model, a full disk): its log says why."""
_PATIENCE_S = 4.0


@dataclass
class _Fetched:
    """A slide whose turn in the model has come: its canvas, or what went wrong, or neither: it is finished."""

    taken: Taken
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
    hear: Callable[[str, int, int], None] | None = None,
) -> None:
    """Works until every slide of the list has ended, here or elsewhere, or until the work list is gone: whoever started
    this asks the list which of the two it was.

    `hear`: told (slide_id, tiles read, tiles in all). Raises `InputError` where results cannot be written.
    """
    with Leases() as leases, ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        taking = Taking(work_list, leases, log)

        def fetch() -> _Fetched | None:
            taken = taking.next()
            return None if taken is None else _fetch(job, taken, reader, hear)

        try:
            pending = pool.submit(fetch)
            while (fetched := pending.result()) is not None:
                pending = pool.submit(fetch)
                _finish(job, taking, fetched, log)
                del fetched  # its canvas goes before the next one is fetched
        except OSError as error:  # what concerns slides and results is told by then: the work list cannot be written
            raise write_error(work_list.folder, error) from error
        finally:
            taking.stopping.set()
            reader.stop()


def _fetch(job: SlideJob, taken: Taken, reader: Reader, hear: Callable[[str, int, int], None] | None) -> _Fetched:
    listed, begun = taken.listed, time.monotonic()
    fetched = _Fetched(taken)

    def is_wanted(identity: str) -> bool:
        fetched.digest = job.digest(identity, request)
        return not job.is_finished(listed.slide_id, fetched.digest)

    def heard(done: int, total: int) -> None:
        if hear is not None:
            hear(listed.slide_id, done, total)

    try:
        if listed.fault is not None:
            raise SlideFailedError("open", listed.fault)
        request = job.request(listed)
        fetched.canvas = reader.read(request, is_wanted, heard)
    except SlideFailedError as error:
        fetched.error = error
    except Exception as error:  # whatever it is, it is this slide's: the others go on
        fetched.error = SlideFailedError.of("read", error)
    fetched.read_s = time.monotonic() - begun
    return fetched


def _finish(job: SlideJob, taking: Taking, fetched: _Fetched, log: WorkerLog) -> None:
    taken, slide_id = fetched.taken, fetched.taken.listed.slide_id
    try:
        if fetched.error is not None:
            raise fetched.error
        if fetched.canvas is None:
            taking.ended(taken, "done" if taken.was_in_model else "skipped")
            return
        log.write("model", slide_id)
        begun = time.monotonic()
        job.finish(taken.listed, fetched.digest, fetched.canvas)
        model_s = time.monotonic() - begun
        taking.ended(taken, "done", read_s=round(fetched.read_s, 4), model_s=round(model_s, 4))
    except SlideFailedError as error:
        taking.failed(taken, error)


def build_job(facts: Any, index: int) -> SlideJob:
    """The job that run.json describes. Raises `InputError` (no such model, no such device)."""
    settings, folder = ReadSettings(**facts["read"]), Path(facts["folder"])
    kind, given = facts["job"]["kind"], facts["job"]
    if kind == "canvas":
        from longvit.slide_jobs.canvas import CanvasJob

        return CanvasJob(folder, given["side_px"], given["fit"], settings)
    if kind == "tiles":
        from longvit.slide_jobs.tiles import TilesJob

        return TilesJob.of(folder, given, settings)
    from longvit.device import pick_device, set_threads

    set_threads(facts["threads"])
    device = pick_device(facts["device"]).device
    if device.type == "cuda" and device.index is None:  # a card each, as far as they go
        import torch

        device = torch.device("cuda", index % torch.cuda.device_count())
    if kind == "features":
        from longvit.slide_jobs.features import FeaturesJob, silence_timeout
        from longvit.slide_jobs.tile_process import TileProcess

        reader = TileProcess(silence_timeout(facts["timeout_s"]), facts["threads"])
        return FeaturesJob.of(folder, given, settings, device, reader)
    from longvit.slide_jobs.embed import EmbedJob
    from longvit.slide_jobs.predict import PredictJob

    model = load_longvit(given["model"]).to(device)
    if kind == "embed":
        return EmbedJob(model, folder, settings)
    return PredictJob(model, folder, settings, pictures=given["pictures"])


def main(folder: Path, name: str, index: int) -> int:
    """A worker process; returns its exit code."""
    stop_with_parent()
    try:
        work_list = WorkList.of(folder)
        log = WorkerLog(work_list.folder, name)
    except (InputError, OSError):  # the work list was removed meanwhile: whoever started this sees that too
        return UNUSABLE
    log.write("start", **holder())
    reader = ReadProcess(work_list.facts["timeout_s"], work_list.facts["threads"])
    try:
        with resend_swallowed_interrupts(signal.SIGTERM):
            try:
                job = build_job(work_list.facts, index)
            except InputError:
                raise
            except Exception as error:
                more = "; fewer workers" if is_out_of_memory(error) else ""
                raise InputError(f"a worker cannot start: {type(error).__name__}: {error}{more}") from error
            work(job, work_list, reader, log)
        log.write("end")
        return 0
    except InputError as error:
        log.write("unusable", error=" ".join(str(error).split()))
        return UNUSABLE
    except KeyboardInterrupt:
        log.write("end")
        return 128 + signal.SIGTERM
    finally:
        reader.stop()


def stop_with_parent() -> None:
    """SIGTERM, or the end of standard input (whoever started this process is gone or wants it to end), raise
    KeyboardInterrupt in the main thread; where that sits in a long native call, the process ends soon anyway."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the command itself to hear
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command does
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
