"""Table of predictions as the viewer shows it: the prediction of any task, the label, and the error of every row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longvit.data.table import column_name, read_table
from longvit.errors import InputError
from longvit.report.predictions import PredictedSlides
from longvit.report.worst_errors import discordant_patients
from longvit.viewer.items import ViewPrediction

_PROBABILITY = "prob_"
_OF_LABEL, _LABEL = "probability_", "label_"
_SURVIVAL = re.compile(r"survival_([0-9.eE+-]+)_months")
_PLAIN = ("slide_id", "case_id", "label", "split", "fold", "site", "path", "risk", "survival_months", "event")


@dataclass(frozen=True)
class PredictedRow:
    """Row of a table of predictions."""

    slide_id: str
    prediction: ViewPrediction
    label: str = ""
    case_id: str = ""
    site: str = ""
    path: str = ""
    bad_tiles: str = ""


def is_prediction_table(columns: Sequence[str]) -> bool:
    """True for columns that hold predictions."""
    return any(
        name.startswith((_PROBABILITY, _OF_LABEL)) or name in ("risk", "prediction", "predicted_value")
        for name in columns
    )


def read_columns(path: Path) -> list[str]:
    """Column names of a CSV. Raises `InputError` for a file that is no table."""
    return read_table(path, _name)[0]


def read_predictions(path: Path) -> list[PredictedRow]:
    """Rows of a table with `slide_id` and the columns of a task's predictions; labels and folds are optional.

    Raises `InputError` for a table without them, and for a cell that is not a finite number, with its line.
    """
    columns, table = read_table(path, _name)
    if "slide_id" not in columns or not is_prediction_table(columns):
        raise InputError(
            f"{path}: a table of predictions has columns slide_id, and prob_<class>, risk, predicted_value or "
            f"probability_<label>"
        )
    empty = dict.fromkeys(columns, "")  # a short line lacks its last cells
    rows = [predicted_row(f"{path}, line {line}", {**empty, **cells}) for line, cells in table]
    if {"risk", "survival_months", "event"} <= set(columns):
        return _with_survival_errors(rows, [cells for _, cells in table])
    return rows


def predicted_row(where: str, cells: Mapping[str, str]) -> PredictedRow:
    """Row of a table of predictions; `where`: its place, for messages. `InputError`: a cell that is not a number."""

    def number(name: str) -> float:
        try:
            value = float(cells[name])
        except (KeyError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{where}: {name} is {cells.get(name, '')!r}, not a finite number")
        return value

    if "predicted_value" in cells:
        return _row_of(cells, *_regression(cells, number))
    if any(name.startswith(_OF_LABEL) for name in cells):
        return _row_of(cells, *_multilabel(cells, number))
    probabilities = {name.removeprefix(_PROBABILITY): number(name) for name in cells if name.startswith(_PROBABILITY)}
    label = cells.get("label", "")
    predicted = cells.get("prediction", "")
    if not predicted and probabilities:
        predicted = max(probabilities, key=lambda name: probabilities[name])
    is_wrong, error, note = None, None, ""
    if label and predicted:
        is_wrong = label != predicted
        share = probabilities.get(label)
        error = float(is_wrong) if share is None else 1 - share
        note = f"predicted {predicted}, label {label}" if is_wrong else ""
    curve = tuple(
        (float(match[1]), number(name)) for name in cells if (match := _SURVIVAL.fullmatch(name)) and cells[name]
    )
    risk = number("risk") if cells.get("risk") else None
    if cells.get("survival_months") and cells.get("event"):
        for name in ("survival_months", "event"):
            number(name)
        happened = cells["event"] in ("1", "1.0")
        label = (
            f"event after {cells['survival_months']} months" if happened else f"no event in {cells['survival_months']}"
        )
        label += "" if happened else " months"
    prediction = ViewPrediction(
        predicted=predicted,
        probabilities=probabilities,
        risk=risk,
        curve=curve,
        fold=cells.get("fold", ""),
        split=cells.get("split", ""),
        is_wrong=is_wrong,
        error=error,
        note=note,
    )
    return _row_of(cells, prediction, label)


def _regression(cells: Mapping[str, str], number: Callable[[str], float]) -> tuple[ViewPrediction, str]:
    """Prediction and label of a number; the error is its distance from the label."""
    predicted = number("predicted_value")
    shown = f"{predicted:.4g}"
    error, note, label = None, "", ""
    if cells.get("value"):
        truth = number("value")
        label, error = f"{truth:.4g}", abs(predicted - truth)
        note = f"predicted {shown}, label {label}"
    prediction = ViewPrediction(
        predicted=shown, fold=cells.get("fold", ""), split=cells.get("split", ""), error=error, note=note
    )
    return prediction, label


def _multilabel(cells: Mapping[str, str], number: Callable[[str], float]) -> tuple[ViewPrediction, str]:
    """Prediction and labels of several columns; the error is that of the worst column that has a label."""
    names = [name.removeprefix(_OF_LABEL) for name in cells if name.startswith(_OF_LABEL)]
    probabilities = {name: number(_OF_LABEL + name) for name in names}
    labels = {name: number(_LABEL + name) for name in names if cells.get(_LABEL + name)}
    errors = {name: abs(labels[name] - probabilities[name]) for name in labels}
    wrong = sorted((name for name in errors if errors[name] > 0.5), key=lambda name: -errors[name])
    prediction = ViewPrediction(
        probabilities=probabilities,
        fold=cells.get("fold", ""),
        split=cells.get("split", ""),
        is_wrong=bool(wrong) if labels else None,
        error=max(errors.values(), default=None),
        note=", ".join(f"{name}: label {labels[name]:g}, predicted {probabilities[name]:.2f}" for name in wrong),
    )
    return prediction, ", ".join(f"{name} {value:g}" for name, value in labels.items())


def _row_of(cells: Mapping[str, str], prediction: ViewPrediction, label: str) -> PredictedRow:
    return PredictedRow(
        cells.get("slide_id", ""),
        prediction,
        label,
        cells.get("case_id", ""),
        cells.get("site", ""),
        cells.get("path", ""),
        cells.get("n_bad_tiles", ""),
    )


def _with_survival_errors(rows: Sequence[PredictedRow], lines: Sequence[dict[str, str]]) -> list[PredictedRow]:
    """Rows with the share of discordant pairs of their patient, within the split."""
    errors: dict[tuple[str, str], tuple[float, str]] = {}
    for split in dict.fromkeys(row.prediction.split for row in rows):
        chosen = tuple(
            {"fold": "", "case_id": line["slide_id"], **line}
            for line in lines
            if line.get("split", "") == split and all(line.get(name) for name in ("risk", "survival_months", "event"))
        )
        for worst in discordant_patients(PredictedSlides(chosen, ())):
            errors |= {(split, slide_id): (worst.error, worst.caption) for slide_id in worst.slide_ids}
    found = []
    for row in rows:
        error, note = errors.get((row.prediction.split, row.slide_id), (0.0, ""))
        found.append(replace(row, prediction=replace(row.prediction, error=error, note=note)))
    return found


def _name(text: str) -> str:
    """Column name; that of a probability keeps the spelling of its class."""
    stripped = text.strip()
    name = column_name(stripped)
    prefix = next((p for p in (_PROBABILITY, _OF_LABEL, _LABEL) if name.startswith(p)), "")
    return name if name in _PLAIN or not prefix else prefix + stripped[len(prefix) :]
