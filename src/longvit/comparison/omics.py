"""Tables of omics in MCAT's shape: a row per slide or patient with case_id, a column per gene and kind of measurement.

    case_id,…,TP53_mut,TP53_cnv,TP53_rnaseq,…          kinds: _mut, _cnv, _rnaseq; an empty cell was not measured

A table of signatures has a column of genes for each; a signature takes those of its genes that the omic table has, in
all three kinds. Nothing is scaled here: each system standardises on its training fold (`baselines.omics`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = ("_mut", "_cnv", "_rnaseq")


@dataclass(frozen=True)
class OmicTable:
    """What was measured of each patient."""

    columns: tuple[str, ...]
    of_case: Mapping[str, NDArray[np.float32]] = field(repr=False)
    """case_id -> (G,), NaN where not measured."""
    signatures: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)
    """Name -> places in `columns`, each at least one; empty without a table of signatures."""
    source: str = "omics"

    def vector(self, case_id: str) -> NDArray[np.float32]:
        """(G,): all that was measured."""
        return self.of_case[case_id]

    def by_signature(self, case_id: str) -> tuple[NDArray[np.float32], ...]:
        """One vector for each signature."""
        return tuple(self.of_case[case_id][places] for places in self.signatures.values())


def read_omics(path: str | Path, signatures: str | Path | None = None) -> OmicTable:
    """Reads a .csv or .csv.zip, the first row of each patient.

    Raises `InputError`: no such table, no column case_id, none that ends with one of `KINDS`, a cell that is no number,
    a signature without any column.
    """
    path = Path(path)
    table = _read(path)
    case_column = next((c for c in table.columns if str(c).strip().lower() == "case_id"), None)
    if case_column is None:
        raise InputError(f"{path}: no column case_id, by which omics and slides are brought together")
    columns = tuple(str(c) for c in table.columns if str(c).endswith(KINDS))
    if not columns:
        raise InputError(f"{path}: no omics: no column ends with {', '.join(KINDS)}")
    first = table.drop_duplicates(case_column)
    values = first[list(columns)]
    try:
        numbers = values.to_numpy(np.float32)
    except (TypeError, ValueError) as error:
        name, text = _no_number(values)
        raise InputError(f"{path}: column {name} holds {text!r}; write a number, or nothing") from error
    if np.isinf(numbers).any():
        raise InputError(f"{path}: column {columns[int(np.isinf(numbers).any(0).argmax())]} holds an infinity")
    cases = [str(case).strip() for case in first[case_column]]
    of_case = dict(zip(cases, numbers, strict=True))
    return OmicTable(columns, of_case, _signatures(signatures, columns, path), str(path))


def _signatures(path: str | Path | None, columns: tuple[str, ...], omics: Path) -> dict[str, NDArray[np.int64]]:
    if path is None:
        return {}
    table = _read(Path(path))
    place = {name: i for i, name in enumerate(columns)}
    found = {}
    for name in table.columns:
        genes = dict.fromkeys(str(gene).strip() for gene in table[name].dropna())
        places = [place[gene + kind] for gene in genes for kind in KINDS if gene + kind in place]
        if not places:
            raise InputError(f"{omics}: none of its {len(columns):,} columns is of signature {name!r} of {path}")
        found[str(name)] = np.array(places, dtype=np.int64)
    return found


def _read(path: Path) -> DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, low_memory=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # an archive or a table can be damaged in many ways
        raise InputError(f"{path}: no table that can be read: {' '.join(str(error).split())[:160]}") from error


def _no_number(values: DataFrame) -> tuple[str, Any]:
    """The first column and cell that is none."""
    import pandas as pd

    for name in values.columns:
        wrong = values[name][pd.to_numeric(values[name], errors="coerce").isna() & values[name].notna()]
        if len(wrong):
            return name, wrong.iloc[0]
    return values.columns[0], "what is no number"
