"""The work list of a run: files in the output folder, shared by all workers and by `longvit status`.

    OUT/work/embed/run.json                name of the current run, its settings, its slides
    OUT/work/embed/<run>/slides/ID.json    lease while a worker has the slide, then its end; no file: the slide waits
    OUT/work/embed/<run>/tried/ID.json     errors of earlier attempts
    OUT/work/embed/<run>/workers/NAME.jsonl  log of a worker, one event a line (`worker_log`)

One worker alone creates a slide's file, which stays after the end. So within a run no slide is done twice, whatever
started the workers.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.files import file_stem, make_folder, write_text
from longvit.json_file import read_json, read_json_object
from longvit.processes.leases import Lease, Leases, read_lease
from longvit.slide_jobs.reading import SlideFailedError
from longvit.slide_jobs.worker_log import WorkerLog, log_path, stage_at_death

RUN_JSON = "run.json"
MAX_DEATHS = 2
"""Deaths or timeouts after which a slide is given up."""
RETRY_AFTER_S = 5.0
"""Delay before the first retry after a temporary error; doubled for each further retry."""
_POLL_S = 1.0


@dataclass(frozen=True)
class WorkList:
    """A run over many slides: its folder, its slides, its settings."""

    folder: Path
    """OUT/work/<verb>/<run>."""
    verb: str
    slides: tuple[ListedSlide, ...]
    retries: int
    """Retries of a slide after temporary errors."""
    settings: Mapping[str, Any]
    """Other fields of run.json: settings, start time, process that started the run."""

    @classmethod
    def begin(
        cls, out_dir: Path, verb: str, slides: Sequence[ListedSlide], *, retries: int, settings: Mapping[str, Any]
    ) -> WorkList:
        """Starts a new run in place of an older one, whose results stay."""
        folder = make_folder(out_dir / "work" / verb)
        run = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        for part in ("slides", "tried", "workers"):
            make_folder(folder / run / part)
        settings = {**settings, "run": run, "begun": time.time(), "retries": retries}
        listed = [[slide.slide_id, str(slide.path), slide.mpp, slide.fault] for slide in slides]
        write_text(folder / RUN_JSON, json.dumps({**settings, "slides": listed}))
        for older in folder.iterdir():
            if older.is_dir() and older.name != run:
                shutil.rmtree(older, ignore_errors=True)
        return cls(folder / run, verb, tuple(slides), retries, settings)

    @classmethod
    def read(cls, folder: Path) -> WorkList:
        """Reads the current run of a folder OUT/work/<verb>. Raises `InputError` where there is none."""
        path = folder / RUN_JSON
        try:
            content = read_json_object(path, most_bytes=2**30)  # a line per slide
            if not isinstance(content["begun"], int | float) or not isinstance(content["retries"], int):
                raise TypeError("begun and retries are not numbers")
            slides = tuple(ListedSlide(name, Path(file), *fields) for name, file, *fields in content.pop("slides"))
            return cls(folder / content["run"], folder.name, slides, content["retries"], content)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; no run was begun in {folder.parent.parent}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not the work list of a run ({type(error).__name__}: {error})") from error

    def slide_file(self, slide_id: str) -> Path:
        """File of a slide: its lease, then its end."""
        return self.folder / "slides" / f"{file_stem(slide_id)}.json"

    def present(self) -> set[str]:
        """Slides that a worker has, or that have ended."""
        with contextlib.suppress(FileNotFoundError):  # the folder was removed
            stems = {path.name.removesuffix(".json") for path in (self.folder / "slides").iterdir()}
            return {self._by_stem[stem] for stem in stems if stem in self._by_stem}
        return set()

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        return {file_stem(slide.slide_id): slide.slide_id for slide in self.slides}

    def is_gone(self) -> bool:
        """True where this folder was removed: by a newer run that replaced it, or by hand."""
        return not (self.folder / "slides").exists()

    def is_replaced(self) -> bool:
        """True where a newer run has begun in the same folder: this one had no heartbeat for long, for example."""
        try:
            return bool(read_json_object(self.folder.parent / RUN_JSON, most_bytes=2**30)["run"] != self.folder.name)
        except (OSError, InputError, KeyError):
            return False

    def why_unended(self, slide_id: str) -> str:
        """Reason why a slide has no end after all workers have ended, for problems.csv."""
        rerun = "rerun the command to resume"
        if self.is_gone():
            return f"not finished: {self.folder} was removed during the run; {rerun}"
        tried = self.tried(slide_id)
        last = f" (last attempt: {tried[-1]['error']})" if tried else ""
        return f"not finished: its worker ended without an error message{last}; {rerun}"

    def tried(self, slide_id: str) -> list[dict[str, Any]]:
        """Errors of a slide in earlier attempts of this run: stage, error, cause, time."""
        try:
            content = read_json(self._tried_file(slide_id))
            return [attempt for attempt in content if isinstance(attempt, dict)] if isinstance(content, list) else []
        except (OSError, ValueError):
            return []

    def note_try(self, slide_id: str, error: SlideFailedError) -> SlideFailedError | None:
        """Stores a failed attempt of the lease holder. Returns an error where the slide is given up, else None."""
        tried = self.tried(slide_id)
        attempt = len(tried) + 1
        allowed = {"slide": 1, "passing": self.retries + 1}.get(error.cause, min(MAX_DEATHS, self.retries + 1))
        if attempt >= allowed:
            return error.at(attempt)
        tried.append({"stage": error.stage, "error": str(error), "cause": error.cause, "time": time.time()})
        write_text(self._tried_file(slide_id), json.dumps(tried))
        return None

    def _tried_file(self, slide_id: str) -> Path:
        return self.folder / "tried" / f"{file_stem(slide_id)}.json"


@dataclass(frozen=True)
class TakenSlide:
    """A slide whose lease this worker holds."""

    listed: ListedSlide
    lease: Lease
    was_in_model: bool = False
    """A worker of this run died while its model had the slide; the result may be written already."""


class SlideQueue:
    """Slides for one worker: first those without a lease, in order, then those that other workers release."""

    def __init__(self, work_list: WorkList, leases: Leases, log: WorkerLog) -> None:
        self._list, self._leases, self._log = work_list, leases, log
        self._first = deque(work_list.slides)
        self._later: dict[str, ListedSlide] = {}
        self._taken: set[str] = set()  # by this worker; a failed attempt moves them to _later
        self._not_before: dict[str, float] = {}
        self._lock = threading.Lock()
        self._present: set[str] = set()
        self._next_listing = 0.0
        self.stopping = threading.Event()

    def next(self) -> TakenSlide | None:
        """Takes the next slide. None: all slides have ended, or the work list was removed.

        Waits while workers, this one included, have the last slides: a worker may die, a slide may need a retry.
        """
        wait_s = 0.05
        while not self.stopping.is_set():
            while self._first and not self.stopping.is_set():
                listed = self._first.popleft()
                taken = None if listed.slide_id in self._listing() else self._take(listed)
                if taken is not None:
                    return taken
                with self._lock:
                    self._later[listed.slide_id] = listed
            for listed in list(self._later.values()):
                taken = self._take(listed)
                if taken is not None:
                    return taken
                if self.stopping.is_set():
                    return None
            with self._lock:
                is_done = not self._later and not self._taken
            if is_done or self._list.is_gone():
                return None
            self.stopping.wait(wait_s)
            wait_s = min(2 * wait_s, _POLL_S)
        return None

    def failed(self, taken: TakenSlide, error: SlideFailedError) -> None:
        """Ends a slide with a problem, or releases it for a retry."""
        given_up = self._list.note_try(taken.listed.slide_id, error)
        if given_up is not None:
            self.ended(taken, "failed", stage=given_up.stage, error=str(given_up))
            return
        self._log.write("again", taken.listed.slide_id, stage=error.stage, error=str(error), cause=error.cause)
        with self._lock:
            if error.cause == "passing":
                wait_s = RETRY_AFTER_S * 2 ** (len(self._list.tried(taken.listed.slide_id)) - 1)
                self._not_before[taken.listed.slide_id] = time.monotonic() + wait_s
            self._later[taken.listed.slide_id] = taken.listed
            self._taken.discard(taken.listed.slide_id)
        self._leases.release(taken.lease)

    def ended(self, taken: TakenSlide, end: str, **details: Any) -> None:
        """Ends a slide as `done`, `skipped` or `failed`; no worker takes it again in this run."""
        slide_id, is_completed = taken.listed.slide_id, False
        with contextlib.suppress(FileNotFoundError):  # the folder was removed
            is_completed = self._leases.complete(taken.lease, {"end": end, "worker": self._log.name, **details})
        if is_completed:
            self._log.write(end, slide_id, **details)
        with self._lock:
            if not is_completed:  # another worker took the lease over while this one was suspended
                self._later[slide_id] = taken.listed
            self._taken.discard(slide_id)

    def _take(self, listed: ListedSlide) -> TakenSlide | None:
        """Takes a slide if its lease is free; drops one that has ended."""
        path = self._list.slide_file(listed.slide_id)
        content = read_lease(path)
        if content.get("settled"):
            with self._lock:
                self._later.pop(listed.slide_id, None)
            return None
        if time.monotonic() < self._not_before.get(listed.slide_id, 0.0):
            return None
        try:
            lease = self._leases.acquire(path, {"worker": self._log.name})
        except FileNotFoundError:  # the folder was removed
            self.stopping.set()
            return None
        if lease is None:
            return None
        with self._lock:
            self._later.pop(listed.slide_id, None)
            self._taken.add(listed.slide_id)
        taken = TakenSlide(listed, lease)
        return taken if lease.former is None else self._after_death(taken, lease.former)

    def _after_death(self, taken: TakenSlide, former: Mapping[str, Any]) -> TakenSlide | None:
        """The slide of a dead worker, or None where it is given up.

        Only the slide in the model can have killed the worker: slides are read in a separate process.
        """
        name = former.get("worker")
        how = stage_at_death(log_path(self._list.folder, name), taken.listed.slide_id) if name else None
        if how is None:
            return taken
        host = "" if not former.get("host") else f" on {str(former['host']).split()[0]}"
        text = f"{taken.listed.path}: the process that worked on it{host} died ({how})"
        error = SlideFailedError("model", text, "death")
        given_up = self._list.note_try(taken.listed.slide_id, error)
        if given_up is None:
            self._log.write("again", taken.listed.slide_id, stage="model", error=text, cause="death")
            return replace(taken, was_in_model=True)
        self.ended(taken, "failed", stage="model", error=str(given_up))
        return None

    def _listing(self) -> set[str]:
        """`WorkList.present`, listed again from time to time."""
        begun = time.monotonic()
        if begun >= self._next_listing:
            self._present = self._list.present()
            now = time.monotonic()
            self._next_listing = now + max(_POLL_S, 50 * (now - begun))  # long lists on slow network folders
        return self._present
