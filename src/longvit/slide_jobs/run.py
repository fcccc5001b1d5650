"""A run over many slides, from its work list to its tables: here, in processes of this machine, or on a cluster.

Whoever does the work, the work list says what is done (`work_list`), and one bad slide costs one row of `problems.csv`.
The end of a run is judged by its list, not by what was reported: a slide of the list that has no end, or whose result
is not there, is a row too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import file_stem, make_folder, remove_dead_parts_below, write_error
from longvit.processes.leases import Lease, Leases, holder, read_lease
from longvit.progress import Progress
from longvit.slide_jobs.job import SlideJob, load_longvit, read_record
from longvit.slide_jobs.reading import Reader, ReadSettings, ThreadReader
from longvit.slide_jobs.work_list import WorkList
from longvit.slide_jobs.worker_log import ENDS, LogTail, WorkerLog

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT

_LOOK_EVERY_S = 0.2
_SEEN_WITHIN_S = 70.0
"""What a node of a cluster has written is seen here at the latest so long after: a network folder keeps what it knows
of its files for a minute."""


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
        """Whether the calling process itself works."""
        return self.workers == 1 and self.cluster is None


@dataclass(frozen=True)
class SlideJobsResult:
    """What a run over many slides did."""

    done: tuple[str, ...]
    """Slides computed in this run."""
    skipped: tuple[str, ...]
    """Slides that an earlier run had finished, content and settings unchanged."""
    problems: tuple[Problem, ...]
    """Slides without a result, and (stage `tiles`) those with holes that were filled."""
    records: tuple[dict[str, Any], ...] = field(repr=False)
    """The records of all finished slides, in the order of the list."""

    @property
    def left_out(self) -> tuple[Problem, ...]:
        """The slides that have no result."""
        return tuple(problem for problem in self.problems if problem.is_left_out)


@dataclass(frozen=True)
class JobSpec:
    """A job as run.json describes it to workers: what they build it from."""

    kind: str
    """embed, predict, canvas, tiles or features."""
    folder: Path
    """Where the records go."""
    facts: dict[str, Any]
    """What the job is made of there: model and pictures; side_px and fit; encoder, settings of tiles and tissue."""
    files: Callable[[Mapping[str, Any]], Sequence[Path]] = lambda _: ()
    """What a slide's result consists of beside its record, which names it."""


