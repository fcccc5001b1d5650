"""Evaluation of a CSV of predictions: metrics per fold and as mean ± SD, for each system and cohort separately.

Three layouts, recognised by their columns (`.csv` or `.csv.gz`; column names in any case; more columns do no harm):

    fold AUCs   system, cohort, fold, test_auc [, val_auc]
    survival    risk, survival_months (or months), event or censorship
    subtyping   label, prob_<class> …

The last two take case_id (the patient), slide_id, and may be divided by any of system, inputs, cohort, split and fold.
The risks of a patient's slides are averaged (survival); each slide counts by itself (subtyping). A row without case_id
counts as a patient. Identity of patients and slides follows `data/identity.py`, as for a cohort.
SD: the sample's (ddof 1) for AUCs, as in the paper's table 1; the population's (ddof 0) for the c-index, as in table 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.data.identity import class_name, first_places, is_missing, read_id, refuse_clashes, spelled_like
from longvit.data.table import column_name, read_table
from longvit.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

KEYS = ("system", "inputs", "cohort", "split")
_LAYOUTS = (
    "system, cohort, fold, test_auc; or risk, survival_months and event (or censorship); or label and prob_<class> …"
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


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a file."""

    path: Path
    layout: str
    """fold AUCs, survival or subtyping."""
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
                    "figures": {
                        name: {
                            "mean": _plain(m.mean),
                            "sd": _plain(m.sd),
                            "folds": {fold: _plain(value) for fold, value in m.folds.items()},
                            "interval": None if m.interval is None else [_plain(bound) for bound in m.interval],
                        }
                        for name, m in group.metrics.items()
                    },
                }
                for group in self.groups
            ],
            "notes": list(self.notes),
        }


