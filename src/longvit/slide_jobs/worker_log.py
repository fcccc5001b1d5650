"""What a worker did, a line of JSON each, in a file that only it writes to: for progress, `longvit status`, and for
whoever has to find out which slide a dead worker had in the model.

Lines: {"t": seconds since 1970, "event": …, "slide": …, …}. Events: start, model (a slide goes into the model), done,
skipped, failed (a slide has ended), again (it will be tried again), heard (a slide is being read), unusable (nothing
can be done at all: the error in one line), died (written by whoever started the worker: how it ended), end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from longvit.errors import InputError
from longvit.json_file import parse_json

ENDS = ("done", "skipped", "failed")
"""The events with which a slide has ended."""


class WorkerLog:
    """Writes the log of one worker; `listener` hears each line too. Any of its threads may write."""

    def __init__(self, run_folder: Path, name: str, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.name, self._listener = name, listener
        self._lock = threading.Lock()
        self._file = log_path(run_folder, name).open("a", encoding="utf-8")

    def write(self, event: str, slide: str | None = None, **facts: Any) -> None:
        """Adds a line."""
        line = _line(event, slide, facts)
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._listener is not None:
            self._listener(line)

    def close(self) -> None:
        """Nothing is written after this."""
        self._file.close()


class LogTail:
    """Reads what all workers of a run have written since the last look."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / "workers"
        self._read_bytes: dict[Path, int] = {}

    def new_lines(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """(worker, line) in the order of each worker's own; a line that is only half written comes next time. `names`:
        of these workers only."""
        for path in sorted(self._folder.glob("*.jsonl") if names is None else (self._of(name) for name in names)):
            start = self._read_bytes.get(path, 0)
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    data = file.read()
            except OSError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._read_bytes[path] = start + len(whole)
            for text in whole.splitlines():
                if (line := _read(text)) is not None:
                    yield path.stem, line

    def _of(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"


def log_path(run_folder: Path, name: str) -> Path:
    """The log of a worker."""
    return run_folder / "workers" / f"{name}.jsonl"


def note_death(run_folder: Path, name: str, how: str) -> None:
    """Adds to a dead worker's log how it ended."""
    with log_path(run_folder, name).open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(_line("died", None, {"how": how})) + "\n")


def stage_at_death(path: Path, slide_id: str) -> str | None:
    """How a worker ended, if the slide was the one in its model then; None if it was another one, or none."""
    how, in_model = "it is gone", None
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for text in texts:
        if (line := _read(text)) is None:
            continue
        if line["event"] == "model":
            in_model = line.get("slide")
        elif line["event"] in (*ENDS, "again") and line.get("slide") == in_model:
            in_model = None
        elif line["event"] == "died":
            how = str(line.get("how", how))
    return how if in_model == slide_id else None


def _read(text: bytes | str) -> dict[str, Any] | None:
    """A line, if it is whole: a worker was killed within it, or somebody else wrote it, otherwise."""
    try:
        line = parse_json(text, "")
    except InputError:
        return None
    if (
        not isinstance(line, dict)
        or not isinstance(line.get("event"), str)
        or not isinstance(line.get("t"), int | float)
    ):
        return None
    has_slide = line["event"] in (*ENDS, "model", "again")
    return line if isinstance(line.get("slide", None if has_slide else ""), str) else None


def _line(event: str, slide: str | None, facts: dict[str, Any]) -> dict[str, Any]:
    return {"t": round(time.time(), 3), "event": event, **({} if slide is None else {"slide": slide}), **facts}
