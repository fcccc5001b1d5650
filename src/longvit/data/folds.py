"""Folds: training, validation and test slides of each round of a cross-validation.

Folds are read as published (HIPT: 10 repeated draws for subtyping; MCAT: a partition in 5 for survival), or made for a
new cohort by `longvit.data.new_folds`. A folder holds `splits_0.csv`, `splits_1.csv`, …, each with the columns train,
val and, if there is one, test, filled with slide ids or with case ids:

    ,train,val,test
    0,TCGA-A7-A6VV-01Z-00-DX1.07AE0E16,TCGA-A2-A0YH-01Z-00-DX1.FBA5E711,TCGA-BH-A202-01Z-00-DX1.8CECDB74
    1,TCGA-A2-A0T1-01Z-00-DX1.CD1E9C46,,

A fold lists ids per split; the labels are in the cohort. `assign` combines the two and notes ids that only one of them
has. It refuses a fold in which a patient is in two splits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, zip_longest
from pathlib import Path
from typing import TypeVar

from longvit.data.cohort import SPLIT_NAMES, SPLITS, Cohort, SlideRow
from longvit.data.identity import first_places, is_missing, read_id, refuse_clashes, refuse_other_spelling
from longvit.data.table import number, read_table
from longvit.errors import InputError
from longvit.files import make_folder, write_csv
from longvit.slides.file_kind import slide_stem

_T = TypeVar("_T", int, str)
_FILE = re.compile(r"(?:splits?|folds?)_?(\d+)\.csv", re.IGNORECASE)
_N_NAMED = 3  # ids that a message names before it counts the others


@dataclass(frozen=True)
class Fold:
    """One round of a cross-validation: ids of slides or of cases, as read.

    >>> from longvit.data.folds import Fold
    >>> Fold("3", train=("s01", "s02"), test=("s03",)).ids("test")
    ('s03',)
    """

    name: str
    """`3` for `splits_3.csv`."""
    train: tuple[str, ...]
    """Ids to train on."""
    val: tuple[str, ...] = ()
    """Ids to observe the training with; may be empty."""
    test: tuple[str, ...] = ()
    """Empty where the fold has none (survival as in MCAT: val is the evaluation set)."""
    source: str = field(default="", compare=False)
    """File of the fold, for messages."""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """id -> first line of the file that has it, for messages."""

    def ids(self, split: str) -> tuple[str, ...]:
        """Ids in `train`, `val` or `test`."""
        ids: tuple[str, ...] = getattr(self, split)
        return ids

    def where(self) -> str:
        """The file, or the fold's name, for messages."""
        return self.source or f"fold {self.name}"


