"""A run over many slides: in this process, in several processes of this machine, or on a cluster.

The state of a run is in its work list (`work_list`), for all three. A slide that fails is a row of `problems.csv`. So
is a slide of the list without an end, or without its result: the run is judged by its list and files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.annotations.area_file import check_annotations
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import file_stem, make_folder, remove_dead_parts_below, write_error
from longvit.processes.cpu_count import cpu_count
from longvit.processes.leases import Lease, Leases, holder, read_lease
from longvit.progress import Progress
from longvit.slide_jobs.job import SlideJob, load_longvit, read_record
from longvit.slide_jobs.loop import work
from longvit.slide_jobs.read_process import ReadProcess
from longvit.slide_jobs.reading import Reader, ReadSettings, ThreadReader
from longvit.slide_jobs.work_list import WorkList
from longvit.slide_jobs.worker_log import ENDS, LogTail, WorkerLog

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT

_POLL_S = 0.2
_VISIBLE_WITHIN_S = 70.0
"""Time until files that a cluster node wrote are visible here: a network folder caches attributes for a minute."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run over many slides: workers, retries, time limit, device.

    One worker that reads in a thread (`reads_apart` unset) has no time limit. The last bits of a result may depend on
    `threads`.

    >>> import longvit
    >>> longvit.RunSettings(workers=4, retries=1).is_here
    False
    """

    workers: int = 1
    """Worker processes, each with its own model (with --cluster: on each node)."""
    cluster: str | None = None
    """Address of a Dask scheduler, e.g. tcp://host:8786, whose workers on any number of machines process the slides.
    They must see the same files. Needs `pip install longvit[cluster]`."""
    retries: int = 2
    """Retries of a slide after a failure that may be temporary."""
    timeout_s: float | None = 1800.0
    """Seconds after which a slide that is still being read is given up; with several workers, also a slide that is
    still in the model. 0: never."""
    reads_apart: bool = False
    """Read in a separate process, which may crash or hang. Several workers always do."""
    device: str = "auto"
    """auto, cpu, cuda (or cuda:1) or mps. auto uses a GPU if there is one; cuda distributes workers over all GPUs."""
    threads: int | None = None
    """CPU threads of the model, in each worker. Default: one per core, divided by the workers."""

    def __post_init__(self) -> None:
        if self.timeout_s == 0:
            object.__setattr__(self, "timeout_s", None)
        for name, value, least in (("workers", self.workers, 1), ("retries", self.retries, 0)):
            if value < least:
                raise InputError(f"--{name} {value}: at least {least}")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise InputError(f"--timeout-s {self.timeout_s:g}: more than 0")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads {self.threads}: at least 1")

    @property
    def is_here(self) -> bool:
        """True where the calling process itself is the only worker."""
        return self.workers == 1 and self.cluster is None


@dataclass(frozen=True)
class SlideJobsResult:
    """Result of a run over many slides.

    >>> import longvit
    >>> result = longvit.canvas_slides(longvit.find_slides(["examples/*.svs"]), "canvases_64", side_px=64)
    >>> len(result.done) + len(result.skipped), result.left_out
    (1, ())
    """

    done: tuple[str, ...]
    """Slides computed in this run."""
    skipped: tuple[str, ...]
    """Slides finished by an earlier run, with the same content and settings."""
    problems: tuple[Problem, ...]
    """Slides without a result, and (stage `tiles`) those with unreadable tiles that were filled."""
    records: tuple[dict[str, Any], ...] = field(repr=False)
    """Records of all finished slides, in the order of the list."""

    @property
    def left_out(self) -> tuple[Problem, ...]:
        """Slides without a result."""
        return tuple(problem for problem in self.problems if problem.is_left_out)


@dataclass(frozen=True)
class JobSpec:
    """Description of a job in run.json, from which workers build it."""

    kind: str
    """embed, predict, canvas, tiles, features, fetch or qc."""
    folder: Path
    """Folder of the records."""
    arguments: dict[str, Any]
    """Arguments of the job: model, `pictures`, `heatmaps`; side_px and fit; encoder, settings of tiles and tissue."""
    files: Callable[[Mapping[str, Any]], Sequence[Path]] = lambda _: ()
    """Files of a slide's result, beside its record, which names them."""


