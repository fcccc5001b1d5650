"""Places of the slide files of a run: as recorded, in a cohort table, below a folder, else the run's canvases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from longvit.data.cohort import SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.slide_files import SlideFinder
from longvit.errors import InputError
from longvit.files import is_folder


@dataclass(frozen=True)
class Place:
    """File of a slide, and the columns of the cohort table for it."""

    path: Path | None
    mpp: float | None = None
    case_id: str = ""
    site: str = ""
    label: str = ""
    problem: str = ""


class SlidePlaces:
    """Search for slides by id.

    `slides_dir`: folder searched to any depth. `cohort`: CSV with `slide_id` or `path`, and optionally `case_id`,
    `site`, `label`, `mpp`. `run`: folder to which recorded relative paths may refer.
    """

    def __init__(self, slides_dir: Path | None = None, cohort: Path | None = None, run: Path | None = None) -> None:
        if slides_dir is not None and not is_folder(slides_dir):
            raise InputError(f"--slides-dir {slides_dir}: no such folder")
        self.rows: Mapping[str, SlideRow] = {}
        if cohort is not None:
            read = read_cohort(cohort, label_column=None, slides_dir=slides_dir, need_files=False, allow_leak=True)
            self.rows = {row.slide_id: row for row in read.rows}
        self._finder = None if slides_dir is None else SlideFinder([slides_dir], leave_out=run)
        self._run = run

    def find(self, slide_id: str, recorded: str = "") -> Place:
        """Place of a slide. `recorded`: path in the run's files, used where neither option has the slide."""
        row = self.rows.get(slide_id)
        path, problem = None, ""
        if row is not None and row.path.exists():
            path = row.path
        if path is None and self._finder is not None:
            try:
                path = self._finder.find(slide_id)
            except InputError as error:
                problem = str(error)
        if path is None and recorded:
            starts = [Path(), *([self._run, *self._run.parents[:2]] if self._run is not None else [])]
            path = next((start / recorded for start in starts if (start / recorded).exists()), None)
        if row is None:
            return Place(path, problem=problem)
        label = row.extra_columns.get("label", "")
        return Place(path, row.mpp, row.case_id, row.site or "", label, problem)
