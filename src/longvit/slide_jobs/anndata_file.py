"""AnnData file of slide embeddings: one observation per slide, with the columns of the cohort table.

    OUT/embeddings.h5ad   X float32 (slides, D); obs: the table's columns, path, mpp, mpp_source, n_bad_tiles;
                          var: f0 … f<D-1>; uns["longvit"]: version, digest and canvas of the model

Read with `anndata.read_h5ad`, by scanpy and the other packages of scverse. Needs `pip install 'longvit[anndata]'`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.data.identity import canonical
from longvit.data.slide_files import last_part
from longvit.data.table import read_table
from longvit.errors import InputError
from longvit.files import write_bytes
from longvit.slide_jobs.embed import read_features, vector_path
from longvit.slides.file_kind import slide_stem

FILE = "embeddings.h5ad"
_TEXT_COLUMNS = frozenset({"slide_id", "case_id", "label", "site", "split", "fold", "wsi"})
"""Columns that stay text, although a patient may be called 007 and a fold 1."""


def require_anndata() -> Any:
    """The package anndata. Raises `InputError` where it is not installed."""
    try:
        import anndata
    except ImportError as error:
        raise InputError("--anndata: needs anndata; pip install 'longvit[anndata]'") from error
    return anndata


def write_anndata(out_dir: str | Path, records: Sequence[Mapping[str, Any]], sources: Iterable[Path], dim: int) -> Path:
    """Writes `embeddings.h5ad` of the slides with a record, in their order, atomically; returns its path.

    `sources`: what the command was given; columns come from the CSV files among them. `dim`: D. A column is numeric if
    all its cells are numbers or blank. Raises `InputError` without anndata, and for a damaged vector.
    """
    anndata = require_anndata()
    import h5py
    import pandas as pd

    out_dir = Path(out_dir)
    vectors = [read_features(vector_path(out_dir, record)) for record in records]
    names = [str(record["slide_id"]) for record in records]
    columns = cohort_columns(sources)
    table = {name: [columns[name].get(slide, "") for slide in names] for name in columns}
    mpps = [record["mpp"] or {} for record in records]
    values = {
        **{name: _typed(name, cells) for name, cells in table.items()},
        "path": _text(str(record["path"]) for record in records),
        "mpp": np.array([mpp.get("x", np.nan) for mpp in mpps], np.float64),
        "mpp_source": _text(str(mpp.get("source", "")) for mpp in mpps),
        "n_bad_tiles": np.array([record["n_bad_tiles"] for record in records], np.int64),
    }
    # Series of objects: anndata does not write the text type of pandas 3.
    index = pd.Index(_text(names), dtype=object)
    obs = pd.DataFrame({name: pd.Series(cells, index, dtype=cells.dtype) for name, cells in values.items()}, index)
    data = anndata.AnnData(
        X=np.stack(vectors) if vectors else np.empty((0, dim), np.float32),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(_text(f"f{i}" for i in range(dim)), dtype=object)),
        uns={"longvit": _provenance(records)},
    )
    content = io.BytesIO()  # in memory first, as `EmbedJob` does
    with h5py.File(content, "w") as file:
        anndata.io.write_elem(file, "/", data)
    write_bytes(out_dir / FILE, content.getbuffer())
    return out_dir / FILE


def cohort_columns(sources: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Column -> slide_id -> cell, of the CSV files among the sources of a command; without slide_id, path, wsi, mpp."""
    columns: dict[str, dict[str, str]] = {}
    for source in sources:
        if Path(source).suffix.lower() != ".csv" or not Path(source).is_file():
            continue
        _, rows = read_table(Path(source))
        for _, cells in rows:
            stated = cells.get("path") or cells.get("wsi") or ""
            slide_id = slide_stem(canonical(cells.get("slide_id", "")) or canonical(last_part(stated)))
            for name, cell in cells.items():
                if name and name not in ("slide_id", "path", "wsi", "mpp"):
                    columns.setdefault(name.replace("/", "_"), {})[slide_id] = cell
    return columns


def _text(cells: Iterable[str]) -> np.ndarray:
    return np.array(list(cells), object)


def _typed(name: str, cells: Sequence[str]) -> np.ndarray:
    """Cells as float64 with NaN where they are blank, if all others are numbers; else as text."""
    if name in _TEXT_COLUMNS or not any(cells):
        return _text(cells)
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells], np.float64)
    except ValueError:
        return _text(cells)


def _provenance(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Version, model and canvas of the first record; all records of a run share them."""
    if not records:
        return {}
    first = records[0]
    return {
        "version": str(first["longvit"]),
        "model_digest": str(first["model"]["digest"]),
        "side_px": int(first["canvas"]["side_px"]),
        "fit": str(first["canvas"]["fit"]),
    }
