"""Label cells of a cohort table that a task reads by itself: numbers, and yes-or-no labels; and strata made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.data.identity import canonical, class_name, is_missing_number, spelled_like
from longvit.data.label_column import column_list
from longvit.data.table import column_name, number
from longvit.errors import InputError

_YES = frozenset({"1", "true", "yes", "positive", "pos", "mut", "mutated", "mutant"})
_NO = frozenset({"0", "false", "no", "negative", "neg", "wt", "wildtype", "wild type", "wild-type"})
FEWEST_PATIENTS = 3
"""Patients of a stratum: one for each of train, val and test."""


def cell_of(row: SlideRow, column: str, source: str) -> str:
    """Cell of a column. `InputError`: the table has no such column (its columns are listed)."""
    key = column_name(column)
    if key not in row.extra_columns:
        raise InputError(
            f"{source}: no column {column!r}{column_list(list(row.extra_columns))}; name it with --label-columns"
        )
    return row.extra_columns[key]


def read_number(row: SlideRow, column: str, source: str) -> float:
    """Number of a cell. `InputError` with the line: a missing cell, or one that is not a finite number."""
    text = cell_of(row, column, source)
    if is_missing_number(text):
        fault = f"{column} is {text!r}, which stands for none" if text else f"no {column}"
        raise InputError(f"{_where(row, source)}: {fault}; fill it in or remove the row")
    value = number(text)
    if value is None or not math.isfinite(value):
        raise InputError(f"{_where(row, source)}: {column} is {text!r}; it must be a number")
    return value


def read_yes_or_no(row: SlideRow, column: str, positive: str, source: str) -> float:
    """Label 1.0 or 0.0, NaN where the cell is missing.

    `positive`: class that is 1, where every other one is 0. With "" the cells are 0 and 1, or words for them: true,
    yes, positive, mut and their opposites. Raises `InputError` with the line for any other text.
    """
    text = cell_of(row, column, source)
    if is_missing_number(text):
        return math.nan
    name = class_name(text)
    if positive:
        if name == positive:
            return 1.0
        if spelled_like(name, [positive]) is not None:
            raise InputError(
                f"{_where(row, source)}: {column} is {text!r}, which differs from {positive!r} in spelling only; "
                f"write one"
            )
        return 0.0
    word = canonical(name).lower()
    if word in _YES or word in _NO:
        return float(word in _YES)
    raise InputError(
        f"{_where(row, source)}: {column} is {text!r}; it must be 0 or 1 (or empty), or name the class that is 1: "
        f"--label-columns {column}={text}"
    )


def _where(row: SlideRow, source: str) -> str:
    place = source if row.line is None else f"{source}, line {row.line}"
    return f"{place}: slide {row.slide_id}"


def quantile_strata(values: Sequence[float], patients: Sequence[str], parts: int = 4) -> list[str]:
    """Stratum of each number: its quarter, or fewer parts where few patients would be in each."""
    parts = max(1, min(parts, len(set(patients)) // FEWEST_PATIENTS))
    numbers = np.asarray(values, dtype=np.float64)
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, parts + 1)[1:-1])) if len(numbers) else np.zeros(0)
    return merged_strata([f"part {part + 1}" for part in np.searchsorted(edges, numbers, side="right")], patients)


def merged_strata(strata: Sequence[str], patients: Sequence[str]) -> list[str]:
    """Strata in which each has at least `FEWEST_PATIENTS` patients: rare ones become one, or join the largest."""
    patients_of: dict[str, set[str]] = {}
    for stratum, patient in zip(strata, patients, strict=True):
        patients_of.setdefault(stratum, set()).add(patient)
    rare = sorted(name for name, found in patients_of.items() if len(found) < FEWEST_PATIENTS)
    common = sorted((name for name in patients_of if name not in rare), key=lambda name: -len(patients_of[name]))
    together = set().union(*(patients_of[name] for name in rare)) if rare else set()
    home: Mapping[str, str] = {}
    if rare and common:
        home = dict.fromkeys(rare, "others" if len(together) >= FEWEST_PATIENTS else common[0])
    elif rare:
        home = dict.fromkeys(rare, "all")
    return [home.get(stratum, stratum) for stratum in strata]