def evaluate(path: str | Path, *, ddof: int | None = None, resamples: int = 1000, seed: int = 0) -> Evaluation:
    """Metrics of a file of predictions; see the top of this file. `ddof` None: 1 for AUCs, 0 for the c-index.

    Without a column fold each metric has the interval of `resamples` bootstrap samples of the patients (0: none).

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
    metrics_of: _Survival | _Subtyping | None = None
    has_probabilities = any(c.startswith("prob_") for c in columns)
    if {"fold", "test_auc"} <= columns:
        layout, default = "fold AUCs", 1
    elif "risk" in columns and columns & {"survival_months", "months"} and columns & {"event", "censorship"}:
        layout, metrics_of, default = "survival", _Survival(path, table), 0
    elif "label" in columns and has_probabilities:
        layout, metrics_of, default = "subtyping", _Subtyping(path, table), 1
    else:
        names = ", ".join(str(c) for c in table.columns)
        raise InputError(f"{path}: columns {names}; needed: {_LAYOUTS}")
    patient_notes = _name_patients(path, table)
    ddof = default if ddof is None else ddof
    keys = [key for key in KEYS if key in columns]
    groups = []
    for values, part in table.groupby(keys, sort=False) if keys else [((), table)]:
        key = dict(zip(keys, map(str, values), strict=True))
        if metrics_of is None:
            groups.append(_fold_aucs(path, key, part, ddof))
        else:
            groups.append(_group(key, part, metrics_of, ddof, resamples, seed))
    return Evaluation(
        path, layout, ddof, tuple(groups), (*patient_notes, *_notes(layout, ddof, "fold" in columns, groups))
    )


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
            values = _numbers(path, part, column, low=0, high=1, empty=True)
            mean, sd = spread(values.tolist(), ddof)
            metrics[column] = MetricSummary(mean, sd, dict(zip(part["fold"].astype(str), values.tolist(), strict=True)))
    return Group(key, len(part), None, metrics)


def _group(
    key: dict[str, str], part: DataFrame, metrics_of: _Survival | _Subtyping, ddof: int, resamples: int, seed: int
) -> Group:
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


class _Survival:
    """Times, events and risks of a table; c-index of a part of its rows."""

    def __init__(self, path: Path, table: DataFrame) -> None:
        column = "survival_months" if "survival_months" in table.columns else "months"
        self.path = path
        table["_months"] = _numbers(path, table, column, low=0)
        table["_risk"] = _numbers(path, table, "risk")
        named = [name for name in ("event", "censorship") if name in table.columns]
        events = []
        for name in named:
            value = _numbers(path, table, name)
            if (bad := np.flatnonzero(~np.isin(value, (0, 1)))).size:
                raise InputError(f"{path}, line {_line(table, bad[0])}: {name} is {value[bad[0]]:g}; it must be 0 or 1")
            events.append(value == 1 if name == "event" else value == 0)
        if len(events) == 2 and (bad := np.flatnonzero(events[0] != events[1])).size:
            raise InputError(f"{path}, line {_line(table, bad[0])}: event and censorship contradict each other")
        table["_event"] = events[0]

    def _patients(self, part: DataFrame) -> DataFrame:
        """Table with a row per patient: the mean risk of its slides."""
        if "case_id" not in part.columns:
            return part
        by_case = part.groupby("_patient", sort=False)
        if (several := by_case[["_months", "_event"]].nunique().max(axis=1) > 1).any():
            self._refuse_two_outcomes(part[part["_patient"] == several[several].index[0]])
        return by_case.agg(_months=("_months", "first"), _event=("_event", "first"), _risk=("_risk", "mean"))

    def _refuse_two_outcomes(self, rows: DataFrame) -> None:
        first = rows.iloc[0]
        other = rows[(rows["_months"] != first["_months"]) | (rows["_event"] != first["_event"])].iloc[0]
        name = f"patient {first['case_id']}" if first["case_id"] else f"slide {first['slide_id']}"
        lines = [f"line {row.name}: {row['_months']:g}, event {int(row['_event'])}" for row in (first, other)]
        raise InputError(f"{self.path}: {name} has rows with different times or events ({'; '.join(lines)})")

    def events(self, part: DataFrame) -> int:
        return int((part.drop_duplicates("_patient") if "case_id" in part.columns else part)["_event"].sum())

    def metrics(self, part: DataFrame) -> dict[str, float]:
        from longvit.metrics.survival import c_index

        rows = self._patients(part)
        return {"c_index": c_index(rows["_months"], rows["_event"], rows["_risk"])}

    def intervals(self, part: DataFrame, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        from longvit.metrics.survival import bootstrap_c_index

        rows = self._patients(part)
        names = [str(name) for name in rows.index]
        months, events, risks = rows["_months"], rows["_event"], rows["_risk"]
        interval = bootstrap_c_index(months, events, risks, names, resamples=resamples, seed=seed)
        return {"c_index": (interval.low, interval.high)}


class _Subtyping:
    """Labels and probabilities of a table; metrics of a part of its rows."""

    def __init__(self, path: Path, table: DataFrame) -> None:
        self.columns = [c for c in table.columns if c.startswith("prob_")]
        classes = [c.removeprefix("prob_") for c in self.columns]
        if len(classes) < 2:
            raise InputError(f"{path}: one column of probabilities, {self.columns[0]}; two or more classes are needed")
        for column in self.columns:
            table[column] = _numbers(path, table, column, low=0, high=1)
        index = {class_name(name): k for k, name in enumerate(classes)}
        if len(index) < len(classes):
            raise InputError(f"{path}: two columns of one class among {', '.join(self.columns)}; remove one")
        refuse_clashes("columns", {f"prob_{name}": "" for name in index}, str(path))
        labels = [class_name(label) for label in table["label"]]
        for i, label in enumerate(labels):
            if label not in index:
                near = spelled_like(label, index)
                hint = "" if near is None else f"; {near!r} differs from it in spelling only: write one"
                raise InputError(
                    f"{path}, line {_line(table, i)}: label {label!r}, but there is no column prob_{label}; "
                    f"classes: {', '.join(classes)}{hint}"
                    if label
                    else f"{path}, line {_line(table, i)}: no label; fill it in or remove the row"
                )
        table["_label"] = [index[label] for label in labels]

    def events(self, part: DataFrame) -> None:
        return None

    def metrics(self, part: DataFrame) -> dict[str, float]:
        from longvit.metrics.classification import classification_metrics

        return classification_metrics(part["_label"], part[self.columns])

    def intervals(self, part: DataFrame, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        from longvit.metrics.classification import bootstrap

        patients = [str(p) for p in part["_patient"]]
        intervals = bootstrap(part["_label"], part[self.columns], patients, resamples=resamples, seed=seed)
        return {metric: (interval.low, interval.high) for metric, interval in intervals.items()}


def _read(path: Path) -> DataFrame:
    """Table of stripped texts, by line number; column names as in `column_name`, classes as written."""
    import pandas as pd

    columns, rows = read_table(path, lambda c: f"prob_{c[5:]}" if c.lower().startswith("prob_") else column_name(c))
    cells = {name: [row.get(name, "") for _, row in rows] for name in columns}
    table = pd.DataFrame(cells, index=[line for line, _ in rows], dtype=str)
    if "fold" in table.columns:
        folds = [class_name(cell) for cell in table["fold"]]
        without = [is_missing(fold) for fold in folds]
        if all(without):
            return table.drop(columns="fold")
        if any(without):
            raise InputError(f"{path}, line {_line(table, without.index(True))}: no fold, while other rows have one")
        refuse_clashes("folds", dict.fromkeys(folds, ""), str(path))
        table["fold"] = folds
    return table


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


def _numbers(
    path: Path, table: DataFrame, column: str, *, low: float = -math.inf, high: float = math.inf, empty: bool = False
) -> np.ndarray:
    """Column as float64; `InputError` with the line of a field that is not a finite number in low … high."""
    import pandas as pd

    values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    wrong = ~(np.isfinite(values) & (values >= low) & (values <= high))
    if empty:
        wrong &= (table[column] != "").to_numpy()
    if (bad := np.flatnonzero(wrong)).size:
        within = "" if math.isinf(low) else f", at least {low:g}" if math.isinf(high) else f" in {low:g} … {high:g}"
        raise InputError(
            f"{path}, line {_line(table, bad[0])}: {column} is {table[column].iloc[bad[0]]!r}; "
            f"it must be a number{within}"
        )
    return values


def _line(table: DataFrame, i: Any) -> int:
    """Line of the file for a row of the table."""
    return int(table.index[int(i)])


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
