"""Task of a cohort table that the user has not named: survival, a number, or classes, by its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from longvit.data.published_tables import read_cohort_table
from longvit.data.table import column_name, number
from longvit.tasks.settings import TaskSettings


def task_of_table(
    cohort: Path, label_column: str, settings: TaskSettings, clini: Path | None = None
) -> tuple[TaskSettings, str]:
    """Task settings with the task that the columns of a table suggest, and the reason as text.

    Several `label_columns` are several labels. A label column with a fraction among its numbers is a regression. A
    table without a label column but with a time is survival. Everything else is subtyping, whose reader checks the
    column. Raises `InputError` where the table cannot be read.
    """
    if len(settings.label_columns) > 1:
        return replace(settings, task="multilabel"), "several label columns are given"
    table = read_cohort_table(cohort, clini)
    wanted = table.label_column if label_column == "label" else label_column
    key, time = column_name(wanted), column_name(settings.time_column)
    if settings.label_columns != ("label",):
        key = column_name(settings.label_columns[0])
        if "=" not in key and are_measurements([cells.get(key, "") for _, cells in table.rows]):
            return replace(settings, task="regression"), f"the column {settings.label_columns[0]} has fractions"
        return replace(settings, task="multilabel"), "a label column is given with --label-columns"
    if key in table.columns and are_measurements([cells.get(key, "") for _, cells in table.rows]):
        return replace(settings, task="regression", label_columns=(wanted,)), f"the column {wanted} has fractions"
    if label_column == "label" and key not in table.columns and time in table.columns:
        return replace(settings, task="survival"), f"there is a column {settings.time_column}, and no column {wanted}"
    return replace(settings, task="subtyping"), f"the column {wanted} has classes"


def are_measurements(texts: Sequence[str]) -> bool:
    """True where the filled cells are numbers, and one of them at least is a fraction."""
    values = [number(text) for text in texts if text]
    return bool(values) and all(v is not None for v in values) and any(not v.is_integer() for v in values if v)
