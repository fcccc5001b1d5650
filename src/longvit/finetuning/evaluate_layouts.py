"""Layouts of a table of predictions that `evaluate` recognises: labels and predictions of a task, and their metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from longvit.data.identity import class_name, refuse_clashes, spelled_like
from longvit.errors import InputError
from longvit.tasks.patient_table import aggregated_cells, is_predicted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pandas import DataFrame

    from longvit.metrics.classification import Interval
    from longvit.tasks.task import Aggregate


class Layout(Protocol):
    """Labels and predictions of a table; metrics of a part of its rows."""

    def events(self, part: DataFrame) -> int | None:
        """Number of patients with the event; None in other tasks than survival."""

    def metrics(self, part: DataFrame) -> dict[str, float]:
        """Metric -> value, NaN where not defined."""

    def intervals(self, part: DataFrame, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """Metric -> bounds of its 95 % interval, resampled by patient."""

    def label_columns(self) -> list[str]:
        """Columns of the label: slides of one patient must agree in them."""


def patients_of(layout: Layout, part: DataFrame, how: Aggregate) -> tuple[DataFrame, int]:
    """A row per patient with the aggregated predictions of its slides, and the number of patients that are left out.

    Left out is a patient whose slides have different labels.
    """
    predicted = [name for name in part.columns if is_predicted(name) and part[name].dtype.kind == "f"]
    labels = layout.label_columns()
    lines: list[Any] = []
    known: list[list[float]] = []
    rows: list[dict[str, float]] = []
    left_out = 0
    for _, slides in part.groupby("_patient", sort=False):
        if (slides[labels].nunique() > 1).any():  # a missing label differs from none
            left_out += 1
            continue
        lines.append(slides.index[0])
        known.append(slides[labels].bfill().iloc[0].tolist())
        rows.append(
            aggregated_cells(
                [
                    dict(zip(predicted, values, strict=True))
                    for values in slides[predicted].to_numpy(np.float64).tolist()
                ],
                how,
            )
        )
    patients = part.loc[lines].copy()
    for c, name in enumerate(labels):
        patients[name] = np.array([row[c] for row in known]).astype(part[name].to_numpy().dtype)
    for name in predicted:
        patients[name] = np.array([row[name] for row in rows], dtype=np.float64)
    return patients, left_out


class SurvivalLayout:
    """Times, events and risks of a table; c-index of a part of its rows."""

    def __init__(self, path: Path, table: DataFrame) -> None:
        column = "survival_months" if "survival_months" in table.columns else "months"
        self.path = path
        table["_months"] = numbers(path, table, column, low=0)
        table["_risk"] = numbers(path, table, "risk")
        named = [name for name in ("event", "censorship") if name in table.columns]
        events = []
        for name in named:
            value = numbers(path, table, name)
            if (bad := np.flatnonzero(~np.isin(value, (0, 1)))).size:
                where = f"{path}, line {line_of(table, bad[0])}"
                raise InputError(f"{where}: {name} is {value[bad[0]]:g}; it must be 0 or 1")
            events.append(value == 1 if name == "event" else value == 0)
        if len(events) == 2 and (bad := np.flatnonzero(events[0] != events[1])).size:
            raise InputError(f"{path}, line {line_of(table, bad[0])}: event and censorship contradict each other")
        table["_event"] = events[0]

    def label_columns(self) -> list[str]:
        return ["_months", "_event"]

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


class SubtypingLayout:
    """Labels and probabilities of a table; metrics of a part of its rows."""

    def __init__(self, path: Path, table: DataFrame) -> None:
        self.columns = [c for c in table.columns if c.startswith("prob_")]
        classes = [c.removeprefix("prob_") for c in self.columns]
        if len(classes) < 2:
            raise InputError(f"{path}: one column of probabilities, {self.columns[0]}; two or more classes are needed")
        for column in self.columns:
            table[column] = numbers(path, table, column, low=0, high=1)
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
                    f"{path}, line {line_of(table, i)}: label {label!r}, but there is no column prob_{label}; "
                    f"classes: {', '.join(classes)}{hint}"
                    if label
                    else f"{path}, line {line_of(table, i)}: no label; fill it in or remove the row"
                )
        table["_label"] = [index[label] for label in labels]

    def label_columns(self) -> list[str]:
        return ["_label"]

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


class OrdinalLayout(SubtypingLayout):
    """Grades and their probabilities; the columns of probabilities are in rising order."""

    def __init__(self, path: Path, table: DataFrame) -> None:
        super().__init__(path, table)
        table["expected_rank"] = numbers(path, table, "expected_rank")
        self.grades = tuple(column.removeprefix("prob_") for column in self.columns)

    def metrics(self, part: DataFrame) -> dict[str, float]:
        from longvit.metrics.ordinal import ordinal_metrics

        return ordinal_metrics(part["_label"], part[self.columns], self.grades)

    def intervals(self, part: DataFrame, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        from longvit.metrics.ordinal import bootstrap_ordinal

        patients = [str(p) for p in part["_patient"]]
        return _bounds(
            bootstrap_ordinal(part["_label"], part[self.columns], self.grades, patients, resamples=resamples, seed=seed)
        )


class RegressionLayout:
    """Numbers and predicted numbers."""

    def __init__(self, path: Path, table: DataFrame) -> None:
        for column in ("value", "predicted_value"):
            table[column] = numbers(path, table, column)

    def label_columns(self) -> list[str]:
        return ["value"]

    def events(self, part: DataFrame) -> None:
        return None

    def metrics(self, part: DataFrame) -> dict[str, float]:
        from longvit.metrics.regression import regression_metrics

        return regression_metrics(part["value"], part["predicted_value"])

    def intervals(self, part: DataFrame, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        from longvit.metrics.regression import bootstrap_regression

        patients = [str(p) for p in part["_patient"]]
        return _bounds(
            bootstrap_regression(part["value"], part["predicted_value"], patients, resamples=resamples, seed=seed)
        )


class MultilabelLayout:
    """Several labels and their probabilities; an empty label is left out of the metrics of its column."""

    def __init__(self, path: Path, table: DataFrame) -> None:
        self.names = tuple(column.removeprefix("probability_") for column in label_probabilities(table))
        for name in self.names:
            column = f"label_{name}"
            table[f"probability_{name}"] = numbers(path, table, f"probability_{name}", low=0, high=1)
            values = numbers(path, table, column, low=0, high=1, empty=True)
            if (bad := np.flatnonzero(~np.isnan(values) & ~np.isin(values, (0, 1)))).size:
                where = f"{path}, line {line_of(table, bad[0])}"
                raise InputError(f"{where}: {column} is {values[bad[0]]:g}; it must be 0 or 1")
            table[column] = values

    def label_columns(self) -> list[str]:
        return [f"label_{name}" for name in self.names]

    def events(self, part: DataFrame) -> None:
        return None

    def _table(self, part: DataFrame) -> tuple[np.ndarray, np.ndarray]:
        columns = [f"label_{name}" for name in self.names], [f"probability_{name}" for name in self.names]
        return part[columns[0]].to_numpy(np.float64), part[columns[1]].to_numpy(np.float64)

    def metrics(self, part: DataFrame) -> dict[str, float]:
        from longvit.metrics.multilabel import multilabel_metrics

        return multilabel_metrics(*self._table(part), self.names)

    def intervals(self, part: DataFrame, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        from longvit.metrics.multilabel import bootstrap_multilabel

        patients = [str(p) for p in part["_patient"]]
        return _bounds(bootstrap_multilabel(*self._table(part), self.names, patients, resamples=resamples, seed=seed))


def label_probabilities(table: DataFrame) -> list[str]:
    """Columns `probability_<name>` that have a column `label_<name>`."""
    names = [column for column in table.columns if column.startswith("probability_")]
    return [name for name in names if f"label_{name.removeprefix('probability_')}" in table.columns]


def _bounds(intervals: Mapping[str, Interval]) -> dict[str, tuple[float, float]]:
    return {name: (interval.low, interval.high) for name, interval in intervals.items()}


def numbers(
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
            f"{path}, line {line_of(table, bad[0])}: {column} is {table[column].iloc[bad[0]]!r}; "
            f"it must be a number{within}"
        )
    return values


def line_of(table: DataFrame, i: Any) -> int:
    """Line of the file for a row of the table."""
    return int(table.index[int(i)])
