"""Folds: which slides train, validate and test in each round of a cross-validation.

Read as published (HIPT: 10 repeated draws for subtyping; MCAT: a partition in 5 for survival), or made for a new
cohort by `longvit.data.new_folds`. A folder holds `splits_0.csv`, `splits_1.csv`, …, each with the columns train,
val and, if there is one, test, filled with slide ids or with case ids:

    ,train,val,test
    0,TCGA-A7-A6VV-01Z-00-DX1.07AE0E16,TCGA-A2-A0YH-01Z-00-DX1.FBA5E711,TCGA-BH-A202-01Z-00-DX1.8CECDB74
    1,TCGA-A2-A0T1-01Z-00-DX1.CD1E9C46,,

A fold says who is where; who has which label is in the cohort. `assign` brings the two together, counts and names
what one has and the other lacks, and refuses a fold in which a patient stands on two sides.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from longvit.data.cohort import SPLIT_NAMES, SPLITS, Cohort, SlideRow
from longvit.data.identity import first_places, is_missing, read_id, refuse_clashes, refuse_other_spelling
from longvit.data.table import number, read_table
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.slides.file_kind import slide_stem

_T = TypeVar("_T", int, str)
_FILE = re.compile(r"(?:splits?|folds?)_?(\d+)\.csv", re.IGNORECASE)
_NAMED = 3  # how many ids a message names before it counts the rest


@dataclass(frozen=True)
class Fold:
    """One round: ids of slides or of cases, as read."""

    name: str
    """`3` for `splits_3.csv`."""
    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    """Empty where the fold has none (survival as MCAT does it: val is the evaluation set)."""
    source: str = field(default="", compare=False)
    """The file it was read from, for messages."""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """id -> the line of the file where it stands first, for messages."""

    def ids(self, split: str) -> tuple[str, ...]:
        """The ids in `train`, `val` or `test`."""
        found: tuple[str, ...] = getattr(self, split)
        return found

    def where(self) -> str:
        """For messages: the file, or the fold's name."""
        return self.source or f"fold {self.name}"


