"""Trials of a benchmark in one result file: every row is written when it is measured, and finished trials are skipped.

The file is that of `side_by_side.report`, one row per line. Each addition reads it, adds a row and replaces it, under a
lock: a command can be killed at any time, and several commands can share a file. A trial is a frozen dataclass whose
fields are the first columns of its row. A failed trial is a row with the key `failed`; the next command tries it again.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longvit.errors import describe_error
from longvit.files import write_text
from side_by_side import machine, report_text

Row = dict[str, Any]


class TrialFile:
    """Result file of a benchmark."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def rows(self) -> list[Row]:
        """Rows of all trials, finished or failed."""
        if not self.path.is_file():
            return []
        rows: list[Row] = json.loads(self.path.read_text())["rows"]
        return rows

    def finished(self, trial: Any) -> Row | None:
        """Row of a trial, or None where it has not finished."""
        return finished(self.rows(), trial)

    def add(self, trial: Any, result: Row) -> Row:
        """Writes the row of a trial, in place of an earlier row of it."""
        key = _key(trial)
        row = key | result | {"machine": _machine_line()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            others = [other for other in self.rows() if not key.items() <= other.items()]
            rows = sorted([*others, row], key=lambda r: json.dumps([r.get(name) for name in key]))
            write_text(self.path, report_text(self.name, rows))
        return row


def finished(rows: Sequence[Row], trial: Any) -> Row | None:
    """Row of a trial among `rows`, or None where it has not finished."""
    key = _key(trial)
    return next((row for row in rows if key.items() <= row.items() and "failed" not in row), None)


def run_trials(
    file: TrialFile,
    trials: Sequence[Any],
    function: Callable[[Any], Row],
    *,
    jobs: int = 1,
    threads: int = 1,
) -> list[Row]:
    """Rows of the trials, in their order; runs those that have not finished, `jobs` at once.

    `function`: importable, from a trial to the columns of its result. Its error becomes the row's `failed`.
    """
    pending = [trial for trial in trials if file.finished(trial) is None]
    done = len(trials) - len(pending)
    start = time.monotonic()

    def note(trial: Any, row: Row) -> None:
        nonlocal done
        done += 1
        names = (*asdict(trial), *(name for name in ("auc", "cpu_seconds", "failed") if name in row))
        values = ", ".join(f"{name} {row[name]}" for name in names if not isinstance(row[name], list))
        print(f"{done} of {len(trials)}, {time.monotonic() - start:.0f} s: {values}", file=sys.stderr, flush=True)

    if jobs == 1:
        _prepare(threads)
        for trial in pending:
            if file.finished(trial) is None:  # a command beside this one may have run it
                note(trial, file.add(trial, _result(function, trial)))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, _prepare, (threads,)) as pool:
            running = {pool.submit(_result, function, trial): trial for trial in pending}
            for future in as_completed(running):
                note(running[future], file.add(running[future], future.result()))
    rows = file.rows()
    return [row for trial in trials if (row := next((r for r in rows if _key(trial).items() <= r.items()), None))]


def _result(function: Callable[[Any], Row], trial: Any) -> Row:
    try:
        return function(trial)
    except Exception as error:  # a failed trial does not stop the others
        return {"failed": describe_error(error, 300)}


def _key(trial: Any) -> Row:
    """Fields of a trial as JSON restores them."""
    key: Row = json.loads(json.dumps(asdict(trial)))
    return key


def _prepare(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _machine_line() -> str:
    found = machine()
    return f"{found['date']}, {found['processor']}, torch {found['torch']}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclusive lock of a folder, which leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
