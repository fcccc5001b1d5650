"""Cohort B: the slides of a CSV, with their labels where it has some.

Classes are those of the run. A label that is none of them is refused, since silently leaving such slides out would
change what is measured; slides without a label are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.identity import canonical, class_name, is_missing, is_missing_number, shown, spelled_like
from longvit.data.table import column_name, read_table
from longvit.errors import InputError
from longvit.tasks.label_cells import cell_of, read_number
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import task_class

VALIDATED = ("subtyping", "survival", "regression", "ordinal", "multilabel")
"""Tasks with an external validation."""


def has_labels(csv_path: Path, settings: TaskSettings, label_column: str) -> bool:
    """True where the CSV has the column of the class or number, one of several labels, or those of time and event.

    `InputError`: a `label_column` other than the default that the CSV lacks, or a time without an event.
    """
    columns, _ = read_table(csv_path)
    if settings.task == "survival":
        if column_name(settings.time_column) not in columns:
            return False
        events = [name for name in (settings.event_column, settings.censorship_column) if name is not None]
        if any(column_name(name) in columns for name in events or ("event", "censorship")):
            return True
        raise InputError(
            f"{csv_path}: a column {settings.time_column}, but none of {' or '.join(events or ('event', 'censorship'))}"
        )
    if not task_class(settings.task).has_classes:
        return any(column_name(name) in columns for name in _label_columns(settings))
    is_there = column_name(label_column) in columns
    if not is_there and label_column != "label":
        raise InputError(f"{csv_path}: no column {label_column!r}; it has {', '.join(columns)}")
    return is_there


def read_labelled(
    csv_path: Path,
    settings: TaskSettings,
    classes: Sequence[str],
    *,
    label_column: str = "label",
    slides_dir: Path | None = None,
) -> Cohort:
    """Cohort B with labels; a slide without a file stays, to become a problem.

    `classes`: classes or grades of the run, none of a task without. `InputError`: no row with a label, a label that is
    not one of the classes.
    """
    table = read_cohort(csv_path, label_column=None, slides_dir=slides_dir, need_files=False, allow_leak=True)
    rows, without = [], []
    absent = _absent_columns(table, settings)
    nothing = {column_name(name): "" for name in absent}
    for row in table.rows:
        row = replace(row, split=None, fold=None, extra_columns=nothing | dict(row.extra_columns))  # not the run's
        labelled = _labelled(row, table.source, settings, classes, label_column)
        if labelled is None:
            without.append(row.slide_id)
        else:
            rows.append(labelled)
    if not rows:
        raise InputError(f"{csv_path}: no row has a label; without that column the slides are predicted only")
    notes = list(table.notes)
    if without:
        notes.append(f"{csv_path}: {len(without)} of {len(table.rows)} slides have no label and are left out")
    notes += [f"{csv_path}: no column {name}: this label is not judged" for name in absent]
    cohort = Cohort(tuple(rows), tuple(classes), table.source, tuple(notes), is_ordered=True)
    return task_class(settings.task).select(cohort, settings)


def _label_columns(settings: TaskSettings) -> tuple[str, ...]:
    """Columns of the number, or of several labels; none of another task."""
    if settings.task == "multilabel":
        from longvit.tasks.multilabel import columns_of

        return tuple(columns_of(settings))
    return settings.label_columns if settings.task == "regression" else ()


def _absent_columns(table: Cohort, settings: TaskSettings) -> list[str]:
    """Label columns that the CSV lacks."""
    return [name for name in _label_columns(settings) if column_name(name) not in table.rows[0].extra_columns]


def _labelled(
    row: SlideRow, source: str, settings: TaskSettings, classes: Sequence[str], label_column: str
) -> SlideRow | None:
    """The row with its label; None where it has none."""
    if settings.task == "survival":
        from longvit.tasks.survival import lacks_outcome, read_outcome

        if lacks_outcome(row, source, settings):
            return None
        read_outcome(row, source, settings)
        return row
    if settings.task == "regression":
        from longvit.tasks.regression import number_column

        column = number_column(settings)
        if is_missing_number(cell_of(row, column, source)):
            return None
        read_number(row, column, source)
        return row
    if settings.task == "multilabel":
        from longvit.tasks.multilabel import columns_of, labels_of

        labels = labels_of(row, columns_of(settings), source)
        return None if all(math.isnan(label) for label in labels) else row
    text = row.extra_columns[column_name(label_column)]
    name = class_name(text)
    if is_missing(name) and name not in classes:
        return None
    if name not in classes:
        near = spelled_like(name, classes)
        hint = f"; {shown(near)} differs from it in spelling only" if near else ""
        raise InputError(
            f"{source}, {row.where()}: label {shown(name)} is not a class of the run ({', '.join(classes)}){hint}; "
            f"rename it, or remove such rows"
        )
    return replace(row, label=name)


def groups_of(rows: Sequence[SlideRow], column: str, source: str) -> list[str]:
    """Value of a column for each row, "" where it is missing; `InputError`: no such column."""
    name = column_name(column)
    if rows and name not in rows[0].extra_columns:
        raise InputError(f"{source}: no column {column!r}; it has {', '.join(rows[0].extra_columns)}")
    cells = [canonical(row.extra_columns[name]) for row in rows]
    return ["" if is_missing(cell) else class_name(cell) for cell in cells]
