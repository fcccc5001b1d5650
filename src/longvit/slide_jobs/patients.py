"""Patients of a run over slides: their predictions and embeddings, aggregated from those of their slides.

OUT/patients.csv             of `longvit predict` on a CSV with case_id: case_id, slides (their number), and the columns
                             of the task
OUT/patient_embeddings.csv   of `longvit embed --by patient`: case_id, slides, f0 … f<D-1>, the mean of the vectors
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.data.identity import canonical, first_places, read_id, refuse_clashes
from longvit.data.slide_files import last_part
from longvit.data.table import read_table
from longvit.errors import InputError
from longvit.slide_jobs.embed import read_features, vector_path
from longvit.slide_jobs.job import write_table
from longvit.slides.file_kind import slide_stem
from longvit.tasks.patient_table import aggregated_cells, is_predicted, predicted_class
from longvit.tasks.task import Aggregate

PATIENTS_CSV = "patients.csv"
EMBEDDINGS_CSV = "patient_embeddings.csv"


def patients_of_sources(sources: Iterable[Path]) -> dict[str, str]:
    """slide_id -> case_id, from the column case_id of the CSV files among the sources of a command; empty without one.

    A slide without a case_id counts as a patient. `InputError`: two spellings of one patient, and a slide with two
    patients.
    """
    case_of: dict[str, str] = {}
    for source in map(Path, sources):
        if source.suffix.lower() != ".csv" or not source.is_file():
            continue
        columns, rows = read_table(source)
        if "case_id" not in columns:
            continue
        places: list[tuple[str, str]] = []
        for line, cells in rows:
            stated = cells.get("path") or cells.get("wsi") or ""
            slide_id = slide_stem(canonical(cells.get("slide_id", "")) or canonical(last_part(stated)))
            case_id = read_id(cells["case_id"], "case_id", f"{source}, line {line}") or slide_id
            if case_of.setdefault(slide_id, case_id) != case_id:
                raise InputError(
                    f"{source}, line {line}: slide {slide_id} is of patient {case_id}, and of patient "
                    f"{case_of[slide_id]} elsewhere; keep one row"
                )
            places.append((case_id, f"line {line}"))
        refuse_clashes("case_id", first_places(places), str(source))
    return case_of


def write_patient_predictions(
    out_dir: Path, records: Sequence[Mapping[str, Any]], case_of: Mapping[str, str], how: Aggregate
) -> Path | None:
    """Writes patients.csv of the predicted slides; returns its path, or None where no slide has a patient."""
    if not records or not case_of:
        return None
    columns = list(records[0]["prediction"])
    numeric = [name for name in columns if is_predicted(name)]
    rows = []
    for case_id, slides in _by_patient(records, case_of).items():
        cells = aggregated_cells(
            [{name: float(record["prediction"][name]) for name in numeric} for record in slides], how
        )
        predicted = {name: f"{value:.9g}" for name, value in cells.items()}
        if "prediction" in columns:
            predicted["prediction"] = predicted_class(cells)
        rows.append({"case_id": case_id, "slides": len(slides), **predicted})
    write_table(out_dir / PATIENTS_CSV, ["case_id", "slides", *columns], rows)
    return out_dir / PATIENTS_CSV


def write_patient_embeddings(
    out_dir: Path, records: Sequence[Mapping[str, Any]], case_of: Mapping[str, str], dim: int
) -> Path:
    """Writes patient_embeddings.csv: the mean of the vectors of a patient's slides, summed in float64."""
    rows = []
    for case_id, slides in _by_patient(records, case_of).items():
        vectors = [read_features(vector_path(out_dir, record)).astype(np.float64) for record in slides]
        values = {f"f{i}": f"{value:.9g}" for i, value in enumerate(np.mean(vectors, 0).astype(np.float32))}
        rows.append({"case_id": case_id, "slides": len(slides), **values})
    write_table(out_dir / EMBEDDINGS_CSV, ["case_id", "slides", *(f"f{i}" for i in range(dim))], rows)
    return out_dir / EMBEDDINGS_CSV


def _by_patient(records: Sequence[Mapping[str, Any]], case_of: Mapping[str, str]) -> dict[str, list[Mapping[str, Any]]]:
    """Records of each patient, in the order of the first slides."""
    slides_of: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        slide_id = str(record["slide_id"])
        slides_of.setdefault(case_of.get(slide_id, slide_id), []).append(record)
    return slides_of
