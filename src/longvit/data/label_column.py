"""Label column of a cohort table: the class of each row, and the checks that the texts are classes."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from longvit.data.identity import read_classes
from longvit.data.table import column_name, number
from longvit.errors import InputError

Table = list[tuple[int, dict[str, str]]]
"""Rows of a CSV: line, and cells by column."""


def find_label_column(path: Path, columns: list[str], label_column: str) -> str:
    """Key of the label column in the table. `InputError`: no such column (the nearest name is given)."""
    key = column_name(label_column)
    if key in columns:
        return key
    near = difflib.get_close_matches(key, columns, n=1, cutoff=0.4)
    hint = f"; did you mean --label-column {near[0]}?" if near else "; name it with --label-column"
    raise InputError(f"{path}: no column {label_column!r}{column_list(columns)}{hint}")


def column_list(columns: list[str]) -> str:
    """Columns of a table, for messages."""
    names = [column or "(no name)" for column in columns]
    if len(names) > 20:  # tables of genes have thousands
        names = [*names[:20], f"… and {len(names) - 20} more"]
    return f" (it has {', '.join(names)})"


def labelled_rows(
    path: Path, table: Table, key: str, keep: Sequence[str] | None, need_labels: bool, notes: list[str]
) -> tuple[Table, list[str]]:
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


def _without_none(table: Table, names: Sequence[str | None]) -> tuple[Table, list[str]]:
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


def _refuse_unusable_classes(path: Path, table: Table, labels: Sequence[str], key: str, beside: str) -> None:
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


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Classes in order: by number where all are numbers, else by name."""
    names = set(labels)
    numeric = all(number(name) is not None for name in names)
    return tuple(sorted(names, key=(lambda n: (float(n), n)) if numeric else str))
