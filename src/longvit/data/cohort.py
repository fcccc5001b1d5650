"""The manifest of a study: one CSV row per slide, with the patient it comes from and its label.

Tolerant in what it reads (ids with or without extension, BOM, spaces, `;` or tabs, column names in any case),
strict in what it means: whatever would make a result wrong (a patient on both sides of a split, a row without a
label, a slide that is not there, two spellings of one id) is one line of `InputError`, never a guess. Which texts mean
one patient, slide or class, and which mean nobody, is decided in `identity.py`.

    case_id,slide_id,label,path,split
    P01,P01_a,adenocarcinoma,scans/P01_a.svs,train
    P02,P02_a,healthy,scans/P02_a.svs,test

Only `label` and one of `slide_id`, `path` are needed. Further columns that are read: `mpp` (µm per pixel, where
the file does not say), `split` (train, val, test), `fold`, `site`. A task finds all others in `SlideRow.extra_columns`.
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
from longvit.data.slide_files import SlideFinder, dicom_keys, existing_path, last_part, slide_stem
from longvit.data.table import column_name, number, read_mpp, read_table
from longvit.errors import InputError
from longvit.slides.file_kind import near_name
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
    """The patient (or specimen): slides of one case never stand on two sides of a split."""
    slide_id: str
    """The slide's name, unique in its cohort, without the file's extension."""
    label: str
    """The class, as written in the CSV (but 1.0 is 1, see `identity.class_name`); "" where the cohort was read without
    a label column."""
    path: Path
    """The slide's file or folder; it was there when the cohort was read (see `need_files`)."""
    mpp: float | None = None
    """µm per pixel at level 0 where the CSV states it; None leaves it to the file."""
    split: str | None = None
    """`train`, `val`, `test`, or None where the CSV has no column of that name."""
    fold: str | None = None
    """The cross-validation fold, read like a class."""
    site: str | None = None
    """The hospital or scanner, read like a class."""
    extra_columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """All cells of the CSV's row by column name (lower case, `_` for spaces and `-`), as text without outer spaces."""
    line: int | None = field(default=None, compare=False, repr=False)
    """Where it stands in the CSV, for messages."""

    def where(self) -> str:
        """`line 3`, or "" where it was not read from a CSV."""
        return "" if self.line is None else f"line {self.line}"


