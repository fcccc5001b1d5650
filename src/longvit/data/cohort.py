"""Cohort table of a study: one CSV row per slide, with its patient and its label.

Reading is tolerant of form: ids with or without extension, BOM, spaces, `;` or tabs, column names in any case. It is
strict about meaning. Anything that would make a result wrong is one line of `InputError`, never a guess. Examples are a
patient in two splits, a row without a label and two spellings of one id. The module `identity.py` decides which texts
mean one patient, slide or class, and which mean none.

    case_id,slide_id,label,path,split
    P01,P01_a,adenocarcinoma,scans/P01_a.svs,train
    P02,P02_a,healthy,scans/P02_a.svs,test

Only `label` and one of `slide_id`, `path` are needed. Further columns that are read: `mpp` (µm per pixel, where the
file does not state it), `split` (train, val, test), `fold`, `site`. A task finds all others in
`SlideRow.extra_columns`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from longvit.data.identity import (
    canonical,
    class_name,
    first_places,
    formula_note,
    is_missing,
    is_missing_number,
    read_classes,
    read_id,
    refuse_clashes,
)
from longvit.data.slide_files import SlideFinder, dicom_keys, existing_path, last_part
from longvit.data.table import column_name, number, read_mpp, read_table
from longvit.errors import InputError
from longvit.slides.file_kind import near_name, slide_stem
from longvit.slides.slide_name import fault_of_name, printable

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "tune": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class SlideRow:
    """One slide of a cohort."""

    case_id: str
    """The patient (or specimen); slides of one case are never in two splits."""
    slide_id: str
    """Name of the slide, unique in its cohort, without the file's extension."""
    label: str
    """Class, as written in the CSV (but 1.0 is 1, see `identity.class_name`); "" where the cohort has no label
    column."""
    path: Path
    """File or folder of the slide; it existed when the cohort was read (see `need_files`)."""
    mpp: float | None = None
    """µm per pixel at level 0 where the CSV states it; None leaves it to the file."""
    split: str | None = None
    """`train`, `val`, `test`, or None where the CSV has no such column."""
    fold: str | None = None
    """Cross-validation fold, read like a class."""
    site: str | None = None
    """Hospital or scanner, read like a class."""
    extra_columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """All cells of the CSV's row by column name (lower case, `_` for spaces and `-`), as text without outer spaces."""
    line: int | None = field(default=None, compare=False, repr=False)
    """Line of the CSV, for messages."""

    def where(self) -> str:
        """`line 3`, or "" where the row was not read from a CSV."""
        return "" if self.line is None else f"line {self.line}"


