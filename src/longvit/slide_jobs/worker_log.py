"""Worker log: one event a line, as JSON, in a file of one worker.

It serves the progress display and `longvit status`, and tells which slide a dead worker had in its model.

Lines: {"t": seconds since 1970, "event": …, "slide": …, …}. Events:

    start, end               of the worker
    model                    a slide enters the model
    done, skipped, failed    end of a slide
    again                    a slide will be retried
    unusable                 the worker cannot work at all; the error on one line
    died                     exit status of the worker, written by its supervisor
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
"""Events that end a slide."""


class WorkerLog:
    """Writes the log of one worker; `listener` is called with each line. Thread-safe."""

    def __init__(self, run_folder: Path, name: str, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.name, self._listener = name, listener
        self._lock = threading.Lock()
        self._file = log_path(run_folder, name).open("a", encoding="utf-8")

    def write(self, event: str, slide: str | None = None, **details: Any) -> None:
        """Adds an event."""
        line = _line(event, slide, details)
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._listener is not None:
            self._listener(line)

    def close(self) -> None:
        """Closes the file; nothing can be written afterwards."""
        self._file.close()


class LogTail:
    """Reads new lines of the logs of a run."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / "workers"
        self._read_bytes: dict[Path, int] = {}

    def new_lines(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines since the last call as (worker, line), each worker's in their order; `names`: of these workers only.

        A half-written line comes with a later call.
        """
        for path in sorted(self._folder.glob("*.jsonl") if names is None else map(self._path, names)):
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
                if (line := _parse(text)) is not None:
                    yield path.stem, line

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"


def log_path(run_folder: Path, name: str) -> Path:
    """Path of a worker's log."""
    return run_folder / "workers" / f"{name}.jsonl"


def note_death(run_folder: Path, name: str, how: str) -> None:
    """Adds the exit status of a dead worker to its log."""
    with log_path(run_folder, name).open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(_line("died", None, {"how": how})) + "\n")


def stage_at_death(path: Path, slide_id: str) -> str | None:
    """Exit status of a dead worker if its model had this slide, else None."""
    how, in_model = "it no longer runs", None
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for text in texts:
        if (line := _parse(text)) is None:
            continue
        if line["event"] == "model":
            in_model = line.get("slide")
        elif line["event"] in (*ENDS, "again") and line.get("slide") == in_model:
            in_model = None
        elif line["event"] == "died":
            how = str(line.get("how", how))
    return how if in_model == slide_id else None


def _parse(text: bytes | str) -> dict[str, Any] | None:
    """A line as a dict; None where a worker was killed while writing it, or it is not an event."""
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


def _line(event: str, slide: str | None, details: dict[str, Any]) -> dict[str, Any]:
    return {"t": round(time.time(), 3), "event": event, **({} if slide is None else {"slide": slide}), **details}
