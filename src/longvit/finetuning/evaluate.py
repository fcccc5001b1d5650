"""Evaluation of a CSV of predictions: metrics per fold and as mean ± SD, for each system and cohort separately.

Six layouts, recognised by their columns (`.csv` or `.csv.gz`; column names in any case; more columns do no harm):

    fold AUCs   system, cohort, fold, test_auc [, val_auc]
    survival    risk, survival_months (or months), event or censorship
    subtyping   label, prob_<class> …
    ordinal     label, prob_<grade> … in rising order, expected_rank
    regression  value, predicted_value
    multilabel  label_<column> (may be empty), probability_<column> …

All but the first take case_id (the patient), slide_id, and may be divided by any of system, inputs, cohort, split and
fold. The risks of a patient's slides are averaged (survival); each slide counts by itself (other tasks). A row without
case_id counts as a patient. Identity of patients and slides follows `data/identity.py`, as for a cohort.
SD: the sample's (ddof 1) for AUCs, as in the paper's table 1; the population's (ddof 0) for the c-index, as in table 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data.identity import class_name, first_places, is_missing, read_id, refuse_clashes
from longvit.data.table import column_name, read_table
from longvit.errors import InputError
from longvit.finetuning.evaluate_layouts import (
    Layout,
    MultilabelLayout,
    OrdinalLayout,
    RegressionLayout,
    SubtypingLayout,
    SurvivalLayout,
    label_probabilities,
    line_of,
    numbers,
    patients_of,
)

if TYPE_CHECKING:
    from pandas import DataFrame

    from longvit.tasks.task import Aggregate

KEYS = ("system", "inputs", "cohort", "split")
_LAYOUTS = (
    "system, cohort, fold, test_auc; or risk, survival_months and event (or censorship); or label and prob_<class> …; "
    "or value and predicted_value; or label_<column> and probability_<column> …"
)


@dataclass(frozen=True)
class MetricSummary:
    """Metric of one group."""

    mean: float
    """Mean over the folds that define it; without folds the value itself. NaN where none does."""
    sd: float
    """SD over the folds; NaN with fewer than two, and without folds."""
    folds: dict[str, float] = field(default_factory=dict)
    """Values: fold -> value, NaN where it is not defined; empty without folds."""
    interval: tuple[float, float] | None = None
    """95 % interval of the bootstrap over patients; only without folds."""


@dataclass(frozen=True)
class Group:
    """Group of rows: one system on one cohort, one split."""

    key: dict[str, str]
    """Values of those of system, inputs, cohort, split that are columns."""
    rows: int
    patients: int | None
    """Number of patients; None where the file has no case_id."""
    metrics: dict[str, MetricSummary]
    events: int | None = None
    """Number of patients with the event; survival only."""
    by_patient: Group | None = None
    """The same per patient, where patients have several slides; None in survival, whose metrics are per patient."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a file."""

    path: Path
    layout: str
    """fold AUCs, survival, subtyping, ordinal, regression or multilabel."""
    ddof: int
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """Notes on the computation, one sentence each."""

    def as_json(self) -> dict[str, Any]:
        """JSON value; a metric that is not defined is None."""
        return {
            "file": str(self.path),
            "layout": self.layout,
            "ddof": self.ddof,
            "groups": [
                {
                    **group.key,
                    "rows": group.rows,
                    "patients": group.patients,
                    **({} if group.events is None else {"events": group.events}),
                    "figures": _figures(group),
                    **({} if group.by_patient is None else {"patient_figures": _figures(group.by_patient)}),
                }
                for group in self.groups
            ],
            "notes": list(self.notes),
        }


def _figures(group: Group) -> dict[str, Any]:
    return {
        name: {
            "mean": _plain(m.mean),
            "sd": _plain(m.sd),
            "folds": {fold: _plain(value) for fold, value in m.folds.items()},
            "interval": None if m.interval is None else [_plain(bound) for bound in m.interval],
        }
        for name, m in group.metrics.items()
    }