@dataclass(frozen=True)
class Cohort:
    """Slides with labels, in the order of the CSV; what was assumed while reading stands in `notes`."""

    rows: tuple[SlideRow, ...]
    classes: tuple[str, ...]
    """Sorted (by number where all are numbers), or in the order that `keep` gave; of two classes the second is the
    positive one. Empty where the cohort was read without a label column."""
    source: str = "cohort"
    """Where it came from, for messages."""
    notes: tuple[str, ...] = ()
    """What was assumed where the CSV says nothing, one sentence each; print them."""

    def split(self, name: str) -> tuple[SlideRow, ...]:
        """The rows of `train`, `val` or `test`."""
        return tuple(row for row in self.rows if row.split == name)

    def class_index(self, row: SlideRow) -> int:
        """The label as an index into `classes`."""
        return self.classes.index(row.label)

    def with_splits(self, split_of: Sequence[str | None], *, allow_leak: bool = False) -> Cohort:
        """The same cohort with one split name (or None: in none of them) per row.

        A patient in two splits is an `InputError`, unless `allow_leak`.
        """
        assert len(split_of) == len(self.rows)
        rows = tuple(replace(row, split=split) for row, split in zip(self.rows, split_of, strict=True))
        if not allow_leak:
            _refuse_leak(rows, "split", self.source)
        return replace(self, rows=rows)

    def fingerprint(self) -> str:
        """A hash of who is in the cohort, where and with which label (not of the pixels, not of the folders)."""
        lines = sorted(f"{r.case_id}\t{r.slide_id}\t{r.label}\t{r.split}\t{r.mpp}" for r in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def summary(self) -> str:
        """One line: slides, patients, classes, splits, each with its count."""
        cases = len({row.case_id for row in self.rows})
        parts = [f"{len(self.rows)} slides of {cases} patients"]
        if self.classes:
            parts.append(", ".join(f"{c} {sum(r.label == c for r in self.rows)}" for c in self.classes))
        splits = [f"{s} {len(self.split(s))}" for s in SPLITS if self.split(s)]
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
    """Reads a manifest, .csv or .csv.zip, and finds every slide's file.

    `label_column`: which column holds the class; None where the task has none (every label is then ""). `keep`: the
    classes to use, in their order; rows of other classes or without one are left out, which a note counts.
    `slides_dir`: where slides without a `path` are looked for, to any depth, before that is done beside the CSV. A
    `path` is relative to the CSV, or else to `slides_dir`. `need_files=False`: a slide without a file stays, with the
    path where it would be (to check a manifest before the slides are there). `need_labels=False`: a row without a label
    is left out, which a note counts and names. `allow_leak`: a patient may be in two splits or folds.

    Raises `InputError` in one line (file, row, way out) for: no such file, an empty file, no label column, a
    row without label, labels that are no classes, one class only, a slide without a file, a slide listed twice, two
    slides, patients, classes or folds that only their spelling tells apart, a patient in two splits or two folds, a
    split that is neither train, val nor test, an mpp that is no positive number, a class to keep that no row has.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> len(cohort.rows), cohort.classes
    (20, ('pale', 'stained'))
    """
    path = Path(csv_path)
    if slides_dir is not None and not Path(slides_dir).is_dir():
        raise InputError(f"--slides-dir {slides_dir}: no such folder")
    columns, table = read_table(path)
    notes: list[str] = []
    label_key = None if label_column is None else _label_key(path, columns, label_column)
    if "slide_id" not in columns and "path" not in columns:
        raise InputError(f"{path}: no column 'slide_id' or 'path'{_has(columns)}")
    if "slide_id" not in columns:
        notes.append(f"{path}: no column 'slide_id': the name of the file in 'path' is taken")
    if "case_id" not in columns:
        notes.append(f"{path}: no column 'case_id': every slide counts as a patient of its own")

    if label_key is not None and keep is not None:
        keep = [class_name(label) for label in keep]
    labels = [""] * len(table)
    if label_key is not None:
        table, labels = _labelled(path, table, label_key, keep, need_labels, notes)
    finder = SlideFinder([*([slides_dir] if slides_dir is not None else []), path.parent])
    rows: list[SlideRow] = []
    missing: list[str] = []
    misspelt: list[str] = []
    line_of_id: dict[str, int] = {}
    line_of_case: dict[str, int] = {}
    line_of_path: dict[str, int] = {}
    own_case: list[SlideRow] = []
    for (line, cells), label in zip(table, labels, strict=True):
        where = f"{path}, line {line}"
        given = read_id(cells.get("slide_id", ""), "slide_id", where)
        slide_id = slide_stem(given or canonical(last_part(cells.get("path", ""))))
        if not slide_id:
            raise InputError(f"{where}: neither slide_id nor path")
        if slide_id in line_of_id:
            raise InputError(f"{where}: slide {slide_id} stands on line {line_of_id[slide_id]} already; keep one row")
        line_of_id[slide_id] = line
        case_id = read_id(cells.get("case_id", ""), "case_id", where)
        if case_id:
            line_of_case.setdefault(case_id, line)
        file, looked, near = _slide_file(path, cells, slides_dir, finder)
        if file is None and need_files:
            missing.append(f"line {line}: no slide {printable(slide_id)} (looked for {looked}{near})")
            continue
        if file is None and near:
            misspelt.append(f"slide {printable(slide_id)}{near}")
        file = file or Path(slides_dir or path.parent) / (cells.get("path") or cells["slide_id"])
        if (fault := fault_of_name(slide_id, str(file))) is not None:
            raise InputError(f"{path}, line {line}: {printable(str(file))}: {fault}")
        if (real := os.path.realpath(file)) in line_of_path:
            raise InputError(
                f"{path}, line {line}: {file} is the file of line {line_of_path[real]} already; keep one row"
            )
        line_of_path[real] = line
        rows.append(
            SlideRow(
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
        )
        if not case_id:
            own_case.append(rows[-1])
    for what, lines in (("slide_id", line_of_id), ("case_id", line_of_case)):
        refuse_clashes(what, {name: f"line {line}" for name, line in lines.items()}, str(path))
    refuse_clashes("fold", first_places((row.fold, row.where()) for row in rows if row.fold is not None), str(path))
    if taken := next((row for row in own_case if row.case_id in line_of_case), None):
        raise InputError(
            f"{path}, line {taken.line}: slide {taken.slide_id} has no case_id, and line {line_of_case[taken.case_id]} "
            f"has the patient {taken.case_id}; fill in the case_id"
        )
    if missing:
        more = f"; {len(missing) - 1} more of {len(table)} slides lack a file too" if missing[1:] else ""
        raise InputError(f"{path}, {missing[0]}{more}; give --slides-dir, or a column path")
    if misspelt:
        more = f" (and {len(misspelt) - 1} more)" if misspelt[1:] else ""
        notes.append(f"{path}: no file for {misspelt[0]}{more}: write the slide_id as the file is called")
    if need_files:
        _refuse_one_dicom_slide_twice(path, rows, line_of_id)
    _all_or_none(path, table, "split")
    _all_or_none(path, table, "fold")
    if not allow_leak:
        _refuse_leak(rows, "split", str(path))
        _refuse_leak(rows, "fold", str(path))
    if "case_id" in columns and own_case:
        notes.append(f"{path}: {len(own_case)} rows without case_id: each counts as a patient of its own")
    named = [(text, row.where()) for row in rows for text in dict.fromkeys((row.case_id, row.slide_id, row.label))]
    notes += formula_note(named, str(path))
    classes = () if label_key is None else _classes(labels) if keep is None else tuple(keep)
    return Cohort(tuple(rows), classes, str(path), tuple(notes))


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
    """The rows that take part, with the class of each; how many do not, and what was decided, goes into the notes."""
    read = read_classes([(cells.get(key, ""), f"line {line}") for line, cells in table], key, str(path), keep)
    notes += read.notes
    if keep is not None:
        names = [name or "(no label)" for name in read.names]
        _count_others(path, names, key, keep, notes)
        return _of(table, [name if name in keep else None for name in names])
    without = [row for row, name in zip(table, read.names, strict=True) if name is None]
    if without and need_labels:
        more = f" and {len(without) - 1} more" if without[1:] else ""
        raise InputError(
            f"{path}, line {without[0][0]}{more}: no {key}{read.missing_words()}; fill it in or remove the row"
        )
    if len(without) == len(table):
        raise InputError(f"{path}: no row has a {key}{read.missing_words()}; choose another --label-column")
    if without:
        ids = ", ".join(cells.get("slide_id") or cells.get("path", "") for _, cells in without)
        notes.append(f"{path}: {len(without)} of {len(table)} rows have no {key} and drop out: {ids}")
    table, labels = _of(table, read.names)
    _refuse_no_classes(path, table, labels, key, read.missing_words())
    return table, labels


def _of(table: _Table, names: Sequence[str | None]) -> tuple[_Table, list[str]]:
    both = [(row, name) for row, name in zip(table, names, strict=True) if name is not None]
    return [row for row, _ in both], [name for _, name in both]


def _count_others(path: Path, names: Sequence[str], key: str, keep: Sequence[str], notes: list[str]) -> None:
    """How many rows of each class that is not in `keep` are left out."""
    found = Counter(names)
    if len(set(keep)) < max(2, len(keep)):
        raise InputError(f"classes to keep: {', '.join(keep)}: name at least two, each once")
    if absent := [label for label in keep if label not in found]:
        raise InputError(f"{path}: no row has the {key} {absent[0]!r} (it has {', '.join(sorted(found))})")
    if out := {label: found[label] for label in sorted(found) if label not in keep}:
        listed = ", ".join(f"{label} {n}" for label, n in out.items())
        notes.append(f"{path}: {sum(out.values())} of {len(names)} rows are of other classes and left out ({listed})")


def _refuse_no_classes(path: Path, table: _Table, labels: Sequence[str], key: str, beside: str) -> None:
    """Measurements instead of classes, one class only, or as many as rows."""
    numbers = [number(label) for label in labels]
    if all(number is not None for number in numbers):
        broken = [i for i, n in enumerate(numbers) if n is not None and not n.is_integer()]
        if broken:
            raise InputError(
                f"{path}, line {table[broken[0]][0]}: {key} is {labels[broken[0]]}: a measurement, not a class; "
                f"choose another --label-column, or write classes"
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
    """The slide's file (None: not there), what was looked for, and what is there under nearly the same name."""
    if given := cells.get("path"):
        folders = [csv_path.parent, *([Path(slides_dir)] if slides_dir is not None else [])]
        tried = [folder / given for folder in folders]
        file = existing_path(folders, given)
        return (
            file,
            printable(" and ".join(map(str, tried))),
            "" if file else next(filter(None, map(near_name, tried)), ""),
        )
    slide_id = cells["slide_id"]
    file = finder.find(slide_id)
    near = finder.near(slide_id) if file is None else None
    looked = f"{printable(slide_stem(slide_id))}.svs, .tif, … in {finder.where()}"
    return file, looked, "" if near is None else f"; there is {near}"


def _refuse_one_dicom_slide_twice(path: Path, rows: Sequence[SlideRow], line_of_id: Mapping[str, int]) -> None:
    """Several files of one DICOM series would be one slide, counted twice."""
    first: dict[tuple[str, str], SlideRow] = {}
    for index, key in dicom_keys([row.path for row in rows]).items():
        row = rows[index]
        if (other := first.setdefault(key, row)) is not row:
            raise InputError(
                f"{path}, line {line_of_id[row.slide_id]}: {row.path} is of the DICOM slide of line "
                f"{line_of_id[other.slide_id]} already; keep one row"
            )


def _split(path: Path, line: int, text: str) -> str | None:
    if is_missing_number(text):
        return None
    if (name := canonical(text).lower()) not in SPLIT_NAMES:
        raise InputError(f"{path}, line {line}: split is {text!r}; it must be train, val or test")
    return SPLIT_NAMES[name]


def _group_name(text: str) -> str | None:
    """A fold or a site: 1.0 is 1."""
    return None if is_missing(text) else class_name(text)


def _all_or_none(path: Path, table: list[tuple[int, dict[str, str]]], key: str) -> None:
    empty = [line for line, cells in table if is_missing(cells.get(key, ""))]
    if empty and len(empty) < len(table):
        raise InputError(
            f"{path}, line {empty[0]}: no {key}, while {len(table) - len(empty)} other rows have one; "
            f"fill it in everywhere or nowhere"
        )


def _refuse_leak(rows: Iterable[SlideRow], key: str, source: str) -> None:
    """A patient whose slides stand in two splits (or folds) makes every figure look better than it is."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        if (value := getattr(row, key)) is not None:
            seen.setdefault(row.case_id, set()).add(value)
    leaks = {case: sorted(values) for case, values in seen.items() if len(values) > 1}
    if leaks:
        case, values = next(iter(leaks.items()))
        more = f", and {len(leaks) - 1} more patients too" if len(leaks) > 1 else ""
        raise InputError(f"{source}: patient {case} is in two {key}s ({', '.join(values)}){more}; put each in one")
