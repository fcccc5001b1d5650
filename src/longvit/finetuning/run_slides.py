"""slides.csv of a run: every slide that it used, with patient, split, label and content hash.

The table is also a cohort table: `longvit train RUN/slides.csv` reads it. An external validation needs it: to find the
slides and patients that the run used (`longvit.external.overlap`), to fit the controls again, and to train in the
opposite direction.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from longvit.data.cohort import SPLITS, Cohort, SlideRow
from longvit.data.table import column_name
from longvit.errors import InputError
from longvit.files import require_regular_file, write_csv

if TYPE_CHECKING:
    from longvit.tasks.settings import TaskSettings
    from longvit.tasks.task import Task

SLIDES_CSV = "slides.csv"
_COLUMNS = ("case_id", "slide_id", "split", "content")

S = TypeVar("S", bound="TaskSettings")


@dataclass(frozen=True)
class RunSlides:
    """Slides of a run."""

    path: Path
    """The table."""
    rows: tuple[SlideRow, ...]
    content: Mapping[str, str]
    """slide_id -> content hash; a slide without one is absent."""

    def cohort(self, classes: Sequence[str], row_names: Sequence[str] | None = None) -> Cohort:
        """Cohort of the slides; `classes`: those of the run, empty for a task without. `row_names`: only these."""
        rows = self.rows if row_names is None else tuple(row for row in self.rows if row.slide_id in set(row_names))
        return Cohort(rows, tuple(classes), str(self.path))


def write_run_slides(path: str | Path, task: Task, rows: Sequence[SlideRow], content: Mapping[str, str]) -> None:
    """Writes a row per slide: case_id, slide_id, split, site, the label's columns, mpp, path, content."""
    header = ["case_id", "slide_id", "split", "site", *task.label_columns(), "mpp", "path", "content"]
    table = [
        [
            row.case_id,
            row.slide_id,
            row.split or "",
            row.site or "",
            *task.label_cells(row),
            "" if row.mpp is None else repr(row.mpp),
            "" if row.path is None else str(Path(row.path).absolute()),
            content.get(row.slide_id, ""),
        ]
        for row in rows
    ]
    write_csv(path, header, table)


def read_run_slides(folder: str | Path) -> RunSlides | None:
    """Slides of a run folder; None where it has no slides.csv, as runs of older versions.

    `InputError`: a damaged table.
    """
    path = Path(folder) / SLIDES_CSV
    if not path.exists():
        return None
    try:
        require_regular_file(path)
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        rows = tuple(_row(line) for line in lines)
        content = {line["slide_id"]: line["content"] for line in lines if line["content"]}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}); train the run again, or remove the file") from error
    return RunSlides(path, rows, content)


def settings_of_table(settings: S) -> S:
    """The settings with the columns of slides.csv in place of those of the run's cohort table."""
    names: dict[str, Any] = {"time_column": "survival_months", "event_column": "event", "censorship_column": None}
    return replace(settings, **names)


def with_outcome(row: SlideRow, settings: TaskSettings) -> SlideRow:
    """Row of slides.csv with its outcome also in the columns that the settings of the run name."""
    cells = dict(row.extra_columns)
    if settings.task == "survival":
        happened = cells["event"]
        cells[column_name(settings.time_column)] = cells["survival_months"]
        if settings.event_column is not None:
            cells[column_name(settings.event_column)] = happened
        if settings.censorship_column is not None:
            cells[column_name(settings.censorship_column)] = str(1 - int(happened))
    elif settings.task == "regression":
        cells[column_name(settings.label_columns[0])] = cells["value"]
    elif settings.task == "multilabel":
        from longvit.tasks.multilabel import columns_of

        for name, positive in columns_of(settings).items():
            text = cells[f"label_{name}"]
            of_class = {"1": positive, "0": f"not {positive}"}
            cells[column_name(name)] = of_class.get(text, text) if positive else text
    return replace(row, extra_columns=cells)


def _row(line: dict[str, str]) -> SlideRow:
    for name in _COLUMNS:
        if line[name] is None:
            raise ValueError(f"no {name} in a row")
    if line["split"] not in (*SPLITS, ""):
        raise ValueError(f"split {line['split']!r}")
    return SlideRow(
        case_id=line["case_id"],
        slide_id=line["slide_id"],
        label=line.get("label") or "",
        path=Path(line.get("path") or line["slide_id"]),
        mpp=float(line["mpp"]) if line.get("mpp") else None,
        split=line["split"] or None,
        site=line.get("site") or None,
        extra_columns=line,
    )
