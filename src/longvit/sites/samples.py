"""Samples of a site check: vectors of embeddings, predictions or feature bags, with site, label and patient.

A sample is a patient at a site: the vectors of several slides are averaged. Sites and labels come from the cohort
table, joined by slide_id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.data.bags import find_bags, read_bag
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.table import column_name, number, read_table
from longvit.errors import InputError

EMBEDDINGS = "embeddings.csv"
_DIMENSION = re.compile(r"f\d+")
_PROBABILITY = "prob_"
_SMALLEST = 1e-6
MIN_PATIENTS = 10
"""Patients that a site check needs."""


@dataclass(frozen=True)
class Samples:
    """Samples of a site check, and the slides they were made of."""

    kind: str
    """`embeddings`, `predictions` or `features`."""
    vectors: NDArray[np.float64] = field(repr=False)
    """(N, D); of predictions the log odds of the classes, or the risk."""
    sites: tuple[str, ...] = field(repr=False)
    patients: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] | None = field(repr=False)
    """None where the cohort has no label column."""
    slides: tuple[SlideRow, ...] = field(repr=False)
    """Slides with a vector, in the order of the cohort."""
    probabilities: Mapping[str, NDArray[np.float64]] = field(repr=False)
    """Predictions: probabilities of the classes by slide, in the order of `classes`; else empty."""
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_samples(source: str | Path, cohort: str | Path, label_column: str = "label") -> Samples:
    """Samples of a table or folder of vectors and a cohort table with a column site.

    `source`: `embeddings.csv` or its folder, a table of predictions (`prob_<class>` or `risk`; only test rows where it
    has a column split), or a folder of feature bags, whose mean is taken.

    Raises `InputError` in one line: no column site, fewer than two sites or ten patients, a value that is not a finite
    number, a slide twice, no slide in common.
    """
    source = Path(source)
    table, notes = _cohort(Path(cohort), label_column)
    labelled = bool(table.classes)
    if without := [row.slide_id for row in table.rows if not row.site]:
        raise InputError(f"{cohort}: slide {without[0]} has no site ({len(without)} in total); fill in the column site")
    kind, vector_of, classes = _vectors(source, table)
    rows = tuple(row for row in table.rows if row.slide_id in vector_of)
    if not rows:
        raise InputError(f"{source}: no slide of {cohort} in it; the column slide_id must agree")
    if missing := len(table.rows) - len(rows):
        notes.append(f"{missing:,} of {len(table.rows):,} slides of the cohort have no vector.")
    units: dict[tuple[str, str, str], list[NDArray[np.float64]]] = {}
    for row in rows:
        units.setdefault((row.case_id, str(row.site), row.label), []).append(vector_of[row.slide_id])
    patients, sites, labels = zip(*units, strict=True)
    if len(set(sites)) < 2 or len(set(patients)) < MIN_PATIENTS:
        raise InputError(
            f"{cohort}: {len(set(sites))} site and {len(set(patients))} patients with a vector; a site check needs "
            f"2 sites and {MIN_PATIENTS} patients"
        )
    vectors = np.stack([np.mean(parts, axis=0) for parts in units.values()])
    if kind == "predictions":
        probabilities = {row.slide_id: vector_of[row.slide_id] for row in rows} if classes else {}
        vectors = log_odds(vectors) if classes else vectors
    else:
        probabilities = {}
    return Samples(
        kind, vectors, sites, patients, labels if labelled else None, rows, probabilities, classes, tuple(notes)
    )


def _cohort(path: Path, label_column: str) -> tuple[Cohort, list[str]]:
    columns, _ = read_table(path)
    if "site" not in columns:
        raise InputError(f"{path}: no column 'site' (it has {', '.join(columns)}); a site check needs one")
    if column_name(label_column) in columns:
        cohort = read_cohort(path, label_column=label_column, need_files=False, need_labels=False, allow_leak=True)
        return cohort, [note for note in cohort.notes if "label" in note]
    if label_column != "label":
        raise InputError(f"{path}: no column {label_column!r} (it has {', '.join(columns)})")
    cohort = read_cohort(path, label_column=None, need_files=False, allow_leak=True)
    return cohort, [f"{path} has no column label: only the prediction of the site is judged."]


def _vectors(source: Path, cohort: Cohort) -> tuple[str, dict[str, NDArray[np.float64]], tuple[str, ...]]:
    """Kind, vector of every slide, classes of predictions."""
    if source.is_dir() and not (source / EMBEDDINGS).is_file():
        files = find_bags(source, [row.slide_id for row in cohort.rows])
        means = {name: read_bag(path).features.mean(0, dtype=np.float64) for name, path in files.paths.items()}
        if len({len(mean) for mean in means.values()}) > 1:
            raise InputError(f"{source}: features of different widths; were all made by one encoder?")
        return "features", means, ()
    path = source / EMBEDDINGS if source.is_dir() else source
    columns, lines = read_table(path, _name)
    classes = tuple(name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY))
    dimensions = [name for name in columns if _DIMENSION.fullmatch(name)]
    if classes:
        kind, names = "predictions", [f"{_PROBABILITY}{name}" for name in classes]
    elif "risk" in columns:
        kind, names = "predictions", ["risk"]
    else:
        kind, names = "embeddings", dimensions
    if "slide_id" not in columns or not names:
        raise InputError(f"{path}: needs columns slide_id, and f0, f1, … (embeddings), prob_<class> or risk")
    vectors: dict[str, NDArray[np.float64]] = {}
    for line, cells in lines:
        if cells.get("split", "test") not in ("test", ""):
            continue
        values = [number(cells.get(name, "")) for name in names]
        if any(value is None for value in values):
            bad = names[values.index(None)]
            raise InputError(f"{path}, line {line}: {bad} is {cells.get(bad, '')!r}, not a finite number")
        name = cells.get("slide_id", "")
        if name in vectors:
            raise InputError(f"{path}, line {line}: slide {name} is there twice; keep the rows of one system and fold")
        vectors[name] = np.array(values, np.float64)
    return kind, vectors, classes


def _name(text: str) -> str:
    """Normalised column name; the name of a class keeps its case."""
    stripped = text.strip()
    return stripped if stripped.lower().startswith(_PROBABILITY) else column_name(text)


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log odds of probabilities, the same shape; those of 0 and 1 are finite."""
    p = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    return np.log(p / (1 - p))


def patients_of(rows: Sequence[SlideRow]) -> int:
    """Number of patients of slides."""
    return len({row.case_id for row in rows})