def run(
    build: Callable[[], SlideJob],
    job: JobSpec,
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    read: ReadSettings | None = None,
    settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Does a job for every slide; writes `problems.csv` to `out_dir` where a slide failed.

    `build` makes the job where this process is the worker. Raises `InputError` where results cannot be written (a full
    disk, no permission), where another run is active in `out_dir`, and where a newer run has replaced this one: its
    tables stay.
    """
    out_dir, read, settings = make_folder(out_dir), read or ReadSettings(), settings or RunSettings()
    check_annotations(read, [slide.slide_id for slide in slides])
    make_folder(job.folder)
    with Leases() as leases:
        lease_path = make_folder(out_dir / "work") / f"{job.kind}.claim"
        try:
            lease = leases.acquire_or_wait(lease_path)
        except OSError as error:
            raise write_error(lease_path, error) from error
        if lease is None:
            other = read_lease(lease_path)
            process = f"process {other.get('process')} on {str(other.get('host', '?')).split()[0]}"
            since = other.get("since", "a moment ago")
            raise InputError(
                f"{out_dir}: {process} has been working there since {since}; wait for it, or choose another --out"
            )
        run_json = {
            "job": {"kind": job.kind, **job.arguments},
            "folder": str(job.folder.absolute()),
            "read": asdict(read) | {"regions": None if read.regions is None else str(Path(read.regions).absolute())},
            "threads": settings.threads or max(1, cpu_count() // settings.workers),
            "device": settings.device,
            "timeout_s": settings.timeout_s,
            "token": lease.token,
            **holder(),
        }
        remove_dead_parts_below([out_dir, job.folder.parent, job.folder])
        work_list = WorkList.begin(out_dir, job.kind, slides, retries=settings.retries, settings=run_json)
        report = _Report(job, slides, out_dir)
        with Progress(job.kind, len(slides), unit="slides") as report.progress:
            if settings.is_here:
                _work(build(), work_list, report, settings)
            else:
                _supervise(work_list, report, settings, leases, lease)
        if work_list.is_replaced():  # while this process was stopped, for example
            raise InputError(
                f"{out_dir}: a newer run replaced this one, which had no heartbeat for a minute; "
                f"its tables are kept; `longvit status {out_dir}` shows it"
            )
        return report.result(work_list, job.files)


def model_for(model: LongViT | str | Path, settings: RunSettings) -> LongViT:
    """A model, or the model of a folder on the device of the settings."""
    if not isinstance(model, str | Path):
        return model
    from longvit.device import pick_device, set_threads

    set_threads(settings.threads)
    return load_longvit(model).to(pick_device(settings.device).device)


def model_folder(model: LongViT | str | Path, out_dir: Path, settings: RunSettings) -> str:
    """Folder from which workers load the model; a model without a folder is saved for them."""
    if isinstance(model, str | Path):
        return str(Path(model).absolute()) if Path(model).exists() else str(model)
    if settings.is_here:
        return ""
    from longvit.model.pretrained import save_pretrained

    return str(save_pretrained(model, out_dir / "work" / "model").absolute())


def _work(job: SlideJob, work_list: WorkList, report: _Report, settings: RunSettings) -> None:
    threads = settings.threads
    reader: Reader = ReadProcess(settings.timeout_s, threads) if settings.reads_apart else ThreadReader(threads)
    try:
        log = WorkerLog(work_list.folder, f"here-{os.getpid()}", report.handle)
        log.write("start", **holder())
    except FileNotFoundError:  # the folder is removed already
        reader.stop()
        return
    try:
        work(job, work_list, reader, log, on_progress=report.show_reading)
    finally:
        log.write("end")
        log.close()


def _supervise(work_list: WorkList, report: _Report, settings: RunSettings, leases: Leases, lease: Lease) -> None:
    """Keeps workers alive and reports their logs, until every slide has ended or no worker is left."""
    from longvit.slide_jobs.supervisor import LocalWorkers, Workers

    workers: Workers
    if settings.cluster is None:
        workers = LocalWorkers(work_list, settings.workers, log=report.log)
    else:
        from longvit.slide_jobs.cluster import ClusterWorkers

        workers = ClusterWorkers(work_list, settings.cluster, settings.workers, lease.path, log=report.log)
    tail = LogTail(work_list.folder)
    deadline: float | None = None
    try:
        workers.start()
        while True:
            is_alive = workers.check()
            for _, line in tail.new_lines():
                report.handle(line)
            if not is_alive:
                report.handle_ends(work_list)
                now = time.monotonic()
                deadline = deadline or now + (0.0 if settings.cluster is None else _VISIBLE_WITHIN_S)
                if now >= deadline or work_list.is_gone():
                    return
            if report.is_complete:
                return
            time.sleep(_POLL_S)
    finally:
        leases.release(lease)  # workers on other machines end when it is gone
        workers.end()


class _Report:
    """Progress and result of a run, from the events of its workers; each problem is logged once."""

    def __init__(self, job: JobSpec, slides: Sequence[ListedSlide], out_dir: Path) -> None:
        self._folder, self._problems_csv = job.folder, out_dir / PROBLEMS_CSV
        self._slides = {slide.slide_id: slide for slide in slides}
        self._ends: dict[str, str] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._problems: dict[str, list[Problem]] = {}
        self.progress: Progress
        write_problems(self._problems_csv, ())

    @property
    def is_complete(self) -> bool:
        return len(self._ends) == len(self._slides)

    def log(self, text: str) -> None:
        self.progress.log(text)

    def show_reading(self, slide_id: str, done: int, total: int) -> None:
        self.progress.advance(0, note=f"{slide_id}: {100 * done // max(1, total)} % read")

    def handle(self, line: dict[str, Any]) -> None:
        """Handles a line of a worker's log. Raises `InputError` where a worker cannot work at all."""
        event, slide_id = line["event"], line.get("slide", "")
        if event == "unusable":
            raise InputError(str(line.get("error")))
        if event == "again":
            self.log(f"retry: {slide_id}: {line.get('stage')}: {line.get('error')}")
        if event not in ENDS or slide_id in self._ends:
            return
        self._ends[slide_id] = event
        if event == "failed":
            self._add_problem(slide_id, str(line.get("stage")), str(line.get("error")))
        else:
            # The slide's file may have moved since.
            record = read_record(self._record_path(slide_id)) | {"path": str(self._slides[slide_id].path)}
            self._records[slide_id] = record
            if bad := record.get("n_bad_tiles"):
                tiles = record.get("n_file_tiles", record["canvas"]["tiles"])
                text = f"{bad} of {tiles} tiles cannot be read; filled with background"
                self._add_problem(slide_id, "tiles", f"{record['path']}: {text}")
            elif problem := record.get("picture_problem"):
                self._add_problem(slide_id, "picture", str(problem))
            if problem := record.get("heatmap_problem"):
                self._add_problem(slide_id, "heatmap", str(problem))
        self.progress.advance(note=slide_id)

    def handle_ends(self, work_list: WorkList) -> None:
        """Handles the ends of slides whose worker died before it could log them."""
        for slide_id in self._slides.keys() - self._ends.keys():
            content = read_lease(work_list.slide_file(slide_id))
            if content.get("settled"):
                self.handle(content | {"event": content["end"], "slide": slide_id})

    def result(self, work_list: WorkList, files: Callable[[Mapping[str, Any]], Sequence[Path]]) -> SlideJobsResult:
        """Result by the list: a slide without an end, or without the files of its result, is a problem."""
        self.handle_ends(work_list)
        for slide_id, listed in self._slides.items():
            if slide_id not in self._ends:
                reason = work_list.why_unended(slide_id)
            elif self._ends[slide_id] == "failed" or self._is_complete(slide_id, files):
                continue
            else:
                reason = f"its result in {self._folder} was removed during the run; rerun the command"
            self._ends[slide_id] = "failed"
            self._records.pop(slide_id, None)
            self._problems.pop(slide_id, None)
            self._add_problem(slide_id, "end", f"{listed.path}: {reason}")
        order = [slide_id for slide_id in self._slides if slide_id in self._ends]
        problems = [problem for slide_id in order for problem in self._problems.get(slide_id, ())]
        write_problems(self._problems_csv, problems)
        return SlideJobsResult(
            done=tuple(slide_id for slide_id in order if self._ends[slide_id] == "done"),
            skipped=tuple(slide_id for slide_id in order if self._ends[slide_id] == "skipped"),
            problems=tuple(problems),
            records=tuple(self._records[slide_id] for slide_id in order if slide_id in self._records),
        )

    def _record_path(self, slide_id: str) -> Path:
        return self._folder / f"{file_stem(slide_id)}.json"

    def _is_complete(self, slide_id: str, files: Callable[[Mapping[str, Any]], Sequence[Path]]) -> bool:
        record = self._records[slide_id]
        if "digest" not in record or not self._record_path(slide_id).exists():
            return False
        return all(path.exists() for path in files(record))

    def _add_problem(self, slide_id: str, stage: str, error: str) -> None:
        self._problems.setdefault(slide_id, []).append(Problem(slide_id, stage, error))
        self.log(f"problem: {slide_id}: {stage}: {error}")
        write_problems(self._problems_csv, [problem for problems in self._problems.values() for problem in problems])