def run(
    build: Callable[[], SlideJob],
    job: JobSpec,
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    read: ReadSettings | None = None,
    settings: RunSettings | None = None,
) -> SlideJobsResult:
    """Does a job for every slide; `out_dir` gets `problems.csv` where a slide failed.

    `build` makes the job where this process works itself. Raises `InputError` where the results cannot be written (a
    full disk, no permission): going on would be in vain; and where another run is at work in `out_dir`.
    """
    out_dir, read, settings = make_folder(out_dir), read or ReadSettings(), settings or RunSettings()
    make_folder(job.folder)
    with Leases() as leases:
        lease_path = make_folder(out_dir / "work") / f"{job.kind}.claim"
        try:
            lease = leases.acquire_or_wait(lease_path)
        except OSError as error:
            raise write_error(lease_path, error) from error
        if lease is None:
            other = read_lease(lease_path)
            who = f"process {other.get('process')} on {str(other.get('host', '?')).split()[0]}"
            since = other.get("since", "a moment ago")
            raise InputError(f"{out_dir}: {who} is at work there since {since}; wait for it, or choose another --out")
        facts = {
            "job": {"kind": job.kind, **job.facts},
            "folder": str(job.folder.absolute()),
            "read": asdict(read),
            "threads": settings.threads or max(1, _cores() // settings.workers),
            "device": settings.device,
            "timeout_s": settings.timeout_s,
            "token": lease.token,
            **holder(),
        }
        remove_dead_parts_below([out_dir, job.folder.parent, job.folder])
        work_list = WorkList.begin(out_dir, job.kind, slides, retries=settings.retries, facts=facts)
        report = _Report(job, slides, out_dir)
        with Progress(job.kind, len(slides), unit="slides") as report.progress:
            if settings.is_here:
                _work_here(build(), work_list, report, settings)
            else:
                _watch(work_list, report, settings, lease)
        return report.result(work_list, job.files)


def model_for(model: LongViT | str | Path, settings: RunSettings) -> LongViT:
    """A model, or the model of a folder on the device that the settings name."""
    if not isinstance(model, str | Path):
        return model
    from longvit.device import pick_device, set_threads

    set_threads(settings.threads)
    return load_longvit(model).to(pick_device(settings.device).device)


def model_folder(model: LongViT | str | Path, out_dir: Path, settings: RunSettings) -> str:
    """Where workers find the model; one that lies in no folder is saved for them."""
    if isinstance(model, str | Path):
        return str(Path(model).absolute()) if Path(model).exists() else str(model)
    if settings.is_here:
        return ""
    from longvit.model.pretrained import save_pretrained

    return str(save_pretrained(model, out_dir / "work" / "model").absolute())


def _work_here(job: SlideJob, work_list: WorkList, report: _Report, settings: RunSettings) -> None:
    from longvit.slide_jobs.read_process import ReadProcess
    from longvit.slide_jobs.worker import work

    is_apart, threads = settings.reads_apart, settings.threads
    reader: Reader = ReadProcess(settings.timeout_s, threads) if is_apart else ThreadReader(threads)
    try:
        log = WorkerLog(work_list.folder, f"here-{os.getpid()}", report.hear)
        log.write("start", **holder())
    except FileNotFoundError:  # the folder is gone already
        reader.stop()
        return
    try:
        work(job, work_list, reader, log, hear=report.hear_reading)
    finally:
        log.write("end")
        log.close()


def _watch(work_list: WorkList, report: _Report, settings: RunSettings, lease: Lease) -> None:
    """Until every slide has ended, or nobody is left to work on them: workers are kept alive, what they say is passed
    on."""
    from longvit.slide_jobs.supervisor import LocalWorkers, Workers

    workers: Workers
    if settings.cluster is None:
        workers = LocalWorkers(work_list, settings.workers, log=report.log)
    else:
        from longvit.slide_jobs.cluster import ClusterWorkers

        workers = ClusterWorkers(work_list, settings.cluster, settings.workers, lease.path, log=report.log)
    tail = LogTail(work_list.folder)
    seen_by: float | None = None
    try:
        workers.start()
        while True:
            is_alive = workers.check()
            for _, line in tail.new_lines():
                report.hear(line)
            if not is_alive:
                report.hear_ends(work_list)
                now = time.monotonic()
                seen_by = seen_by or now + (0.0 if settings.cluster is None else _SEEN_WITHIN_S)
                if now >= seen_by or work_list.is_gone():
                    return
            if report.is_complete:
                return
            time.sleep(_LOOK_EVERY_S)
    finally:
        lease.path.unlink(missing_ok=True)  # workers on other machines see by it that the run is over
        workers.end()


class _Report:
    """Hears what workers did; tells the user, each problem once, and puts the result together."""

    def __init__(self, job: JobSpec, slides: Sequence[ListedSlide], out_dir: Path) -> None:
        self._folder, self._problems_csv = job.folder, out_dir / PROBLEMS_CSV
        self._slides = {slide.slide_id: slide for slide in slides}
        self._ends: dict[str, str] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._problems: dict[str, Problem] = {}
        self.progress: Progress
        write_problems(self._problems_csv, ())

    @property
    def is_complete(self) -> bool:
        return len(self._ends) == len(self._slides)

    def log(self, text: str) -> None:
        self.progress.log(text)

    def hear_reading(self, slide_id: str, done: int, total: int) -> None:
        self.progress.advance(0, note=f"{slide_id}: {100 * done // max(1, total)} % read")

    def hear(self, line: dict[str, Any]) -> None:
        """A line of a worker's log. Raises `InputError` where a worker found that nothing can be done."""
        event, slide_id = line["event"], line.get("slide", "")
        if event == "unusable":
            raise InputError(str(line.get("error")))
        if event == "again":
            self.log(f"again: {slide_id}: {line.get('stage')}: {line.get('error')}")
        if event not in ENDS or slide_id in self._ends:
            return
        self._ends[slide_id] = event
        if event == "failed":
            self._add_problem(slide_id, str(line.get("stage")), str(line.get("error")))
        else:
            # It may have moved since.
            record = read_record(self._record_path(slide_id)) | {"path": str(self._slides[slide_id].path)}
            self._records[slide_id] = record
            if bad := record.get("n_bad_tiles"):
                of = record.get("n_file_tiles", record["canvas"]["tiles"])
                text = f"{bad} of {of} tiles cannot be read; filled with background"
                self._add_problem(slide_id, "tiles", f"{record['path']}: {text}")
            elif problem := record.get("picture_problem"):
                self._add_problem(slide_id, "picture", str(problem))
        self.progress.advance(note=slide_id)

    def hear_ends(self, work_list: WorkList) -> None:
        """Of the slides whose worker died before it could say how they ended."""
        for slide_id in self._slides.keys() - self._ends.keys():
            content = read_lease(work_list.slide_file(slide_id))
            if content.get("settled"):
                self.hear(content | {"event": content["end"], "slide": slide_id})

    def result(self, work_list: WorkList, files: Callable[[Mapping[str, Any]], Sequence[Path]]) -> SlideJobsResult:
        """Judged by the list: each of its slides has ended and its result is there, or it is a problem."""
        self.hear_ends(work_list)
        for slide_id, listed in self._slides.items():
            if slide_id not in self._ends:
                why = work_list.why_unended(slide_id)
            elif self._ends[slide_id] == "failed" or self._is_there(slide_id, files):
                continue
            else:
                why = f"its result in {self._folder} was removed while the run was at work; give the same command again"
            self._ends[slide_id] = "failed"
            self._records.pop(slide_id, None)
            self._add_problem(slide_id, "end", f"{listed.path}: {why}")
        order = [slide_id for slide_id in self._slides if slide_id in self._ends]
        problems = [self._problems[slide_id] for slide_id in order if slide_id in self._problems]
        write_problems(self._problems_csv, problems)
        return SlideJobsResult(
            done=tuple(slide_id for slide_id in order if self._ends[slide_id] == "done"),
            skipped=tuple(slide_id for slide_id in order if self._ends[slide_id] == "skipped"),
            problems=tuple(problems),
            records=tuple(self._records[slide_id] for slide_id in order if slide_id in self._records),
        )

    def _record_path(self, slide_id: str) -> Path:
        return self._folder / f"{file_stem(slide_id)}.json"

    def _is_there(self, slide_id: str, files: Callable[[Mapping[str, Any]], Sequence[Path]]) -> bool:
        record = self._records[slide_id]
        if "digest" not in record or not self._record_path(slide_id).exists():
            return False
        return all(path.exists() for path in files(record))

    def _add_problem(self, slide_id: str, stage: str, error: str) -> None:
        self._problems[slide_id] = Problem(slide_id, stage, error)
        self.log(f"problem: {slide_id}: {stage}: {error}")
        write_problems(self._problems_csv, list(self._problems.values()))


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