@dataclass(frozen=True)
class Match:
    """Rows of a cohort that a fold lists."""

    rows: dict[str, tuple[int, ...]]
    """Split -> indices into `Cohort.rows`, ascending. A slide that the fold lists in two splits is in both."""
    cases: dict[str, dict[str, str]]
    """Split -> {id as read: the case of its slides}; ids without a row are absent."""
    unknown: dict[str, tuple[str, ...]]
    """Split -> ids without a row in the cohort, since the slide has no label or no row."""

    def shared_cases(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Patients with slides in two splits: (train, test) -> their names, sorted; only pairs that share some."""
        return _shared({split: set(self.cases[split].values()) for split in SPLITS})

    def shared_rows(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Slides in two splits, as indices of rows; pairs as in `shared_cases`."""
        return _shared({split: set(self.rows[split]) for split in SPLITS})


def _shared(members: dict[str, set[_T]]) -> dict[tuple[str, str], tuple[_T, ...]]:
    pairs = {(a, b): tuple(sorted(members[a] & members[b])) for a, b in combinations(SPLITS, 2)}
    return {pair: common for pair, common in pairs.items() if common}


def read_folds(source: str | Path | Sequence[str | Path]) -> tuple[Fold, ...]:
    """Folds of a folder (`splits_0.csv`, `splits_1.csv`, … in numeric order) or of the given files.

    `splits_N_bool.csv` and `splits_N_descriptor.csv`, which are often beside them, are not read. Raises `InputError`
    for no such folder, no folds, a missing number, and a table without the columns train and val or test. It also
    refuses a split without ids, an id twice in one column, and two ids there that differ in spelling only.
    """
    if isinstance(source, (str, Path)):
        files = _files_of(Path(source)) if Path(source).is_dir() else [Path(source)]
    else:
        files = [Path(file) for file in source]
    if not files:
        raise InputError("no folds given")
    folds = tuple(_read_fold(file) for file in files)
    if duplicates := [name for name, n in Counter(fold.name for fold in folds).items() if n > 1]:
        raise InputError(f"{files[0].parent}: two folds are called {duplicates[0]!r}; rename a file")
    return folds


def _files_of(folder: Path) -> list[Path]:
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := _FILE.fullmatch(path.name):
            if (n := int(match[1])) in numbered:
                raise InputError(f"{path}: {numbered[n].name} is fold {n} too; remove one")
            numbered[n] = path
    if not numbered:
        raise InputError(f"{folder}: no folds in it (searched for splits_0.csv, splits_1.csv, …)")
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
        raise InputError(f"{path}: not a table of folds: it needs the columns train and val or test (it has {has})")
    ids: dict[str, tuple[str, ...]] = {}
    line_of: dict[str, int] = {}
    for split, column in column_of.items():
        cells = [(line, row.get(column, "")) for line, row in table]
        cells_of_split = [(line, text) for line, text in cells if not is_missing(text)]
        if cells_of_split and all(text.lower() in ("true", "false") for _, text in cells_of_split):
            raise InputError(f"{path}: column {column} holds true and false; give the table of ids (splits_N.csv)")
        if not cells_of_split:
            raise InputError(f"{path}: column {column} is empty; fill it in or remove it")
        cells_of_split = [(line, read_id(text, column, f"{path}, line {line}")) for line, text in cells_of_split]
        lines: dict[str, int] = {}
        for line, text in cells_of_split:
            line_of.setdefault(text, line)
            if (first := lines.setdefault(slide_stem(text), line)) != line:
                raise InputError(f"{path}, line {line}: {text} is already in {column} on line {first}")
        refuse_clashes("ids", {stem: f"line {line}" for stem, line in lines.items()}, f"{path}, column {column}")
        ids[split] = tuple(text for _, text in cells_of_split)
    name = re.sub(r"^(?:splits?|folds?)_?(?=.)", "", path.stem, flags=re.IGNORECASE)
    return Fold(name, ids["train"], ids.get("val", ()), ids.get("test", ()), str(path), line_of)


def write_folds(folder: str | Path, folds: Iterable[Fold]) -> tuple[Path, ...]:
    """Writes `splits_NAME.csv` per fold, in the format of `read_folds`; returns the paths.

    Raises `InputError` where the folder holds other folds, which would be read together with these.
    """
    folder, folds, paths = make_folder(folder), tuple(folds), []
    names = {f"splits_{fold.name}.csv" for fold in folds}
    if others := sorted(
        path.name for path in folder.iterdir() if _FILE.fullmatch(path.name) and path.name not in names
    ):
        raise InputError(f"{folder}: holds {others[0]} of other folds; remove it, or choose another folder")
    for fold in folds:
        splits = [split for split in SPLITS if fold.ids(split)]
        path = folder / f"splits_{fold.name}.csv"
        columns = zip_longest(*(fold.ids(split) for split in splits), fillvalue="")
        write_csv(path, ["", *splits], ([i, *ids] for i, ids in enumerate(columns)))
        paths.append(path)
    return tuple(paths)


def match(cohort: Cohort, fold: Fold) -> Match:
    """Rows that a fold lists. The ids of a column decide if it holds slide ids or case ids.

    Raises `InputError` for a column with both kinds. Ids that are a slide of one patient and the name of another (or of
    one with more slides) are refused. So are an id that differs from one of the cohort in spelling only, and a fold
    without any id of the cohort.
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
        slide_rows = {text: by_slide[slide_stem(text)] for text in ids if slide_stem(text) in by_slide}
        case_rows = {text: by_case[text] for text in ids if text in by_case}
        matched = _matched_ids(slide_rows, case_rows, f"{fold.where()}, {split}", cohort.source)
        kinds[split] = ("patient" if matched is case_rows else "slide") if matched else ""
        rows[split] = tuple(sorted({i for indices in matched.values() for i in indices}))
        cases[split] = {text: cohort.rows[indices[0]].case_id for text, indices in matched.items()}
        unknown[split] = tuple(text for text in ids if text not in matched)
    for split in SPLITS:
        _refuse_other_spelling(cohort, fold, unknown[split], [kinds[split]] if kinds[split] else ["slide", "patient"])
    if not any(rows.values()):
        fold_id, first_row = next(text for split in SPLITS for text in fold.ids(split)), cohort.rows[0]
        raise InputError(
            f"{fold.where()}: none of its ids is in {cohort.source} (it has {fold_id}; the cohort has slide "
            f"{first_row.slide_id}, case {first_row.case_id}); give the folds of this cohort"
        )
    return Match(rows, cases, unknown)


def _refuse_other_spelling(cohort: Cohort, fold: Fold, unknown: Sequence[str], kinds: Iterable[str]) -> None:
    """Raises `InputError` for an unknown id that differs from a slide or patient of the cohort in spelling only.

    Such an id would drop out of its split, while its patient might be in another one. `kinds`: kinds of the other ids
    in its column.
    """
    lines = {text: f"line {fold.lines[text]}" if text in fold.lines else "" for text in unknown}
    stems = {slide_stem(text): line for text, line in lines.items()}
    for kind in kinds:
        cohort_ids = first_places(
            (row.slide_id if kind == "slide" else row.case_id, row.where()) for row in cohort.rows
        )
        refuse_other_spelling("id", stems if kind == "slide" else lines, fold.where(), kind, cohort_ids, cohort.source)


def _matched_ids(
    by_slide: dict[str, tuple[int, ...]], by_case: dict[str, tuple[int, ...]], where: str, source: str
) -> dict[str, tuple[int, ...]]:
    only_slide = [text for text in by_slide if text not in by_case]
    only_case = [text for text in by_case if text not in by_slide]
    if only_slide and only_case:
        raise InputError(
            f"{where}: slide ids ({only_slide[0]}, {len(by_slide)} in total) and case ids ({only_case[0]}, "
            f"{len(by_case)} in total) in one column; write one kind"
        )
    if only_slide:
        return by_slide
    if only_case:
        return by_case
    if ambiguous := [text for text in by_slide if by_slide[text] != by_case[text]]:
        raise InputError(
            f"{where}: {ambiguous[0]} is a slide and a case of {source}, and they differ; rename the slide or the case"
        )
    return by_slide


def assign(cohort: Cohort, fold: Fold, *, allow_leak: bool = False) -> Cohort:
    """The cohort with a split in every row that the fold lists, None in the others; missing ids are in the notes.

    Notes count the ids of the fold without a row (with the first names; `match` has all), the rows without a split, and
    the classes that a split lacks. Raises `InputError` for a patient in two splits (unless `allow_leak`) and a slide in
    two splits. A split column in the CSV that differs and a class without a slide in train are refused, and the same as
    in `match`.
    """
    matched = match(cohort, fold)
    for (a, b), shared in matched.shared_rows().items():
        slide = cohort.rows[shared[0]].slide_id
        raise InputError(f"{fold.where()}: slide {slide} is in {a} and in {b}{_more(len(shared))}; list it once")
    split_of: list[str | None] = [None] * len(cohort.rows)
    for split, indices in matched.rows.items():
        for i in indices:
            if (csv_split := cohort.rows[i].split) not in (None, split):
                raise InputError(
                    f"{cohort.source}: slide {cohort.rows[i].slide_id} is in {csv_split}, but {fold.where()} has it in "
                    f"{split}; leave out the column split, or the folds"
                )
            split_of[i] = split
    if not allow_leak and (pairs := matched.shared_cases()):
        (a, b), patients = next(iter(pairs.items()))
        total = len({case for cases in pairs.values() for case in cases})
        raise InputError(
            f"{fold.where()}: patient {patients[0]} is in {a} and in {b}{_more(total)}; "
            f"use patient-disjoint folds, or allow the leak"
        )
    assigned = cohort.with_splits(split_of, allow_leak=allow_leak)
    notes = [*_missing(matched, fold, cohort), *_class_notes(assigned, fold)]
    return replace(assigned, notes=(*cohort.notes, *notes))


def _missing(matched: Match, fold: Fold, cohort: Cohort) -> list[str]:
    notes = []
    if unknown := [text for split in SPLITS for text in matched.unknown[split]]:
        listed = sum(len(fold.ids(split)) for split in SPLITS)
        parts = ", ".join(f"{s} {len(matched.unknown[s])}" for s in SPLITS if matched.unknown[s])
        notes.append(
            f"{fold.where()}: {len(unknown)} of {listed} ids ({parts}) have no row with a label in {cohort.source} "
            f"and drop out: {_names(unknown)}"
        )
    used_rows = {i for indices in matched.rows.values() for i in indices}
    if unused := [row.slide_id for i, row in enumerate(cohort.rows) if i not in used_rows]:
        notes.append(f"{cohort.source}: {len(unused)} slides are not in {fold.where()}: {_names(unused)}")
    return notes


def _class_notes(cohort: Cohort, fold: Fold) -> list[str]:
    """Notes on classes absent from val or test, which cannot be measured. One absent from train is an `InputError`."""
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


def require_split(cohort: Cohort, split: str, purpose: str) -> tuple[SlideRow, ...]:
    """Rows of a split. Where there are none, raises an `InputError` that states their purpose ("to choose …")."""
    rows = cohort.split(split)
    if not rows:
        name = {"train": "training", "val": "validation", "test": "test"}[split]
        raise InputError(
            f"{cohort.source}: no {name} slides, which are needed {purpose}; add some to the split column or to "
            f"the folds"
        )
    return rows


def has_fold_column(cohort: Cohort) -> bool:
    """True where the table has a column fold, or fold_0, fold_1 …"""
    return any(row.fold for row in cohort.rows) or bool(_fold_columns(cohort))


def _fold_columns(cohort: Cohort) -> list[str]:
    """Columns fold_0, fold_1 …, in the order of their numbers."""
    names = {name for row in cohort.rows for name in row.extra_columns if re.fullmatch(r"fold_[0-9]{1,4}", name)}
    return sorted(names, key=lambda name: int(name.removeprefix("fold_")))


def _fold_of_column(cohort: Cohort, column: str) -> Fold:
    """Fold of a column with train, val and test; a row with an empty cell is in none. `InputError`: another word."""
    ids: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for row in cohort.rows:
        text = row.extra_columns.get(column, "")
        if is_missing(text):
            continue
        if (split := SPLIT_NAMES.get(text.strip().lower())) is None:
            place = f", {row.where()}" if row.where() else ""
            raise InputError(f"{cohort.source}{place}: {column} is {text!r}; it must be train, val or test")
        ids[split].append(row.slide_id)
    if not ids["train"] or not (ids["val"] or ids["test"]):
        raise InputError(f"{cohort.source}: {column} has no slide in train, or none in val and test")
    name = column.removeprefix("fold_")
    train, val, test = (tuple(ids[split]) for split in ("train", "val", "test"))
    return Fold(name, train, val, test, f"{cohort.source}, {column}")


def folds_of_column(cohort: Cohort) -> tuple[Fold, ...]:
    """Folds from the column `fold` of the CSV: each value is the test set once, all others train; there is no val.

    Columns fold_0, fold_1 … with train, val and test in their cells (Patho-Bench) are a fold each.

    Raises `InputError` where there is no such column or only one value in it.
    """
    if all(row.fold is None for row in cohort.rows) and (columns := _fold_columns(cohort)):
        return tuple(_fold_of_column(cohort, column) for column in columns)
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
    """The single fold of the column `split` of the CSV."""
    ids = {split: tuple(row.slide_id for row in cohort.split(split)) for split in SPLITS}
    return Fold("split", ids["train"], ids["val"], ids["test"], f"{cohort.source}, column split")


def _names(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_N_NAMED]) + (f", … and {len(ids) - _N_NAMED} more" if len(ids) > _N_NAMED else "")


def _more(total: int) -> str:
    return f", and {total - 1} more" if total > 1 else ""
