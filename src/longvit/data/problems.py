"""problems.csv: what went wrong with single slides, one row each; the run goes on without them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longvit.files import write_text

PROBLEMS_CSV = "problems.csv"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a slide."""

    slide: str
    """Its slide_id."""
    stage: str
    """`open` the file, `read` its pixels, the `model`, the `end` of the run: the slide is left out. `tiles`: it is
    used, with holes filled."""
    error: str
    """One line."""

    @property
    def is_left_out(self) -> bool:
        """Whether the slide is missing from the results."""
        return self.stage != "tiles"


def write_problems(path: str | Path, problems: Sequence[Problem]) -> None:
    """Writes the columns slide, stage, error, atomically; without problems the file goes."""
    if not problems:
        Path(path).unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "stage", "error"])
    writer.writerows([problem.slide, problem.stage, problem.error] for problem in problems)
    write_text(path, text.getvalue())


def read_problems(path: str | Path) -> tuple[Problem, ...]:
    """What `write_problems` wrote; none where there is no file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return tuple(Problem(row["slide"], row["stage"], row["error"]) for row in csv.DictReader(io.StringIO(text)))
