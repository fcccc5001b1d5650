"""Many slides in one process: a work list, resume, and one bad slide costs one row of `problems.csv`.

A slide is done when its record `<slide_id>.json` stands in the output folder (written last, atomically). The
record carries a digest of all that the result rests on: the slide's content, the weights, the settings. Started
again, a run skips the slides whose digest is unchanged, so a kill at any instant loses at most the slide in work.

While the model computes one slide the next one is decoded in a thread: two canvases are held, never more.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longvit import __version__
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT
    from longvit.slides.canvas import Canvas
    from longvit.slides.reader import Slide

Stage = Literal["open", "read", "model"]


@dataclass(frozen=True)
class BatchResult:
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
class ReadSettings:
    """How slides are read."""

    mpp: float | None = None
    """µm per pixel at level 0, instead of what the files say (a CSV's own column goes first)."""
    reader: Literal["auto", "openslide", "tiff"] = "auto"
    """Which reader decodes; auto picks per file and says which in the record."""
    max_bad_tiles: int | None = None
    """A slide with more unreadable tiles than this counts as a problem; default: they are filled and counted."""


class SlideFailedError(Exception):
    """One slide failed at a named stage; the run goes on."""

    def __init__(self, stage: Stage, error: BaseException) -> None:
        text = " ".join(str(error).split()) or "no further word"
        super().__init__(text if isinstance(error, InputError) else f"{type(error).__name__}: {text}")
        self.stage = stage


@dataclass(frozen=True)
class Reading:
    """A slide that was opened, and its canvas unless an earlier run finished it."""

    slide: Slide
    digest: str
    canvas: Canvas | None


class SlideJob(ABC):
    """What is done with every slide of a list. `read` may run in another thread than `finish`."""

    verb = "work on"

    def __init__(self, model: LongViT, folder: str | Path, settings: ReadSettings | None = None) -> None:
        self.model = model.eval()
        self.folder = Path(folder)
        self.settings = settings or ReadSettings()
        self.side_px, self.fit = model.config.image_px, model.config.fit
        self.model_digest = model_digest(model)
        self.stopping = threading.Event()
        self.progress: Progress | None = None

    @abstractmethod
    def compute(self, listed: ListedSlide, reading: Reading, canvas: Canvas) -> dict[str, Any]:
        """The model's part; writes what stands beside the record and returns what the record says of it.

        An `InputError` says that nothing can be written; any other error is this slide's own.
        """

    def record_path(self, slide_id: str) -> Path:
        """The file that says that a slide is done."""
        return self.folder / f"{slide_id}.json"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """Whether an earlier run wrote this very result."""
        return read_record(self.record_path(slide_id)).get("digest") == digest

    def read(self, listed: ListedSlide) -> Reading:
        """Opens a slide and reads its canvas, unless it is finished. Raises `SlideFailedError`."""
        from longvit.slides.reader import open_slide

        mpp = self.settings.mpp if listed.mpp is None else listed.mpp
        try:
            slide = open_slide(listed.path, mpp=mpp, reader=self.settings.reader)
            digest = digest_of(
                verb=self.verb,
                slide=slide.identity(),
                model=self.model_digest,
                side_px=self.side_px,
                fit=self.fit,
                mpp=mpp,
                reader=self.settings.reader,
                max_bad_tiles=self.settings.max_bad_tiles,
            )
        except Exception as error:
            raise SlideFailedError("open", error) from error
        if self.is_finished(listed.slide_id, digest):
            return Reading(slide, digest, None)

        def between_strips(done: int, total: int) -> None:
            if self.stopping.is_set():
                raise InterruptedError("stopped")
            if self.progress is not None:
                self.progress.advance(0, note=f"{listed.slide_id}: {100 * done // max(1, total)} % read")

        try:
            canvas = slide.canvas(
                self.side_px, self.fit, progress=between_strips, max_bad_tiles=self.settings.max_bad_tiles
            )
        except Exception as error:
            slide.close()
            raise SlideFailedError("read", error) from error
        return Reading(slide, digest, canvas)

    def finish(self, listed: ListedSlide, reading: Reading) -> dict[str, Any]:
        """Computes, writes, and returns the record. Raises `SlideFailedError`, or `InputError` if it cannot write."""
        assert reading.canvas is not None
        try:
            extra = self.compute(listed, reading, reading.canvas)
        except InputError:
            raise
        except Exception as error:
            raise SlideFailedError("model", error) from error
        record = self._provenance(listed, reading, reading.canvas) | extra
        write_text(self.record_path(listed.slide_id), json.dumps(record, indent=1) + "\n")
        return record

    def _provenance(self, listed: ListedSlide, reading: Reading, canvas: Canvas) -> dict[str, Any]:
        mpp = canvas.source.mpp
        return {
            "slide_id": listed.slide_id,
            "path": str(listed.path),
            "mpp": asdict(mpp) if mpp else None,
            "n_bad_tiles": len(canvas.bad_tiles),
            "canvas": canvas.provenance(),
            "model": {"digest": self.model_digest, **asdict(self.model.config)},
            "longvit": __version__,
            "digest": reading.digest,
        }


def run(job: SlideJob, slides: Sequence[ListedSlide], out_dir: str | Path) -> BatchResult:
    """Does `job` for every slide; `out_dir` gets `problems.csv` where a slide failed.

    Raises `InputError` where the results cannot be written (a full disk, no permission): going on would be in vain.
    """
    out_dir = make_folder(out_dir)
    make_folder(job.folder)
    problems_csv = out_dir / PROBLEMS_CSV
    write_problems(problems_csv, ())
    job.stopping.clear()
    done: list[str] = []
    skipped: list[str] = []
    problems: list[Problem] = []
    records: list[dict[str, Any]] = []

    def report(slide: str, stage: str, error: str) -> None:
        problems.append(Problem(slide, stage, error))
        progress.say(f"problem: {slide}: {stage}: {error}")
        write_problems(problems_csv, problems)

    with Progress(job.verb, len(slides), unit="slides") as progress, closing(_read_ahead(job, slides)) as readings:
        job.progress = progress
        for listed, reading in readings:
            try:
                if isinstance(reading, SlideFailedError):
                    raise reading
                if reading.canvas is None:
                    record = read_record(job.record_path(listed.slide_id))
                    skipped.append(listed.slide_id)
                else:
                    record = job.finish(listed, reading)
                    done.append(listed.slide_id)
                records.append(record | {"path": str(listed.path)})  # it may have moved since
                if bad := record["n_bad_tiles"]:
                    tiles = record["canvas"]["tiles"]
                    text = f"{bad} of {tiles} tiles cannot be read; filled with background"
                    report(listed.slide_id, "tiles", f"{listed.path}: {text}")
            except SlideFailedError as error:
                report(listed.slide_id, error.stage, str(error))
            finally:
                if isinstance(reading, Reading):
                    reading.slide.close()
            del reading  # its canvas goes before the next one is fetched
            progress.advance(note=listed.slide_id)
    return BatchResult(tuple(done), tuple(skipped), tuple(problems), tuple(records))


def _read_ahead(
    job: SlideJob, slides: Sequence[ListedSlide]
) -> Generator[tuple[ListedSlide, Reading | SlideFailedError]]:
    """Slides with their canvases, the next one being decoded while the caller works on this one."""

    def read(listed: ListedSlide) -> Reading | SlideFailedError:
        try:
            return job.read(listed)
        except SlideFailedError as error:
            return error

    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        pending: Future[Reading | SlideFailedError] | None = None
        for index, listed in enumerate(slides):
            reading = (pending or pool.submit(read, listed)).result()
            pending = pool.submit(read, slides[index + 1]) if index + 1 < len(slides) else None
            yield listed, reading
            del reading
    finally:
        job.stopping.set()
        pool.shutdown(wait=True, cancel_futures=True)


def read_record(path: Path) -> dict[str, Any]:
    """A slide's record; empty where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def digest_of(**parts: Any) -> str:
    """A hash of named values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def model_digest(model: LongViT) -> str:
    """A hash of a model's settings and weights, the same wherever the files lie."""
    import torch

    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV with a header, written atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
