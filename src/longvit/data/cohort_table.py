"""Cohort table: one CSV row per slide, with its patient and its label.

Reading is tolerant of form: ids with or without extension, BOM, spaces, `;` or tabs, column names in any case. It is
strict about meaning. Anything that would make a result wrong is one line of `InputError`, never a guess. Examples are a
patient in two splits, a row without a label and two spellings of one id. The module `identity.py` decides which texts
mean one patient, slide or class, and which mean none; `label_column.py` reads the classes.

    case_id,slide_id,label,path,split
    P01,P01_a,adenocarcinoma,scans/P01_a.svs,train
    P02,P02_a,healthy,scans/P02_a.svs,test

Only `label` and one of `slide_id`, `path` are needed. Further columns that are read: `mpp` (µm per pixel, where the
file does not state it), `split` (train, val, test), `fold`, `site`. A task finds all others in
`SlideRow.extra_columns`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from longvit.data.cohort import SPLIT_NAMES, Cohort, SlideRow, refuse_leak
from longvit.data.identity import (
    canonical,
    class_name,
    first_places,
    formula_note,
    is_missing,
    is_missing_number,
    read_id,
    refuse_clashes,
)
from longvit.data.label_column import Table, class_order, column_list, find_label_column, labelled_rows
from longvit.data.published_tables import read_cohort_table, tcga_patient
from longvit.data.slide_files import SlideFinder, dicom_keys, existing_path, last_part
from longvit.data.table import read_mpp
from longvit.errors import InputError
from longvit.slides.file_kind import near_name, slide_stem
from longvit.slides.slide_name import fault_of_name, printable


def read_cohort(
    csv_path: str | Path,
    *,
    label_column: str | None = "label",
    keep: Sequence[str] | None = None,
    slides_dir: str | Path | None = None,
    need_files: bool = True,
    need_labels: bool = True,
    allow_leak: bool = False,
    clini: str | Path | None = None,
) -> Cohort:
    """Reads a cohort table, .csv, .csv.zip or .xlsx, and finds every slide's file.

    Tables of Patho-Bench, MOOZY, STAMP, CLAM and TRIDENT are read too (`published_tables.py`), the first two as
    folders.

    - `label_column`: column of the class; None where the task has none (every label is then "").
    - `keep`: classes to use, in order; rows of other classes or without one are left out, which a note counts.
    - `slides_dir`: folder to search for slides without a `path`, to any depth, before the CSV's own folder. A `path` is
      relative to the CSV, or else to `slides_dir`.
    - `need_files=False`: a slide without a file stays, with its expected path, to check a table before the slides
      exist.
    - `need_labels=False`: a row without a label is left out, and a note counts and names it.
    - `allow_leak`: a patient may be in two splits or folds.
    - `clini`: a table with a row per patient (STAMP's clini table), whose columns are joined by patient.

    Raises `InputError` in one line (file, row, way out) for:

    - no such file, an empty file, no label column;
    - a row without label, labels that are not classes, one class only, a class to keep that no row has;
    - a slide without a file, a slide listed twice, an mpp that is not a positive number;
    - two slides, patients, classes or folds that differ in spelling only;
    - a patient in two splits or two folds, a split other than train, val or test.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> len(cohort.rows), cohort.classes
    (20, ('pale', 'stained'))
    """
    path = Path(csv_path)
    if slides_dir is not None and not Path(slides_dir).is_dir():
        raise InputError(f"--slides-dir {slides_dir}: no such folder")
    published = read_cohort_table(path, None if clini is None else Path(clini))
    path, columns, table = published.path, published.columns, published.rows
    if label_column == "label":
        label_column = published.label_column
    label_key = None if label_column is None else find_label_column(path, columns, label_column)
    notes = [*published.notes, *_column_notes(path, columns)]
    if label_key is not None and keep is not None:
        keep = [class_name(label) for label in keep]
    labels = [""] * len(table)
    if label_key is not None:
        table, labels = labelled_rows(path, table, label_key, keep, need_labels, notes)
    cohort_table = _CohortTable(path, slides_dir, need_files)
    for (line, cells), label in zip(table, labels, strict=True):
        cohort_table.add(line, cells, label)
    cohort_table.refuse_clashes()
    cohort_table.refuse_missing_files(len(table))
    if need_files:
        _refuse_one_dicom_slide_twice(path, cohort_table.rows, cohort_table.line_of_id)
    _all_or_none(path, table, "split")
    _all_or_none(path, table, "fold")
    if not allow_leak:
        refuse_leak(cohort_table.rows, "split", str(path))
        refuse_leak(cohort_table.rows, "fold", str(path))
    if cohort_table.n_barcodes and not cohort_table.without_case:
        notes = [note for note in notes if "no column 'case_id'" not in note]
    notes += cohort_table.notes("case_id" in columns)
    classes = () if label_key is None else class_order(labels) if keep is None else tuple(keep)
    return Cohort(tuple(cohort_table.rows), classes, str(path), tuple(notes), is_ordered=keep is not None)


def _column_notes(path: Path, columns: list[str]) -> list[str]:
    """Notes on missing columns of ids. Raises `InputError` where no column names the slides."""
    if "slide_id" not in columns and "path" not in columns:
        raise InputError(f"{path}: no column 'slide_id' or 'path'{column_list(columns)}")
    notes = []
    if "slide_id" not in columns:
        notes.append(f"{path}: no column 'slide_id': the file name in 'path' is used")
    if "case_id" not in columns:
        notes.append(f"{path}: no column 'case_id': every slide counts as a separate patient")
    return notes


class _CohortTable:
    """The rows of a cohort table, collected one by one, with the places of their ids and files."""

    def __init__(self, path: Path, slides_dir: str | Path | None, need_files: bool) -> None:
        self.path, self.slides_dir, self.need_files = path, slides_dir, need_files
        self.finder = SlideFinder([*([slides_dir] if slides_dir is not None else []), path.parent])
        self.rows: list[SlideRow] = []
        self.missing: list[str] = []
        """A line for each slide without a file."""
        self.misspelt: list[str] = []
        """A clause for each slide without a file of that name, but with one of a similar name."""
        self.without_case: list[SlideRow] = []
        self.n_barcodes = 0
        """Slides without a case_id whose name is a TCGA barcode."""
        self.line_of_id: dict[str, int] = {}
        self.line_of_case: dict[str, int] = {}
        self.line_of_path: dict[str, int] = {}

    def add(self, line: int, cells: dict[str, str], label: str) -> None:
        """Adds a row. Raises `InputError` for invalid cells, a slide or a file that is listed already."""
        path, where = self.path, f"{self.path}, line {line}"
        slide_id = self._slide_id(cells, where)
        if slide_id in self.line_of_id:
            raise InputError(f"{where}: slide {slide_id} is already on line {self.line_of_id[slide_id]}; keep one row")
        self.line_of_id[slide_id] = line
        case_id = read_id(cells.get("case_id", ""), "case_id", where)
        if case_id:
            self.line_of_case.setdefault(case_id, line)
        file = self._file(line, cells, slide_id)
        if file is None:
            return
        if (fault := fault_of_name(slide_id, str(file))) is not None:
            raise InputError(f"{where}: {printable(str(file))}: {fault}")
        if (real := os.path.realpath(file)) in self.line_of_path:
            raise InputError(f"{where}: {file} is already the file of line {self.line_of_path[real]}; keep one row")
        self.line_of_path[real] = line
        barcode = None if case_id else tcga_patient(slide_id)
        if barcode is not None:
            self.n_barcodes += 1
            case_id = barcode
        row = SlideRow(
            case_id=case_id or slide_id,
            slide_id=slide_id,
            label=label,
            path=file,
            mpp=read_mpp(path, line, cells.get("mpp", "")),
            split=_split(path, line, cells.get("split", "")),
            fold=_group_name(cells.get("fold", "")),
            site=_group_name(cells.get("site", "")),
            extra_columns=cells,
            line=line,
        )
        self.rows.append(row)
        if not case_id:
            self.without_case.append(row)

    def _slide_id(self, cells: dict[str, str], where: str) -> str:
        stated = read_id(cells.get("slide_id", ""), "slide_id", where)
        slide_id = slide_stem(stated or canonical(last_part(cells.get("path", ""))))
        if not slide_id:
            raise InputError(f"{where}: neither slide_id nor path")
        return slide_id

    def _file(self, line: int, cells: dict[str, str], slide_id: str) -> Path | None:
        """The slide's file, or where it would be; None where it is missing but needed."""
        file, searched, near = _slide_file(self.path, cells, self.slides_dir, self.finder)
        if file is not None:
            return file
        if self.need_files:
            self.missing.append(f"line {line}: no slide {printable(slide_id)} (searched for {searched}{near})")
            return None
        if near:
            self.misspelt.append(f"slide {printable(slide_id)}{near}")
        return Path(self.slides_dir or self.path.parent) / (cells.get("path") or cells["slide_id"])

    def refuse_clashes(self) -> None:
        """Raises `InputError` for ids that differ in spelling only, and for a slide id that is another's case id."""
        source = str(self.path)
        for column, lines in (("slide_id", self.line_of_id), ("case_id", self.line_of_case)):
            refuse_clashes(column, {name: f"line {line}" for name, line in lines.items()}, source)
        folds = ((row.fold, row.where()) for row in self.rows if row.fold is not None)
        refuse_clashes("fold", first_places(folds), source)
        if ambiguous := next((row for row in self.without_case if row.case_id in self.line_of_case), None):
            raise InputError(
                f"{source}, line {ambiguous.line}: slide {ambiguous.slide_id} has no case_id, and line "
                f"{self.line_of_case[ambiguous.case_id]} has the patient {ambiguous.case_id}; fill in the case_id"
            )

    def refuse_missing_files(self, n_slides: int) -> None:
        """Raises `InputError` for the first slide without a file."""
        if self.missing:
            more = f"; {len(self.missing) - 1} more of {n_slides} slides lack a file too" if self.missing[1:] else ""
            raise InputError(f"{self.path}, {self.missing[0]}{more}; give --slides-dir, or a column path")

    def notes(self, has_case_column: bool) -> list[str]:
        """Notes on misspelt files, rows without a patient, and ids that a spreadsheet would run as formulas."""
        notes = []
        if self.misspelt:
            more = f" (and {len(self.misspelt) - 1} more)" if self.misspelt[1:] else ""
            notes.append(f"{self.path}: no file for {self.misspelt[0]}{more}: write the slide_id like the file name")
        if self.n_barcodes:
            notes.append(
                f"{self.path}: {self.n_barcodes} rows without case_id: the patient is that of the TCGA barcode"
            )
        if has_case_column and self.without_case:
            notes.append(
                f"{self.path}: {len(self.without_case)} rows without case_id: each counts as a separate patient"
            )
        names = [
            (text, row.where()) for row in self.rows for text in dict.fromkeys((row.case_id, row.slide_id, row.label))
        ]
        return [*notes, *formula_note(names, str(self.path))]


def _slide_file(
    csv_path: Path, cells: dict[str, str], slides_dir: str | Path | None, finder: SlideFinder
) -> tuple[Path | None, str, str]:
    """The slide's file (None: missing), the paths searched, and a similar name that exists."""
    if stated := cells.get("path"):
        folders = [csv_path.parent, *([Path(slides_dir)] if slides_dir is not None else [])]
        candidates = [folder / stated for folder in folders]
        file = existing_path(folders, stated)
        return (
            file,
            printable(" and ".join(map(str, candidates))),
            "" if file else next(filter(None, map(near_name, candidates)), ""),
        )
    slide_id = cells["slide_id"]
    file = finder.find(slide_id)
    near = finder.near(slide_id) if file is None else None
    searched = f"{printable(slide_stem(slide_id))}.svs, .tif, … in {finder.where()}"
    return file, searched, "" if near is None else f"; there is {near}"


def _refuse_one_dicom_slide_twice(path: Path, rows: Sequence[SlideRow], line_of_id: Mapping[str, int]) -> None:
    """Raises `InputError` for several files of one DICOM series, which would count one slide twice."""
    row_of_series: dict[tuple[str, str], SlideRow] = {}
    for index, key in dicom_keys([row.path for row in rows]).items():
        row = rows[index]
        if (other := row_of_series.setdefault(key, row)) is not row:
            raise InputError(
                f"{path}, line {line_of_id[row.slide_id]}: {row.path} is part of the DICOM slide of line "
                f"{line_of_id[other.slide_id]}; keep one row"
            )


def _split(path: Path, line: int, text: str) -> str | None:
    if is_missing_number(text):
        return None
    if (name := canonical(text).lower()) not in SPLIT_NAMES:
        raise InputError(f"{path}, line {line}: split is {text!r}; it must be train, val or test")
    return SPLIT_NAMES[name]


def _group_name(text: str) -> str | None:
    """Name of a fold or a site: 1.0 is 1."""
    return None if is_missing(text) else class_name(text)


def _all_or_none(path: Path, table: Table, key: str) -> None:
    empty = [line for line, cells in table if is_missing(cells.get(key, ""))]
    if empty and len(empty) < len(table):
        raise InputError(
            f"{path}, line {empty[0]}: no {key}, while {len(table) - len(empty)} other rows have one; "
            f"fill it in everywhere or nowhere"
        )