@dataclass(frozen=True)
class Cohort:
    """Slides with labels, in the order of the CSV; `notes` lists the assumptions made while reading."""

    rows: tuple[SlideRow, ...]
    classes: tuple[str, ...]
    """Sorted (by number where all are numbers), or in the order of `keep`; of two classes the second is the positive
    one. Empty where the cohort has no label column."""
    source: str = "cohort"
    """Origin of the cohort, for messages."""
    notes: tuple[str, ...] = ()
    """Assumptions where the CSV is silent, one sentence each; print them."""

    def split(self, name: str) -> tuple[SlideRow, ...]:
        """Rows of `train`, `val` or `test`."""
        return tuple(row for row in self.rows if row.split == name)

    def class_index(self, row: SlideRow) -> int:
        """Index of the row's label in `classes`."""
        return self.classes.index(row.label)

    def with_splits(self, split_of: Sequence[str | None], *, allow_leak: bool = False) -> Cohort:
        """The cohort with one split name per row (or None: in no split).

        A patient in two splits is an `InputError`, unless `allow_leak`.
        """
        assert len(split_of) == len(self.rows)
        rows = tuple(replace(row, split=split) for row, split in zip(self.rows, split_of, strict=True))
        if not allow_leak:
            _refuse_leak(rows, "split", self.source)
        return replace(self, rows=rows)

    def fingerprint(self) -> str:
        """Hash of the patients, slides, labels and splits of the cohort (not of pixels or folders)."""
        lines = sorted(f"{row.case_id}\t{row.slide_id}\t{row.label}\t{row.split}\t{row.mpp}" for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def summary(self) -> str:
        """One line: slides, patients, classes, splits, each with its count."""
        cases = len({row.case_id for row in self.rows})
        parts = [f"{len(self.rows)} slides of {cases} patients"]
        if self.classes:
            parts.append(", ".join(f"{label} {sum(row.label == label for row in self.rows)}" for label in self.classes))
        splits = [f"{name} {len(self.split(name))}" for name in SPLITS if self.split(name)]
        return "; ".join([*parts, ", ".join(splits)] if splits else parts)


def read_cohort(
    csv_path: str | Path,
    *,
    label_column: str | None = "label",
    keep: Sequence[str] | None = None,
    slides_dir: str | Path | None = None,
    need_files: bool = True,
    need_labels: bool = True,
    allow_leak: bool = False,
) -> Cohort:
    """Reads a cohort table, .csv or .csv.zip, and finds every slide's file.

    - `label_column`: column of the class; None where the task has none (every label is then "").
    - `keep`: classes to use, in order; rows of other classes or without one are left out, which a note counts.
    - `slides_dir`: folder to search for slides without a `path`, to any depth, before the CSV's own folder. A `path` is
      relative to the CSV, or else to `slides_dir`.
    - `need_files=False`: a slide without a file stays, with its expected path, to check a table before the slides
      exist.
    - `need_labels=False`: a row without a label is left out, and a note counts and names it.
    - `allow_leak`: a patient may be in two splits or folds.

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
    columns, table = read_table(path)
    label_key = None if label_column is None else _label_key(path, columns, label_column)
    notes = _column_notes(path, columns)
    if label_key is not None and keep is not None:
        keep = [class_name(label) for label in keep]
    labels = [""] * len(table)
    if label_key is not None:
        table, labels = _labelled(path, table, label_key, keep, need_labels, notes)
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
        _refuse_leak(cohort_table.rows, "split", str(path))
        _refuse_leak(cohort_table.rows, "fold", str(path))
    notes += cohort_table.notes("case_id" in columns)
    classes = () if label_key is None else _classes(labels) if keep is None else tuple(keep)
    return Cohort(tuple(cohort_table.rows), classes, str(path), tuple(notes))


def _column_notes(path: Path, columns: list[str]) -> list[str]:
    """Notes on missing columns of ids. Raises `InputError` where no column names the slides."""
    if "slide_id" not in columns and "path" not in columns:
        raise InputError(f"{path}: no column 'slide_id' or 'path'{_has(columns)}")
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
        if has_case_column and self.without_case:
            notes.append(
                f"{self.path}: {len(self.without_case)} rows without case_id: each counts as a separate patient"
            )
        names = [
            (text, row.where()) for row in self.rows for text in dict.fromkeys((row.case_id, row.slide_id, row.label))
        ]
        return [*notes, *formula_note(names, str(self.path))]


def _label_key(path: Path, columns: list[str], label_column: str) -> str:
    key = column_name(label_column)
    if key in columns:
        return key
    near = difflib.get_close_matches(key, columns, n=1, cutoff=0.4)
    hint = f"; did you mean --label-column {near[0]}?" if near else "; name it with --label-column"
    raise InputError(f"{path}: no column {label_column!r}{_has(columns)}{hint}")


def _has(columns: list[str]) -> str:
    names = [column or "(no name)" for column in columns]
    if len(names) > 20:  # tables of genes have thousands
        names = [*names[:20], f"… and {len(names) - 20} more"]
    return f" (it has {', '.join(names)})"


_Table = list[tuple[int, dict[str, str]]]


def _labelled(
    path: Path, table: _Table, key: str, keep: Sequence[str] | None, need_labels: bool, notes: list[str]
) -> tuple[_Table, list[str]]:
    """Rows that are kept, with the class of each; dropped rows and decisions are added to the notes."""
    classes = read_classes([(cells.get(key, ""), f"line {line}") for line, cells in table], key, str(path), keep)
    notes += classes.notes
    if keep is not None:
        names = [name or "(no label)" for name in classes.names]
        _note_other_classes(path, names, key, keep, notes)
        return _without_none(table, [name if name in keep else None for name in names])
    without = [row for row, name in zip(table, classes.names, strict=True) if name is None]
    if without and need_labels:
        more = f" and {len(without) - 1} more" if without[1:] else ""
        raise InputError(
            f"{path}, line {without[0][0]}{more}: no {key}{classes.missing_words()}; fill it in or remove the row"
        )
    if len(without) == len(table):
        raise InputError(f"{path}: no row has a {key}{classes.missing_words()}; choose another --label-column")
    if without:
        ids = ", ".join(cells.get("slide_id") or cells.get("path", "") for _, cells in without)
        notes.append(f"{path}: {len(without)} of {len(table)} rows have no {key} and drop out: {ids}")
    table, labels = _without_none(table, classes.names)
    _refuse_unusable_classes(path, table, labels, key, classes.missing_words())
    return table, labels


def _without_none(table: _Table, names: Sequence[str | None]) -> tuple[_Table, list[str]]:
    kept = [(row, name) for row, name in zip(table, names, strict=True) if name is not None]
    return [row for row, _ in kept], [name for _, name in kept]


def _note_other_classes(path: Path, names: Sequence[str], key: str, keep: Sequence[str], notes: list[str]) -> None:
    """Notes the number of rows of each class that is not in `keep`."""
    counts = Counter(names)
    if len(set(keep)) < max(2, len(keep)):
        raise InputError(f"classes to keep: {', '.join(keep)}: name at least two, each once")
    if absent := [label for label in keep if label not in counts]:
        raise InputError(f"{path}: no row has the {key} {absent[0]!r} (it has {', '.join(sorted(counts))})")
    if dropped := {label: counts[label] for label in sorted(counts) if label not in keep}:
        listed = ", ".join(f"{label} {n}" for label, n in dropped.items())
        notes.append(
            f"{path}: {sum(dropped.values())} of {len(names)} rows are of other classes and left out ({listed})"
        )


def _refuse_unusable_classes(path: Path, table: _Table, labels: Sequence[str], key: str, beside: str) -> None:
    """Raises `InputError` for measurements instead of classes, one class only, or as many classes as rows."""
    numbers = [number(label) for label in labels]
    if all(number is not None for number in numbers):
        fractional = [i for i, value in enumerate(numbers) if value is not None and not value.is_integer()]
        if fractional:
            raise InputError(
                f"{path}, line {table[fractional[0]][0]}: {key} is {labels[fractional[0]]}: a measurement, not a "
                f"class; choose another --label-column, or write classes"
            )
    classes = set(labels)
    if len(classes) == 1:
        raise InputError(f"{path}: every row has the {key} {labels[0]!r}{beside}; at least two classes are needed")
    if len(classes) == len(labels) > 2:
        raise InputError(f"{path}: {key} is different in all {len(labels)} rows; choose another --label-column")


def _classes(labels: Iterable[str]) -> tuple[str, ...]:
    names = set(labels)
    numeric = all(number(name) is not None for name in names)
    return tuple(sorted(names, key=(lambda n: (float(n), n)) if numeric else str))


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


def _all_or_none(path: Path, table: list[tuple[int, dict[str, str]]], key: str) -> None:
    empty = [line for line, cells in table if is_missing(cells.get(key, ""))]
    if empty and len(empty) < len(table):
        raise InputError(
            f"{path}, line {empty[0]}: no {key}, while {len(table) - len(empty)} other rows have one; "
            f"fill it in everywhere or nowhere"
        )


def _refuse_leak(rows: Iterable[SlideRow], key: str, source: str) -> None:
    """Raises `InputError` for a patient with slides in two splits (or folds), which makes every metric look too
    good."""
    values_of_case: dict[str, set[str]] = {}
    for row in rows:
        if (value := getattr(row, key)) is not None:
            values_of_case.setdefault(row.case_id, set()).add(value)
    leaks = {case: sorted(values) for case, values in values_of_case.items() if len(values) > 1}
    if leaks:
        case, values = next(iter(leaks.items()))
        more = f", and {len(leaks) - 1} more patients too" if len(leaks) > 1 else ""
        raise InputError(f"{source}: patient {case} is in two {key}s ({', '.join(values)}){more}; put each in one")
