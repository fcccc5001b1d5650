"""The work list of a run, in the folder of its results: whoever sees that folder can work on it, or look.

    OUT/work/embed/run.json                which run is the present one, its settings, its slides
    OUT/work/embed/<run>/slides/ID.json    a claim while a worker has the slide, then how it ended; none: it waits
    OUT/work/embed/<run>/tried/ID.json     what went wrong before it was tried again
    OUT/work/embed/<run>/workers/NAME.jsonl  what a worker did, a line each (`worker_log`)

A slide's file is created by one worker alone and stays when the slide has ended, so within a run nothing is done
twice: that rests on these files, not on what started the workers.
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
"""A slide on which so many processes died, or that took too long so often, is given up."""
RETRY_AFTER_S = 5.0
"""What may pass gets so long, and twice as long the next time."""
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class WorkList:
    """A run: its slides, and what is known about them."""

    folder: Path
    """OUT/work/<verb>/<run>."""
    verb: str
    slides: tuple[ListedSlide, ...]
    retries: int
    """How often a slide is tried again that failed for a reason that may pass."""
    facts: Mapping[str, Any]
    """The rest of run.json: settings, when it was begun."""

    @classmethod
    def begin(
        cls, out_dir: Path, verb: str, slides: Sequence[ListedSlide], *, retries: int, facts: Mapping[str, Any]
    ) -> WorkList:
        """A new run in the place of an older one, whose results stay."""
        folder = make_folder(out_dir / "work" / verb)
        run = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        for part in ("slides", "tried", "workers"):
            make_folder(folder / run / part)
        facts = {**facts, "run": run, "begun": time.time(), "retries": retries}
        listed = [[slide.slide_id, str(slide.path), slide.mpp, slide.fault] for slide in slides]
        write_text(folder / RUN_JSON, json.dumps({**facts, "slides": listed}))
        for older in folder.iterdir():
            if older.is_dir() and older.name != run:
                shutil.rmtree(older, ignore_errors=True)
        return cls(folder / run, verb, tuple(slides), retries, facts)

    @classmethod
    def of(cls, folder: Path) -> WorkList:
        """The present run of a folder OUT/work/<verb>. `InputError` where there is none."""
        path = folder / RUN_JSON
        try:
            content = read_json_object(path, most_bytes=2**30)  # as long as the list
            if not isinstance(content["begun"], int | float) or not isinstance(content["retries"], int):
                raise TypeError("when it was begun, and its retries, are numbers")
            slides = tuple(ListedSlide(name, Path(file), *more) for name, file, *more in content.pop("slides"))
            return cls(folder / content["run"], folder.name, slides, content["retries"], content)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; no run was begun in {folder.parent.parent}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not the work list of a run ({type(error).__name__}: {error})") from error

    def slide_file(self, slide_id: str) -> Path:
        """Its claim, then its end."""
        return self.folder / "slides" / f"{file_stem(slide_id)}.json"

    def present(self) -> set[str]:
        """The slides that some worker has, or that have ended."""
        with contextlib.suppress(FileNotFoundError):  # the folder is gone
            found = {path.name.removesuffix(".json") for path in (self.folder / "slides").iterdir()}
            return {self._by_stem[stem] for stem in found if stem in self._by_stem}
        return set()

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        return {file_stem(slide.slide_id): slide.slide_id for slide in self.slides}

    def is_gone(self) -> bool:
        """Whether this folder was removed: by a newer run that takes its place, or by hand."""
        return not (self.folder / "slides").exists()

    def why_unended(self, slide_id: str) -> str:
        """Why a slide has no end, in words, once nobody is at work any more."""
        again = "give the same command again"
        if self.is_gone():
            try:
                newer = json.loads((self.folder.parent / RUN_JSON).read_text(encoding="utf-8"))["run"]
            except (OSError, ValueError, KeyError, TypeError):
                newer = self.folder.name
            if newer != self.folder.name:
                return f"not worked on to its end: another run took the place of this one ({self.folder}); {again}"
            return f"not worked on to its end: {self.folder} was removed while the run was at work; {again}"
        tried = self.tried(slide_id)
        last = f" (the last try: {tried[-1]['error']})" if tried else ""
        return f"not worked on to its end: its worker ended without a word{last}; {again}"

    def tried(self, slide_id: str) -> list[dict[str, Any]]:
        """What went wrong with a slide in this run so far."""
        try:
            content = read_json(self._tried_file(slide_id))
            return [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
        except (OSError, ValueError):
            return []

    def note_try(self, slide_id: str, error: SlideFailedError) -> SlideFailedError | None:
        """Remembers a failure, by the holder of the claim; returns it where the slide is given up with that."""
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
class Taken:
    """A slide that this worker has."""

    listed: ListedSlide
    lease: Lease
    was_in_model: bool = False
    """A worker of this run died with it in its model; it may have written the result before."""


class Taking:
    """How one worker gets its slides: first those that nobody has, in order, then what others let go of."""

    def __init__(self, work_list: WorkList, leases: Leases, log: WorkerLog) -> None:
        self._list, self._leases, self._log = work_list, leases, log
        self._first = deque(work_list.slides)
        self._later: dict[str, ListedSlide] = {}
        self._in_work: set[str] = set()  # taken by this worker; they may come back
        self._not_before: dict[str, float] = {}
        self._lock = threading.Lock()
        self._present: set[str] = set()
        self._look_again = 0.0
        self.stopping = threading.Event()

    def next(self) -> Taken | None:
        """The next slide; waits while others, or this worker itself, have the last ones: they may die, or come back
        for another try. None: all have ended, or the work list is gone."""
        wait_s = 0.05
        while not self.stopping.is_set():
            while self._first and not self.stopping.is_set():
                listed = self._first.popleft()
                taken = None if listed.slide_id in self._look() else self._take(listed)
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
                is_done = not self._later and not self._in_work
            if is_done or self._list.is_gone():
                return None
            self.stopping.wait(wait_s)
            wait_s = min(2 * wait_s, _LOOK_EVERY_S)
        return None

    def failed(self, taken: Taken, error: SlideFailedError) -> None:
        """Ends a slide with a problem, or lets go of it so that it is tried again."""
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
            self._in_work.discard(taken.listed.slide_id)
        self._leases.release(taken.lease)

    def ended(self, taken: Taken, end: str, **facts: Any) -> None:
        """A slide is `done`, `skipped` or `failed`; nobody takes it again in this run."""
        slide_id, is_settled = taken.listed.slide_id, False
        with contextlib.suppress(FileNotFoundError):  # the folder is gone
            is_settled = self._leases.complete(taken.lease, {"end": end, "worker": self._log.name, **facts})
        if is_settled:
            self._log.write(end, slide_id, **facts)
        with self._lock:
            if not is_settled:  # another worker took it over while this one slept: it is that one's to end
                self._later[slide_id] = taken.listed
            self._in_work.discard(slide_id)

    def _take(self, listed: ListedSlide) -> Taken | None:
        """A slide, if it can be had; one that has ended is forgotten."""
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
        except FileNotFoundError:  # the folder is gone
            self.stopping.set()
            return None
        if lease is None:
            return None
        with self._lock:
            self._later.pop(listed.slide_id, None)
            self._in_work.add(listed.slide_id)
        return (
            Taken(listed, lease) if lease.former is None else self._after_the_dead(Taken(listed, lease), lease.former)
        )

    def _after_the_dead(self, taken: Taken, former: Mapping[str, Any]) -> Taken | None:
        """A slide whose worker died, if it is worth another try. Only the slide that the model was working on can have
        killed it (those that were being read do so in processes of their own)."""
        name = former.get("worker")
        how = stage_at_death(log_path(self._list.folder, name), taken.listed.slide_id) if name else None
        if how is None:
            return taken
        where = "" if not former.get("host") else f" on {str(former['host']).split()[0]}"
        text = f"{taken.listed.path}: the process that worked on it{where} died ({how})"
        error = SlideFailedError("model", text, "death")
        given_up = self._list.note_try(taken.listed.slide_id, error)
        if given_up is None:
            self._log.write("again", taken.listed.slide_id, stage="model", error=text, cause="death")
            return replace(taken, was_in_model=True)
        self.ended(taken, "failed", stage="model", error=str(given_up))
        return None

    def _look(self) -> set[str]:
        begun = time.monotonic()
        if begun >= self._look_again:
            self._present = self._list.present()
            now = time.monotonic()
            self._look_again = now + max(_LOOK_EVERY_S, 50 * (now - begun))  # long lists on slow network folders
        return self._present
