"""Ends of runs over many slides when a slide fails: every kind of fault, at every place, in every command.

    python tests/faults/ends_of_runs.py --all      prints "n of n"; some 20 minutes
    python tests/faults/ends_of_runs.py crash      those with this word in their name

Right is: each slide of the list has a result or a row of problems.csv, and the exit code is 1 where one has no result.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

FAULTS = ("crash", "hang", "passing", "lasting", "memory", "removed")
PLACES = ("first", "middle", "last")
COMMANDS = ("canvas", "embed", "predict", "tiles", "features")
SLIDES = ("a", "b", "c")
_TIMEOUT_S = 4


@dataclass(frozen=True)
class Case:
    """One run."""

    fault: str
    place: str
    workers: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} {self.fault} {self.place} {self.workers} worker{'s' * (self.workers > 1)}"


CASES = tuple(Case(*parts) for parts in product(FAULTS, PLACES, (1, 2), COMMANDS))


def make_inputs(folder: Path) -> None:
    """Three slides with tissue, and a model."""
    from tests.small_slides import write_model, write_slide

    for seed, name in enumerate(SLIDES):
        write_slide(folder / "slides" / f"{name}.tif", seed=seed, size_px=(640, 512))
    write_model(folder / "model")


def wrong_with(case: Case, inputs: Path, folder: Path) -> str:
    """Runs a case; what is wrong with its end, "" where nothing is."""
    from longvit.cli import main

    out = folder / "out"
    model, tiles = [str(inputs / "model")], ["--tile-px", "64", "--min-piece-um2", "100"]
    words = [case.command, *(model if case.command in ("embed", "predict") else [])]
    words += [str(inputs / "slides" / f"{name}.tif") for name in SLIDES]
    words += {"canvas": ["--side-px", "64"], "tiles": tiles, "features": tiles}.get(case.command, ["--device", "cpu"])
    words += ["--out", str(out), "--workers", str(case.workers), "--threads", "1"]
    words += ["--retries", "1", "--timeout-s", str(_TIMEOUT_S)]
    faulty = SLIDES[PLACES.index(case.place)]
    with _fault(case.fault, f"{faulty}.tif", folder, out / "work"):
        code = main(words)

    done = _cells(next(iter(sorted(out.rglob(f"{_TABLES[case.command]}.csv"))), None), "slide_id")
    rows = _cells(out / "problems.csv", "slide")
    if sorted(done + rows) != sorted(SLIDES):
        return f"done {done}, rows {rows}, exit code {code}: not every slide once"
    if code != bool(rows):
        return f"done {done}, rows {rows}, but exit code {code}"
    if case.fault == "passing" and rows:
        return f"rows {rows}: the fault passes"
    if case.fault not in ("passing", "removed") and rows != [faulty]:
        return f"rows {rows}: the fault is {faulty}'s"
    return ""


_TABLES = {
    "canvas": "canvases",
    "embed": "embeddings",
    "predict": "predictions",
    "tiles": "tiles",
    "features": "features",
}


def _cells(table: Path | None, column: str) -> list[str]:
    if table is None or not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]


@contextmanager
def _fault(kind: str, file: str, notes: Path, removes: Path) -> Iterator[None]:
    """In here every process that is started has the fault, and what may pass is tried again soon."""
    from longvit.slide_jobs import work_list

    path = os.pathsep.join(filter(None, (str(HERE / "hooks"), os.environ.get("PYTHONPATH"))))
    changes = {
        "LONGVIT_FAULT": f"{kind} {file}",
        "LONGVIT_FAULT_NOTES": str(notes),
        "LONGVIT_FAULT_REMOVES": str(removes),
        "PYTHONPATH": path,
    }
    before, retry_after_s = dict(os.environ), work_list.RETRY_AFTER_S
    os.environ.update(changes)
    work_list.RETRY_AFTER_S = 0.05
    try:
        yield
    finally:
        work_list.RETRY_AFTER_S = retry_after_s
        os.environ.clear()
        os.environ.update(before)


def main(words: list[str]) -> int:
    """Runs the cases whose names hold all words."""
    if not words:
        print(__doc__)
        return 2
    wanted = [case for case in CASES if words == ["--all"] or set(words) <= set(str(case).split())]
    right, begun = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary)
        make_inputs(inputs)
        for number, case in enumerate(wanted):
            folder = inputs / str(number)
            folder.mkdir()
            wrong = wrong_with(case, inputs, folder)
            shutil.rmtree(folder, ignore_errors=True)
            right += not wrong
            print(f"{case}: {wrong or 'right'}", flush=True)
    print(f"{right} of {len(wanted)} runs ended right, {time.monotonic() - begun:.0f} s")
    return int(right < len(wanted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