def evaluate(
    path: str | Path,
    *,
    ddof: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    aggregate: Aggregate = "mean",
) -> Evaluation:
    """Metrics of a file of predictions; see the top of this file. `ddof` None: 1 for AUCs, 0 for the c-index.

    Without a column fold each metric has the interval of `resamples` bootstrap samples of the patients (0: none).

    Where patients have several slides, a group also has the metrics of the patients, whose predictions are the
    `aggregate` of those of their slides.

    Raises `InputError` in one line:

    - a file that cannot be read, or columns of none of the layouts
    - an invalid number (its line), a negative time, an event that is not 0 or 1
    - event and censorship that contradict each other, a patient with two outcomes
    - a label without a column of probabilities
    - patients, slides or folds that differ only in spelling
    """
    path = Path(path)
    table = _read(path)
    columns = set(table.columns)
    metrics_of: Layout | None = None
    has_probabilities = any(c.startswith("prob_") for c in columns)
    if {"fold", "test_auc"} <= columns:
        layout, default = "fold AUCs", 1
    elif "risk" in columns and columns & {"survival_months", "months"} and columns & {"event", "censorship"}:
        layout, metrics_of, default = "survival", SurvivalLayout(path, table), 0
    elif "label" in columns and has_probabilities and "expected_rank" in columns:
        layout, metrics_of, default = "ordinal", OrdinalLayout(path, table), 1
    elif "label" in columns and has_probabilities:
        layout, metrics_of, default = "subtyping", SubtypingLayout(path, table), 1
    elif {"value", "predicted_value"} <= columns:
        layout, metrics_of, default = "regression", RegressionLayout(path, table), 1
    elif label_probabilities(table):
        layout, metrics_of, default = "multilabel", MultilabelLayout(path, table), 1
    else:
        names = ", ".join(str(c) for c in table.columns)
        raise InputError(f"{path}: columns {names}; needed: {_LAYOUTS}")
    patient_notes = _name_patients(path, table)
    ddof = default if ddof is None else ddof
    keys = [key for key in KEYS if key in columns]
    groups = []
    left_out = 0
    for values, part in table.groupby(keys, sort=False) if keys else [((), table)]:
        key = dict(zip(keys, map(str, values), strict=True))
        if metrics_of is None:
            groups.append(_fold_aucs(path, key, part, ddof))
        else:
            group = _group(key, part, metrics_of, ddof, resamples, seed)
            if layout != "survival" and _has_several_slides(part):
                patients, without = _patients_of_folds(metrics_of, part, aggregate)
                left_out += without
                group = replace(group, by_patient=_group(key, patients, metrics_of, ddof, resamples, seed))
            groups.append(group)
    if any(group.by_patient is not None for group in groups):
        patient_notes.append(f"per patient: the {aggregate} of the predictions of its slides")
    if left_out:
        patient_notes.append(
            f"{left_out} patients whose slides have different labels are left out of the metrics per patient"
        )
    return Evaluation(
        path, layout, ddof, tuple(groups), (*patient_notes, *_notes(layout, ddof, "fold" in columns, groups))
    )


def _has_several_slides(part: DataFrame) -> bool:
    """True where a patient has several rows in one fold."""
    keys = ["_patient", *(["fold"] if "fold" in part.columns else [])]
    return bool(part.duplicated(keys).any())


def _patients_of_folds(layout: Layout, part: DataFrame, how: Aggregate) -> tuple[DataFrame, int]:
    """Rows of the patients, fold by fold, and the number of patients that are left out."""
    import pandas as pd

    parts = [rows for _, rows in part.groupby("fold", sort=False)] if "fold" in part.columns else [part]
    found = [patients_of(layout, rows, how) for rows in parts]
    return pd.concat([rows for rows, _ in found]), sum(n for _, n in found)


def spread(values: Sequence[float], ddof: int) -> tuple[float, float]:
    """Mean and standard deviation of the values that are defined; NaN where there are too few."""
    defined = np.array([v for v in values if not math.isnan(v)])
    mean = float(defined.mean()) if len(defined) else math.nan
    return mean, float(defined.std(ddof=ddof)) if len(defined) >= 2 else math.nan


def _fold_aucs(path: Path, key: dict[str, str], part: DataFrame, ddof: int) -> Group:
    if part["fold"].duplicated().any():
        twice = part["fold"][part["fold"].duplicated()].iloc[0]
        raise InputError(f"{path}: fold {twice} of {', '.join(key.values()) or 'the file'} appears twice")
    metrics = {}
    for column in ("test_auc", "val_auc"):
        if column in part.columns:
            values = numbers(path, part, column, low=0, high=1, empty=True)
            mean, sd = spread(values.tolist(), ddof)
            metrics[column] = MetricSummary(mean, sd, dict(zip(part["fold"].astype(str), values.tolist(), strict=True)))
    return Group(key, len(part), None, metrics)


def _group(key: dict[str, str], part: DataFrame, metrics_of: Layout, ddof: int, resamples: int, seed: int) -> Group:
    patients = None if "case_id" not in part.columns else int(part["_patient"].nunique())
    events = metrics_of.events(part)
    if "fold" not in part.columns:
        intervals = metrics_of.intervals(part, resamples, seed) if resamples else {}
        metrics = {
            name: MetricSummary(value, math.nan, {}, intervals.get(name))
            for name, value in metrics_of.metrics(part).items()
        }
        return Group(key, len(part), patients, metrics, events)
    folds = sorted(part.groupby("fold", sort=False), key=lambda item: _natural(str(item[0])))
    by_fold = {str(fold): metrics_of.metrics(rows) for fold, rows in folds}
    metrics = {}
    for name in next(iter(by_fold.values())):
        values = {fold: fold_metrics[name] for fold, fold_metrics in by_fold.items()}
        metrics[name] = MetricSummary(*spread(list(values.values()), ddof), values)
    return Group(key, len(part), patients, metrics, events)


