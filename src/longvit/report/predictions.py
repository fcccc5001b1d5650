"""Predictions table (predictions.csv of a run or a cross-validation), read for a report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvit.errors import InputError


@dataclass(frozen=True)
class PredictedSlides:
    """Predictions of the evaluated slides, one row for each fold in which a slide was evaluated. N rows, C classes."""

    lines: tuple[dict[str, str], ...]
    """Rows as in the file; `fold` is "" in the table of a single run."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> np.ndarray:
        """Column as text, str (N,)."""
        return np.array([line[name] for line in self.lines], dtype=str)

    def numbers(self, name: str) -> np.ndarray:
        """Column as numbers, float64 (N,)."""
        return np.array([float(line[name]) for line in self.lines], dtype=np.float64)

    @property
    def is_classified(self) -> bool:
        """True where the table has labels and class probabilities."""
        return bool(self.lines) and {"label", *(f"prob_{c}" for c in self.classes)} <= self.lines[0].keys()

    @property
    def is_followed(self) -> bool:
        """True where the table has times, events and risks."""
        return bool(self.lines) and {"survival_months", "event", "risk"} <= self.lines[0].keys()

    @property
    def is_measured(self) -> bool:
        """True where the table has numbers and predicted numbers."""
        return bool(self.lines) and {"value", "predicted_value"} <= self.lines[0].keys()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns with several labels, each with its probability; empty in tables of other tasks."""
        names = self.lines[0].keys() if self.lines else ()
        found = [name.removeprefix("probability_") for name in names if name.startswith("probability_")]
        return tuple(name for name in found if f"label_{name}" in names)

    def label_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N, C): 1, 0, or NaN where there is none, and probabilities (N, C) of the label columns."""
        columns = self.label_columns
        labels = [[float(line[f"label_{name}"] or "nan") for name in columns] for line in self.lines]
        return np.array(labels), np.stack([self.numbers(f"probability_{name}") for name in columns], 1)

    @property
    def labels(self) -> np.ndarray:
        """Labels, int64 (N,), as index into `classes`."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[line["label"]] for line in self.lines], dtype=np.int64)

    @property
    def probabilities(self) -> np.ndarray:
        """Class probabilities, float64 (N, C)."""
        return np.stack([self.numbers(f"prob_{name}") for name in self.classes], 1)

    @property
    def folds(self) -> tuple[str, ...]:
        """Names of the folds, in the order of the file."""
        return tuple(dict.fromkeys(line["fold"] for line in self.lines))

    def by_fold(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Labels and probabilities of each fold."""
        fold, labels, probabilities = self.column("fold"), self.labels, self.probabilities
        return {name: (labels[fold == name], probabilities[fold == name]) for name in self.folds}


def read_predicted(path: str | Path, classes: Sequence[str], split: str | None = None) -> PredictedSlides:
    """Reads the rows of `split`: by default test, or val where there is none. `InputError` for a broken table."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; the cross-validation writes it") from error
    for name in ("case_id", "slide_id", "split"):
        if lines and name not in lines[0]:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(lines[0])}")
    main = split or ("test" if any(line["split"] == "test" for line in lines) else "val")
    chosen = tuple({"fold": "", **line} for line in lines if line["split"] == main)
    predicted = PredictedSlides(chosen, tuple(classes))
    _check(path, predicted)
    return predicted


def _check(path: Path, predicted: PredictedSlides) -> None:
    """Checks the values that the report computes with."""
    names = [f"prob_{c}" for c in predicted.classes] if predicted.is_classified else []
    names += ["survival_months", "event", "risk"] if predicted.is_followed else []
    names += ["value", "predicted_value"] if predicted.is_measured else []
    names += [f"probability_{name}" for name in predicted.label_columns]
    for i, line in enumerate(predicted.lines):
        if predicted.is_classified and line["label"] not in predicted.classes:
            raise InputError(f"{path}: slide {line['slide_id']}: label {line['label']!r} is not one of the classes")
        for name in names:
            try:
                finite = np.isfinite(float(line[name]))
            except (TypeError, ValueError):
                finite = False
            if not finite:
                raise InputError(f"{path}: evaluated row {i + 1}, {name}: {line[name]!r} is not a finite number")
        for name in predicted.label_columns:
            if line[f"label_{name}"] not in ("", "0", "1"):
                raise InputError(
                    f"{path}: evaluated row {i + 1}, label_{name}: {line[f'label_{name}']!r} is not 0, 1 or empty"
                )