@dataclass(frozen=True)
class Match:
    """Which rows of a cohort a fold means."""

    rows: dict[str, tuple[int, ...]]
    """Split -> indices into `Cohort.rows`, ascending. A slide that the fold lists in two splits is in both."""
    cases: dict[str, dict[str, str]]
    """Split -> {id as read: the case of its slides}; ids of no row are absent."""
    unknown: dict[str, tuple[str, ...]]
    """Split -> ids that no row of the cohort has: slides without a label, or without a row."""

    def shared_cases(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Patients with slides in two splits: (train, test) -> their names, sorted; only pairs that share some."""
        return _shared({split: set(self.cases[split].values()) for split in SPLITS})

    def shared_rows(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """The same for single slides, as indices of rows."""
        return _shared({split: set(self.rows[split]) for split in SPLITS})


def _shared(sides: dict[str, set[_T]]) -> dict[tuple[str, str], tuple[_T, ...]]:
    pairs = {(a, b): tuple(sorted(sides[a] & sides[b])) for a, b in combinations(SPLITS, 2)}
    return {pair: found for pair, found in pairs.items() if found}


def read_folds(source: str | Path | Sequence[str | Path]) -> tuple[Fold, ...]:
    """The folds of a folder (`splits_0.csv`, `splits_1.csv`, … in the order of their numbers) or of the files given.

    `splits_N_bool.csv` and `splits_N_descriptor.csv`, which often lie beside them, are not read. `InputError`: no
    such folder, none in it, a number left out, a table without the columns train and val or test, a split without
    any id, an id twice in one column, two ids there that differ in their spelling only.
    """
    if isinstance(source, (str, Path)):
        files = _files_of(Path(source)) if Path(source).is_dir() else [Path(source)]
    else:
        files = [Path(file) for file in source]
    if not files:
        raise InputError("no folds given")
    folds = tuple(_read_fold(file) for file in files)
    if twice := [name for name, n in Counter(fold.name for fold in folds).items() if n > 1]:
        raise InputError(f"{files[0].parent}: two folds are called {twice[0]!r}; rename a file")
    return folds


def _files_of(folder: Path) -> list[Path]:
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if found := _FILE.fullmatch(path.name):
            if (n := int(found[1])) in numbered:
                raise InputError(f"{path}: {numbered[n].name} is fold {n} too; remove one")
            numbered[n] = path
    if not numbered:
        raise InputError(f"{folder}: no folds in it (looked for splits_0.csv, splits_1.csv, …)")
    numbers = sorted(numbered)
    if absent := sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)):
        raise InputError(
            f"{folder}: fold {absent[0]} is missing between {numbers[0]} and {numbers[-1]}; "
            f"put its file there, or name the files to use"
        )
    return [numbered[n] for n in numbers]


def _read_fold(path: Path) -> Fold:
    columns, table = read_table(path)
    column_of: dict[str, str] = {}
    for column in columns:
        if (split := SPLIT_NAMES.get(column)) is not None:
            if split in column_of:
                raise InputError(f"{path}: two columns for {split} ({column_of[split]}, {column}); remove one")
            column_of[split] = column
    if "train" not in column_of or len(column_of) < 2:
        has = ", ".join(c or "(no name)" for c in columns)
        raise InputError(f"{path}: no folds: it needs the columns train and val or test (it has {has})")
    ids: dict[str, tuple[str, ...]] = {}
    line_of: dict[str, int] = {}
    for split, column in column_of.items():
        cells = [(line, row.get(column, "")) for line, row in table]
        found = [(line, text) for line, text in cells if not is_missing(text)]
        if found and all(text.lower() in ("true", "false") for _, text in found):
            raise InputError(f"{path}: column {column} holds true and false; give the table of ids (splits_N.csv)")
        if not found:
            raise InputError(f"{path}: column {column} is empty; fill it in or remove it")
        found = [(line, read_id(text, column, f"{path}, line {line}")) for line, text in found]
        lines: dict[str, int] = {}
        for line, text in found:
            line_of.setdefault(text, line)
            if (first := lines.setdefault(slide_stem(text), line)) != line:
                raise InputError(f"{path}, line {line}: {text} stands in {column} on line {first} already")
        refuse_clashes("ids", {stem: f"line {line}" for stem, line in lines.items()}, f"{path}, column {column}")
        ids[split] = tuple(text for _, text in found)
    name = re.sub(r"^(?:splits?|folds?)_?(?=.)", "", path.stem, flags=re.IGNORECASE)
    return Fold(name, ids["train"], ids.get("val", ()), ids.get("test", ()), str(path), line_of)


def write_folds(folder: str | Path, folds: Iterable[Fold]) -> tuple[Path, ...]:
    """Writes `splits_NAME.csv` per fold, in the format of `read_folds`; returns the paths.

    `InputError` where the folder holds further folds, which would be read as some of these.
    """
    folder, folds, paths = make_folder(folder), tuple(folds), []
    names = {f"splits_{fold.name}.csv" for fold in folds}
    if others := sorted(
        path.name for path in folder.iterdir() if _FILE.fullmatch(path.name) and path.name not in names
    ):
        raise InputError(f"{folder}: holds {others[0]} of other folds; remove it, or choose another folder")
    for fold in folds:
        splits = [split for split in SPLITS if fold.ids(split)]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["", *splits])
        columns = [fold.ids(split) for split in splits]
        for i in range(max(map(len, columns))):
            writer.writerow([i, *(column[i] if i < len(column) else "" for column in columns)])
        path = folder / f"splits_{fold.name}.csv"
        write_text(path, text.getvalue())
        paths.append(path)
    return tuple(paths)


def match(cohort: Cohort, fold: Fold) -> Match:
    """Finds the rows that a fold means. Whether a column holds slide ids or case ids is decided by what it matches.

    `InputError`: one column with slide ids and case ids, ids that are a slide of one patient and the name of
    another (or of one with more slides), an id that only its spelling tells from one of the cohort, a fold with no id
    of the cohort at all.
    """
    by_slide: dict[str, tuple[int, ...]] = {row.slide_id: (i,) for i, row in enumerate(cohort.rows)}
    by_case: dict[str, tuple[int, ...]] = {}
    for i, row in enumerate(cohort.rows):
        by_case[row.case_id] = (*by_case.get(row.case_id, ()), i)
    rows: dict[str, tuple[int, ...]] = {}
    cases: dict[str, dict[str, str]] = {}
    unknown: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, str] = {}
    for split in SPLITS:
        ids = fold.ids(split)
        of_slide = {text: by_slide[slide_stem(text)] for text in ids if slide_stem(text) in by_slide}
        of_case = {text: by_case[text] for text in ids if text in by_case}
        found = _one_kind(of_slide, of_case, f"{fold.where()}, {split}", cohort.source)
        kinds[split] = ("patient" if found is of_case else "slide") if found else ""
        rows[split] = tuple(sorted({i for indices in found.values() for i in indices}))
        cases[split] = {text: cohort.rows[indices[0]].case_id for text, indices in found.items()}
        unknown[split] = tuple(text for text in ids if text not in found)
    for split in SPLITS:
        _refuse_other_spelling(cohort, fold, unknown[split], [kinds[split]] if kinds[split] else ["slide", "patient"])
    if not any(rows.values()):
        theirs, ours = next(text for split in SPLITS for text in fold.ids(split)), cohort.rows[0]
        raise InputError(
            f"{fold.where()}: none of its ids is in {cohort.source} (it has {theirs}; there: slide {ours.slide_id}, "
            f"case {ours.case_id}); give the folds of this cohort"
        )
    return Match(rows, cases, unknown)


def _refuse_other_spelling(cohort: Cohort, fold: Fold, unknown: Sequence[str], kinds: Iterable[str]) -> None:
    """An id that seems to be of no row, while a slide or patient of the cohort is written nearly so, would be lost from
    this side of the fold, and its patient might stand on the other. `kinds`: what the other ids of its column are."""
    lines = {text: f"line {fold.lines[text]}" if text in fold.lines else "" for text in unknown}
    stems = {slide_stem(text): line for text, line in lines.items()}
    for kind in kinds:
        theirs = first_places((row.slide_id if kind == "slide" else row.case_id, row.where()) for row in cohort.rows)
        refuse_other_spelling("id", stems if kind == "slide" else lines, fold.where(), kind, theirs, cohort.source)


def _one_kind(
    of_slide: dict[str, tuple[int, ...]], of_case: dict[str, tuple[int, ...]], where: str, source: str
) -> dict[str, tuple[int, ...]]:
    only_slide = [text for text in of_slide if text not in of_case]
    only_case = [text for text in of_case if text not in of_slide]
    if only_slide and only_case:
        raise InputError(
            f"{where}: slide ids ({only_slide[0]}, {len(of_slide)} in all) and case ids ({only_case[0]}, "
            f"{len(of_case)} in all) in one column; write one kind"
        )
    if only_slide:
        return of_slide
    if only_case:
        return of_case
    if doubtful := [text for text in of_slide if of_slide[text] != of_case[text]]:
        raise InputError(
            f"{where}: {doubtful[0]} is a slide and a case of {source}, and they differ; rename the slide or the case"
        )
    return of_slide


def assign(cohort: Cohort, fold: Fold, *, allow_leak: bool = False) -> Cohort:
    """The cohort with a split in every row that the fold lists, None in the others; what is missing is in the notes.

    Notes: how many ids of the fold are in no row (with their first names; `match` has all), how many rows are in no
    split, a split that lacks a class. `InputError`: a patient in two splits (unless `allow_leak`), a slide in two
    splits, a split column in the CSV that says otherwise, a class without a slide in train; those of `match`.
    """
    found = match(cohort, fold)
    for (a, b), shared in found.shared_rows().items():
        slide = cohort.rows[shared[0]].slide_id
        raise InputError(f"{fold.where()}: slide {slide} is in {a} and in {b}{_more(len(shared))}; list it once")
    split_of: list[str | None] = [None] * len(cohort.rows)
    for split, indices in found.rows.items():
        for i in indices:
            if (stated := cohort.rows[i].split) not in (None, split):
                raise InputError(
                    f"{cohort.source}: slide {cohort.rows[i].slide_id} is in {stated}, but {fold.where()} has it in "
                    f"{split}; leave out the column split, or the folds"
                )
            split_of[i] = split
    if not allow_leak and (pairs := found.shared_cases()):
        (a, b), patients = next(iter(pairs.items()))
        total = len({case for cases in pairs.values() for case in cases})
        raise InputError(
            f"{fold.where()}: patient {patients[0]} is in {a} and in {b}{_more(total)}; "
            f"use patient-disjoint folds, or allow the leak"
        )
    assigned = cohort.with_splits(split_of, allow_leak=allow_leak)
    notes = [*_missing(found, fold, cohort), *_class_notes(assigned, fold)]
    return replace(assigned, notes=(*cohort.notes, *notes))


def _missing(found: Match, fold: Fold, cohort: Cohort) -> list[str]:
    notes = []
    if unknown := [text for split in SPLITS for text in found.unknown[split]]:
        listed = sum(len(fold.ids(split)) for split in SPLITS)
        parts = ", ".join(f"{s} {len(found.unknown[s])}" for s in SPLITS if found.unknown[s])
        notes.append(
            f"{fold.where()}: {len(unknown)} of {listed} ids ({parts}) have no row with a label in {cohort.source} "
            f"and drop out: {_names(unknown)}"
        )
    used = {i for indices in found.rows.values() for i in indices}
    if unused := [row.slide_id for i, row in enumerate(cohort.rows) if i not in used]:
        notes.append(f"{cohort.source}: {len(unused)} slides are not in {fold.where()}: {_names(unused)}")
    return notes


def _class_notes(cohort: Cohort, fold: Fold) -> list[str]:
    """A class absent from train cannot be learned; from val or test, it can only not be measured."""
    notes = []
    for split in SPLITS:
        rows = cohort.split(split)
        if not rows and split == "train":
            raise InputError(f"{fold.where()}: no slide of {cohort.source} is in train; add rows or choose other folds")
        absent = [label for label in cohort.classes if label not in {row.label for row in rows}]
        if absent and split == "train":
            raise InputError(f"{fold.where()}: no slide of class {absent[0]!r} in train, it cannot be learned")
        if absent and rows:
            notes.append(f"{fold.where()}: no slide of class {', '.join(absent)} in {split}")
    return notes


def require_split(cohort: Cohort, split: str, why: str) -> tuple[SlideRow, ...]:
    """The rows of a split; where there are none, an `InputError` that says what needs them (`why`: "to choose …")."""
    rows = cohort.split(split)
    if not rows:
        name = {"train": "training", "val": "validation", "test": "test"}[split]
        raise InputError(
            f"{cohort.source}: no {name} slides, which are needed {why}; add some to the split column or to the folds"
        )
    return rows


def folds_of_column(cohort: Cohort) -> tuple[Fold, ...]:
    """The column `fold` of the CSV as folds: each value is once the test set, all others train; there is no val.

    `InputError` where there is no such column or only one value in it.
    """
    values = {row.fold for row in cohort.rows if row.fold is not None}
    if len(values) < 2:
        raise InputError(f"{cohort.source}: column fold has {len(values)} values; at least two folds are needed")
    numeric = all(number(value) is not None for value in values)
    return tuple(
        Fold(
            name,
            train=tuple(row.slide_id for row in cohort.rows if row.fold != name),
            test=tuple(row.slide_id for row in cohort.rows if row.fold == name),
            source=f"{cohort.source}, fold {name}",
        )
        for name in sorted(values, key=(lambda v: (float(v), v)) if numeric else str)
    )


def fold_of_splits(cohort: Cohort) -> Fold:
    """The column `split` of the CSV as the one fold that it is."""
    ids = {split: tuple(row.slide_id for row in cohort.split(split)) for split in SPLITS}
    return Fold("split", ids["train"], ids["val"], ids["test"], f"{cohort.source}, column split")


def _names(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (f", … and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")


def _more(total: int) -> str:
    return f", and {total - 1} more" if total > 1 else ""
