"""Omics table in MCAT's format: a row per slide or patient with case_id, a column per gene and measurement.

    case_id,…,TP53_mut,TP53_cnv,TP53_rnaseq,…          suffixes: _mut, _cnv, _rnaseq; an empty value (or NA, nan) was
                                                       not measured

A table of signatures has a column of genes per signature. A signature selects its genes that the omics table has, in
all three measurements. Values are not scaled here: each system standardises on its training fold (`baselines.omics`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.data.identity import canonical, is_missing, is_missing_number, read_id, refuse_clashes
from longvit.data.table import column_name, number, read_table, records
from longvit.errors import InputError

KINDS = ("_mut", "_cnv", "_rnaseq")
MAX_VALUES = 100_000_000
"""Maximum number of values of all patients: 400 MB."""


@dataclass(frozen=True)
class OmicTable:
    """Omics of all patients."""

    columns: tuple[str, ...]
    of_case: Mapping[str, NDArray[np.float32]] = field(repr=False)
    """case_id -> (G,), NaN where not measured."""
    signatures: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)
    """Name -> indices into `columns`, at least one each; empty without a table of signatures."""
    source: str = "omics"
    line_of: Mapping[str, int] = field(default_factory=dict, repr=False)
    """case_id -> its first line in the table, for messages."""
    notes: tuple[str, ...] = ()
    """Notes on rows that were left out, one sentence each."""

    def vector(self, case_id: str) -> NDArray[np.float32]:
        """All values of a patient, (G,)."""
        return self.of_case[case_id]

    def by_signature(self, case_id: str) -> tuple[NDArray[np.float32], ...]:
        """Values of a patient, one vector for each signature."""
        return tuple(self.of_case[case_id][places] for places in self.signatures.values())


def read_omics(path: str | Path, signatures: str | Path | None = None) -> OmicTable:
    """Reads a .csv or .csv.zip with a row per patient; identical repeated rows are accepted.

    Raises `InputError`: no such table, no column case_id, no column that ends with one of `KINDS`, a value that is not
    a number, contradicting rows of one patient, patients that differ in spelling only, a signature without any column,
    more than `MAX_VALUES` values.
    """
    path = Path(path)
    rows = records(path)
    _, header = next(rows, (0, []))
    if twice := next((name for name, n in Counter(header).items() if name and n > 1), None):
        raise InputError(f"{path}: two columns are called {twice!r}; remove one")
    case_place = next((i for i, name in enumerate(header) if column_name(name) == "case_id"), None)
    if case_place is None:
        raise InputError(f"{path}: no column case_id, which links omics to slides")
    places = [i for i, name in enumerate(header) if name.endswith(KINDS)]
    columns = tuple(header[i] for i in places)
    if not columns:
        raise InputError(f"{path}: no omics: no column ends with {', '.join(KINDS)}")
    of_case: dict[str, NDArray[np.float32]] = {}
    line_of: dict[str, int] = {}
    without_id = 0
    for line, cells in rows:
        case = read_id(cells[case_place] if case_place < len(cells) else "", "case_id", f"{path}, line {line}")
        if not case:
            without_id += 1
            continue
        values = _values(path, line, [cells[i] if i < len(cells) else "" for i in places], columns)
        if (first := of_case.setdefault(case, values)) is not values and not np.array_equal(first, values, True):
            raise InputError(
                f"{path}, line {line}: patient {case} has other values than on line {line_of[case]}; keep one row"
            )
        line_of.setdefault(case, line)
        if len(of_case) * len(columns) > MAX_VALUES:
            raise InputError(f"{path}: more than {MAX_VALUES:,} values; leave out the columns that are not needed")
    if not of_case:
        raise InputError(f"{path}: no row with a case_id")
    refuse_clashes("case_id", {case: f"line {line}" for case, line in line_of.items()}, str(path))
    notes = (f"{path}: {without_id} rows without case_id are left out",) if without_id else ()
    return OmicTable(columns, of_case, _signatures(signatures, columns, path), str(path), line_of, notes)


def _values(path: Path, line: int, cells: list[str], columns: tuple[str, ...]) -> NDArray[np.float32]:
    """Values of a row (G,), NaN where empty; `InputError` names the first column without a finite number."""
    try:
        values = np.array([float(cell) if cell else math.nan for cell in cells], dtype=np.float64)
    except ValueError:
        values = np.array([_value(cell) for cell in cells], dtype=np.float64)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if np.isinf(numbers).any():
        i = int(np.isinf(numbers).argmax())
        if number(cells[i]) is None and cells[i].lower().strip("+-") not in ("inf", "infinity"):
            what = f"column {columns[i]} holds {cells[i]!r}; write a number, or nothing"
        else:
            what = f"column {columns[i]} holds an infinity"
        raise InputError(f"{path}, line {line}: {what}")
    return numbers


def _value(cell: str) -> float:
    """Value of a text; infinity where it is not a number."""
    if is_missing_number(cell):
        return math.nan
    value = number(cell)
    return math.inf if value is None else value


def _signatures(path: str | Path | None, columns: tuple[str, ...], omics: Path) -> dict[str, NDArray[np.int64]]:
    if path is None:
        return {}
    path = Path(path)
    names, rows = read_table(path, naming=str)
    place = {name: i for i, name in enumerate(columns)}
    signatures = {}
    for name in names:
        genes = dict.fromkeys(canonical(row[name]) for _, row in rows if not is_missing(row.get(name, "")))
        places = [place[gene + kind] for gene in genes for kind in KINDS if gene + kind in place]
        if not places:
            raise InputError(f"{omics}: none of its {len(columns):,} columns is of signature {name!r} of {path}")
        signatures[name] = np.array(places, dtype=np.int64)
    return signatures
