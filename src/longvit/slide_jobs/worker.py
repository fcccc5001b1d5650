"""A worker process: `python -m longvit.slide_jobs.worker OUT/work/<verb> NAME INDEX`, started by `supervisor`.

It builds the job that run.json describes and runs the loop (`loop.work`). When its standard input ends, it releases its
slides and ends.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.errors import InputError, is_out_of_memory, one_line
from longvit.processes.child import end_with_parent
from longvit.processes.interrupts import resend_swallowed_interrupts
from longvit.processes.leases import holder
from longvit.slide_jobs.job import SlideJob, load_longvit
from longvit.slide_jobs.loop import work
from longvit.slide_jobs.read_process import ReadProcess
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.work_list import WorkList
from longvit.slide_jobs.worker_log import WorkerLog

if TYPE_CHECKING:
    import torch

UNUSABLE = 2
"""Exit code of a worker that cannot work at all (no such model, a full disk); its log holds the error."""
_GRACE_S = 4.0
"""Time to release the slides; a main thread in a long native call does not get there."""


def build_job(settings: Mapping[str, Any], index: int) -> SlideJob:
    """The job that run.json describes. Raises `InputError` (no such model, no such device)."""
    read, folder = ReadSettings(**settings["read"]), Path(settings["folder"])
    kind, job = settings["job"]["kind"], settings["job"]
    if kind == "canvas":
        from longvit.slide_jobs.canvas import CanvasJob

        return CanvasJob(folder, job["side_px"], job["fit"], read)
    if kind == "tiles":
        from longvit.slide_jobs.tiles import TilesJob

        return TilesJob.from_parameters(folder, job, read)
    if kind == "qc":
        from longvit.slide_jobs.quality import QualityJob, probe_timeout
        from longvit.slide_jobs.tile_process import TileProcess

        return QualityJob(folder, read, TileProcess(probe_timeout(settings["timeout_s"]), settings["threads"]))
    if kind == "fetch" and job["features"] is None:
        return _fetch_job(settings, None)
    from longvit.device import pick_device, set_threads

    set_threads(settings["threads"])
    device = pick_device(settings["device"]).device
    if device.type == "cuda" and device.index is None:  # worker i gets card i, modulo their number
        import torch

        device = torch.device("cuda", index % torch.cuda.device_count())
    if kind == "fetch":
        return _fetch_job(settings, device)
    if kind == "features":
        from longvit.slide_jobs.features import FeaturesJob, silence_timeout
        from longvit.slide_jobs.tile_process import TileProcess

        reader = TileProcess(silence_timeout(settings["timeout_s"]), settings["threads"])
        return FeaturesJob.from_parameters(folder, job, read, device, reader)
    from longvit.heatmaps.formats import HeatMapSettings
    from longvit.slide_jobs.embed import EmbedJob
    from longvit.slide_jobs.predict import PredictJob

    model = load_longvit(job["model"]).to(device)
    if kind == "embed":
        return EmbedJob(model, folder, read)
    heat_maps = HeatMapSettings(tuple(job["heatmaps"]), job["top_k"])
    return PredictJob(model, folder, read, pictures=job["pictures"], heat_maps=heat_maps, output=job.get("output"))


def _fetch_job(settings: Mapping[str, Any], device: torch.device | None) -> SlideJob:
    from longvit.slide_jobs.fetch import FetchJob

    return FetchJob.from_parameters(
        Path(settings["folder"]),
        settings["job"],
        ReadSettings(**settings["read"]),
        device,
        timeout_s=settings["timeout_s"],
        threads=settings["threads"],
    )


def main(folder: Path, name: str, index: int) -> int:
    """A worker process; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_parent(_GRACE_S)
    try:
        work_list = WorkList.read(folder)
        log = WorkerLog(work_list.folder, name)
    except (InputError, OSError):  # the work list was removed: the supervisor finds that too
        return UNUSABLE
    log.write("start", **holder())
    reader = ReadProcess(work_list.settings["timeout_s"], work_list.settings["threads"])
    job: SlideJob | None = None
    try:
        with resend_swallowed_interrupts(signal.SIGTERM):
            try:
                job = build_job(work_list.settings, index)
            except InputError:
                raise
            except Exception as error:
                more = "; fewer workers" if is_out_of_memory(error) else ""
                raise InputError(f"a worker cannot start: {type(error).__name__}: {error}{more}") from error
            work(job, work_list, reader, log)
        log.write("end")
        return 0
    except InputError as error:
        log.write("unusable", error=one_line(error))
        return UNUSABLE
    except KeyboardInterrupt:
        log.write("end")
        return 128 + signal.SIGTERM
    finally:
        reader.stop()
        if job is not None:
            job.close()


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command does
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    except KeyboardInterrupt:  # the run ended while this worker was starting
        sys.exit(128 + signal.SIGTERM)