def _read(path: Path) -> DataFrame:
    """Table of stripped texts, by line number; column names as in `column_name`, classes as written."""
    import pandas as pd

    columns, rows = read_table(path, _column)
    cells = {name: [row.get(name, "") for _, row in rows] for name in columns}
    table = pd.DataFrame(cells, index=[line for line, _ in rows], dtype=str)
    if "fold" in table.columns:
        folds = [class_name(cell) for cell in table["fold"]]
        without = [is_missing(fold) for fold in folds]
        if all(without):
            return table.drop(columns="fold")
        if any(without):
            raise InputError(f"{path}, line {line_of(table, without.index(True))}: no fold, while other rows have one")
        refuse_clashes("folds", dict.fromkeys(folds, ""), str(path))
        table["fold"] = folds
    return table


def _column(text: str) -> str:
    """Name of a column; that of a probability or of one of several labels keeps the spelling of its class."""
    for prefix in ("prob_", "probability_", "label_"):
        if text.strip().lower().startswith(prefix):
            return prefix + text.strip()[len(prefix) :]
    return column_name(text)


def _name_patients(path: Path, table: DataFrame) -> list[str]:
    """Adds the column `_patient`: the case_id of a row, else its slide_id, else a name for the row. Returns notes.

    `InputError` for two spellings of a system, cohort or split, or of one patient or slide in a cohort.
    """
    for key in (key for key in KEYS if key in table.columns):
        refuse_clashes(key, first_places((name, f"line {line}") for line, name in table[key].items()), str(path))
    for column in ("case_id", "slide_id"):
        if column in table.columns:
            table[column] = _ids(path, table, column)
            for _, part in table.groupby("cohort") if "cohort" in table.columns else [((), table)]:
                first = part[column][(part[column] != "") & ~part[column].duplicated()]
                refuse_clashes(column, {name: f"line {line}" for line, name in first.items()}, str(path))
    empty = [""] * len(table)
    cases, slides = (table[c] if c in table.columns else empty for c in ("case_id", "slide_id"))
    # the prefixes tell the kinds apart; NUL would not: pandas 2 compares texts up to the first one
    table["_patient"] = [
        f"case {case}" if case else f"a slide {slide}" if slide else f"a line {line}"
        for line, case, slide in zip(table.index, cases, slides, strict=True)
    ]
    notes = []
    if "case_id" in table.columns and (n := sum(not case for case in cases)):
        notes.append(f"{n} rows without case_id: each counts as a separate patient")
    if "slide_id" in table.columns:
        group = [c for c in (*KEYS, "fold", "slide_id") if c in table.columns]
        twice = table[(table["slide_id"] != "") & table.duplicated(group)]
        if len(twice):
            line, slide = next(iter(twice["slide_id"].items()))
            notes.append(f"{len(twice)} rows repeat a slide and count once more: line {line}, {slide}")
    return notes


def _ids(path: Path, table: DataFrame, column: str) -> list[str]:
    read: dict[str, str] = {}
    for line, text in table[column].items():
        if text not in read:
            read[text] = read_id(text, column, f"{path}, line {line}")
    return [read[text] for text in table[column]]


def _notes(layout: str, ddof: int, by_fold: bool, groups: Sequence[Group]) -> tuple[str, ...]:
    metric = {"survival": "c-index: risks within 1e-8 count one half", "subtyping": "AUC: slide by slide"}
    notes = [metric[layout]] if layout in metric else []
    if layout == "survival":
        notes.append("a patient's slides count as one, with the mean of their risks")
    if by_fold:
        kind, where = ("population", "table 2") if ddof == 0 else ("sample", "table 1")
        notes.append(f"mean ± SD over the folds, SD of the {kind} (ddof {ddof}), as in the paper's {where}")
    lacking = {
        f"fold {fold}": None
        for group in groups
        for metric_of in group.metrics.values()
        for fold, value in metric_of.folds.items()
        if math.isnan(value)
    }
    if lacking:
        notes.append(f"not defined, and left out of a mean, in {', '.join(lacking)}")
    return tuple(notes)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _natural(name: str) -> tuple[int, float, str]:
    """Sort key of folds: 0, 1, 2, 10 in this order, names after them."""
    return (0, float(name), "") if name.replace(".", "", 1).isdigit() else (1, 0.0, name)
