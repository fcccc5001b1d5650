"""problems.csv: failures of single slides, one row each. The run continues without those slides."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longvit.errors import InputError
from longvit.files import require_regular_file, write_csv

PROBLEMS_CSV = "problems.csv"


@dataclass(frozen=True)
class Problem:
    """A failure of one slide: a row of problems.csv.

    >>> from longvit.data.problems import Problem
    >>> Problem("s01", "tiles", "1 of 9 tiles").is_left_out
    False
    """

    slide: str
    """slide_id."""
    stage: str
    """Stage of the failure. At `fetch` (the download), `open` (the file), `read` (its pixels), `model` and `end` (of
    the run) the slide is left out. At `tiles` it is used, with unreadable tiles filled. At `picture` only its plot is
    missing, at `heatmap` only a file of its heat map."""
    error: str
    """One line."""

    @property
    def is_left_out(self) -> bool:
        """True if the slide is missing from the results."""
        return self.stage not in ("tiles", "picture", "heatmap")


def write_problems(path: str | Path, problems: Sequence[Problem]) -> None:
    """Writes the columns slide, stage, error, atomically; without problems the file is removed."""
    if not problems:
        Path(path).unlink(missing_ok=True)
        return
    rows = ([problem.slide, problem.stage, problem.error] for problem in problems)
    write_csv(path, ["slide", "stage", "error"], rows)


def read_problems(path: str | Path) -> tuple[Problem, ...]:
    """Problems from a file of `write_problems`; none where there is no file."""
    try:
        require_regular_file(path)
        text = Path(path).read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return tuple(Problem(str(row["slide"]), str(row["stage"]), str(row["error"])) for row in rows)
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: not read ({reason}); remove it to have it written again") from error


def problem_rows(problems: Sequence[Problem]) -> list[list[str]]:
    """Problems as JSON: slide, stage and error of each."""
    return [[problem.slide, problem.stage, problem.error] for problem in problems]


def problems_of_rows(rows: Sequence[Sequence[str]]) -> tuple[Problem, ...]:
    """The inverse of `problem_rows`."""
    return tuple(Problem(*row) for row in rows)
