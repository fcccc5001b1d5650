"""Cohort tables as other projects publish them, read as a table with our column names.

    Patho-Bench   a folder with `k=all.tsv` and `config.yaml`, or one of these files: case_id, slide_id, the task's
                  column (class numbers, named by label_dict), fold_0 … (train, test)
    MOOZY         a folder with `task.csv` and `config.yaml`: filename, case_id, label; or columns of time and event
    STAMP         a slide table: PATIENT, FILENAME; its clini table (PATIENT, labels) is joined by `join_clini`
    CLAM          case_id, slide_id, label: a cohort table as it is
    TRIDENT       wsi, mpp

Times in days become `survival_months`: a month has 365.25 / 12 days.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longvit.config import read_yaml
from longvit.data.identity import canonical, class_name, first_places, is_missing, refuse_other_spelling
from longvit.data.table import column_name, number, read_table
from longvit.errors import InputError

DAYS_PER_MONTH = 365.25 / 12
_TABLES = ("k=all.tsv", "task.csv")
_CONFIG = "config.yaml"
_MAX_CONFIG_BYTES = 2**20
_SLIDE_COLUMNS = ("filename", "wsi", "slide")
_PATIENT_COLUMNS = ("patient", "patient_id", "case")
_TCGA = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:-.*)?", re.IGNORECASE)
_FEATURE_SUFFIXES = (".h5", ".pt", ".zarr")

Rows = list[tuple[int, dict[str, str]]]


@dataclass(frozen=True)
class CohortTable:
    """Columns and rows of a cohort table (line, cells by column), with our names."""

    path: Path
    """File of the rows."""
    columns: list[str]
    rows: Rows
    label_column: str = "label"
    """Column of the class, unless the user names another."""
    notes: list[str] = field(default_factory=list)


def read_cohort_table(path: Path, clini: Path | None = None) -> CohortTable:
    """Reads a cohort table of any of the formats above; `clini`: table with a row per patient, joined to it.

    `InputError` in one line: a folder without a task, a config that is damaged or names a column that is absent, a
    class number without a name, and the errors of `read_table`.
    """
    table_path, config_path = _files_of(path)
    columns, rows = read_table(table_path)
    table = CohortTable(table_path, columns, rows)
    _rename(table, "slide_id", _SLIDE_COLUMNS, unless=("slide_id", "path"))
    _rename(table, "case_id", _PATIENT_COLUMNS, unless=("case_id",))
    _strip_feature_suffixes(table)
    if config_path is not None:
        table = _with_config(table, config_path)
    if clini is not None:
        table = join_clini(table, clini)
    return table


def tcga_patient(slide_id: str) -> str | None:
    """Patient of a TCGA barcode: TCGA-A1-A0SB of TCGA-A1-A0SB-01Z-00-DX1.…; None for another name."""
    match = _TCGA.fullmatch(slide_id)
    return match[1].upper() if match else None


def join_clini(table: CohortTable, clini: Path) -> CohortTable:
    """The table with the columns of a clinical table, by patient.

    `InputError`: no column of the patient, a patient with two different rows, one that the clinical table lacks.
    """
    columns, rows = read_table(clini)
    other = CohortTable(clini, columns, rows)
    _rename(other, "case_id", _PATIENT_COLUMNS, unless=("case_id",))
    for one in (table, other):
        if "case_id" not in one.columns:
            raise InputError(f"{one.path}: no column PATIENT or case_id, by which the two tables are joined")
    cells_of: dict[str, tuple[int, dict[str, str]]] = {}
    for line, cells in other.rows:
        case = canonical(cells.get("case_id", ""))
        if is_missing(case):
            raise InputError(f"{clini}, line {line}: no patient; fill it in or remove the row")
        first, known = cells_of.setdefault(case, (line, cells))
        if known != cells:
            raise InputError(f"{clini}, lines {first} and {line}: two rows of patient {case} differ; keep one")
    joined = [name for name in other.columns if name and name not in table.columns]
    cases = [canonical(cells.get("case_id", "")) for _, cells in table.rows]
    here = first_places((case, f"line {line}") for case, (line, _) in zip(cases, table.rows, strict=True) if case)
    there = {case: f"line {line}" for case, (line, _) in cells_of.items()}
    refuse_other_spelling("patient", here, str(table.path), "patient", there, str(clini))
    for case, (line, cells) in zip(cases, table.rows, strict=True):
        if case not in cells_of:
            raise InputError(
                f"{table.path}, line {line}: patient {case!r} is not in {clini}; add it, or remove the row"
            )
        cells |= {name: cells_of[case][1].get(name, "") for name in joined}
    note = f"{table.path}: joined by patient with {clini} ({len(cells_of)} patients)"
    return CohortTable(table.path, [*table.columns, *joined], table.rows, table.label_column, [*table.notes, note])


def _files_of(path: Path) -> tuple[Path, Path | None]:
    """Table and config of a task; the path itself without a config for any other table."""
    if path.is_dir():
        found = [path / name for name in _TABLES if (path / name).is_file()]
        if len(found) != 1:
            what = "two tables" if found else "no table"
            raise InputError(
                f"{path}: a folder with {what} of slides in it; it must hold one of {' and '.join(_TABLES)}"
            )
        if not (path / _CONFIG).is_file():
            raise InputError(f"{path}: no {_CONFIG} beside {found[0].name}, which names the column of the task")
        return found[0], path / _CONFIG
    config = path.parent / _CONFIG
    return path, config if path.name in _TABLES and config.is_file() else None


def _rename(table: CohortTable, to: str, names: tuple[str, ...], *, unless: tuple[str, ...]) -> None:
    """Renames the first of these columns, in place, unless the table has ours."""
    if set(unless) & set(table.columns):
        return
    if (name := next((name for name in names if name in table.columns), None)) is None:
        return
    table.columns[table.columns.index(name)] = to
    for _, cells in table.rows:
        if name in cells:
            cells[to] = cells.pop(name)


def _strip_feature_suffixes(table: CohortTable) -> None:
    """Removes `.h5` and the like of names of feature files; a slide of two feature files is one row."""
    if not any(cells.get("slide_id", "").lower().endswith(_FEATURE_SUFFIXES) for _, cells in table.rows):
        return
    for _, cells in table.rows:
        name = cells.get("slide_id", "")
        if name.lower().endswith(_FEATURE_SUFFIXES):
            cells["slide_id"] = Path(name.replace("\\", "/")).name.rpartition(".")[0]


def _with_config(table: CohortTable, path: Path) -> CohortTable:
    """The table of a task with a column for its class, or its time and event."""
    config = _read_config(path)
    task = config.get("task_col")
    if task is None and table.path.name == "task.csv":
        task = "label"
    if not isinstance(task, str):
        raise InputError(f"{path}: no task_col, the column of the task")
    time, event = (config.get(f"{what}_col") for what in ("time", "event"))
    time, event = (str(time), str(event)) if time and event else (f"{task}_days", f"{task}_event")
    rows = _one_slide_a_row(table)
    if {column_name(time), column_name(event)} <= set(table.columns):
        return _survival(table, rows, time, event)
    key = column_name(task)
    if key not in table.columns and "label" in table.columns:
        key = "label"
    if key not in table.columns:
        raise InputError(f"{path}: task_col is {task!r}, but {table.path.name} has no such column")
    names = _label_names(config.get("label_dict"), path)
    for line, cells in rows:
        text = cells.get(key, "")
        if names and not is_missing(text):
            if (name := names.get(class_name(text))) is None:
                raise InputError(
                    f"{table.path}, line {line}: {task} is {text!r}, which label_dict of {path.name} does not name "
                    f"(it has {', '.join(names)})"
                )
            cells["label"] = name
        else:
            cells["label"] = text
    columns = [*table.columns, *(["label"] if "label" not in table.columns else [])]
    return CohortTable(table.path, columns, rows, "label", [*table.notes, f"{table.path}: label is the column {task}"])


def _survival(table: CohortTable, rows: Rows, time: str, event: str) -> CohortTable:
    for line, cells in rows:
        text = cells.get(column_name(time), "")
        if is_missing(text):
            cells["survival_months"] = ""
        elif (days := number(text)) is None or not math.isfinite(days):
            raise InputError(f"{table.path}, line {line}: {time} is {text!r}; it must be a number of days")
        else:
            cells["survival_months"] = repr(days / DAYS_PER_MONTH)
        cells["event"] = cells.get(column_name(event), "")
    columns = [*table.columns, *(name for name in ("survival_months", "event") if name not in table.columns)]
    note = f"{table.path}: survival_months is {time} / {DAYS_PER_MONTH:.4f}, event is {event}"
    return CohortTable(table.path, columns, rows, "label", [*table.notes, note])


def _one_slide_a_row(table: CohortTable) -> Rows:
    """Rows in which a cell that lists several slides, ['a.svs', 'b.svs'], is a row for each."""
    rows: Rows = []
    for line, cells in table.rows:
        text = cells.get("slide_id", "")
        if not text.startswith("["):
            rows.append((line, cells))
            continue
        try:
            names = ast.literal_eval(text) if len(text) < 100_000 else None
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"{table.path}, line {line}: slide_id is {text[:40]!r}, not a name or a list of names")
        rows += [(line, {**cells, "slide_id": name}) for name in names]
    return rows


def _label_names(names: Any, path: Path) -> dict[str, str]:
    if names is None:
        return {}
    if not isinstance(names, Mapping) or not names:
        raise InputError(f"{path}: label_dict is {str(names)[:40]!r}, not a mapping of class numbers to names")
    return {class_name(str(key)): str(value) for key, value in names.items()}


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise InputError(f"{path}: too large for a config of a task")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; it must be YAML") from error
    config = read_yaml(text, str(path))
    if not isinstance(config, Mapping):
        raise InputError(f"{path}: not a mapping of keys to values, as the config of a task is")
    return config
