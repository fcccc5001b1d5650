"""A table of predictions (predictions.csv of a run or a cross-validation), read for its report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvit.errors import InputError


@dataclass(frozen=True)
class PredictedSlides:
    """The evaluated rows: a slide stands there once for each fold in which it was evaluated. N rows, C classes."""

    lines: tuple[dict[str, str], ...]
    """As they stand in the file; `fold` is "" where a single run wrote it."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> np.ndarray:
        """str (N,)."""
        return np.array([line[name] for line in self.lines], dtype=str)

    def numbers(self, name: str) -> np.ndarray:
        """float64 (N,)."""
        return np.array([float(line[name]) for line in self.lines], dtype=np.float64)

    @property
    def is_classified(self) -> bool:
        """There are labels and class probabilities."""
        return bool(self.lines) and {"label", *(f"prob_{c}" for c in self.classes)} <= self.lines[0].keys()

    @property
    def is_followed(self) -> bool:
        """There are times, events and risks."""
        return bool(self.lines) and {"survival_months", "event", "risk"} <= self.lines[0].keys()

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,), index into `classes`."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[line["label"]] for line in self.lines], dtype=np.int64)

    @property
    def probabilities(self) -> np.ndarray:
        """float64 (N, C)."""
        return np.stack([self.numbers(f"prob_{name}") for name in self.classes], 1)

    @property
    def folds(self) -> tuple[str, ...]:
        """Names, in the order of the file."""
        return tuple(dict.fromkeys(line["fold"] for line in self.lines))

    def by_fold(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Fold -> labels and probabilities."""
        fold, labels, probabilities = self.column("fold"), self.labels, self.probabilities
        return {name: (labels[fold == name], probabilities[fold == name]) for name in self.folds}


def read_predicted(path: str | Path, classes: Sequence[str], split: str | None = None) -> PredictedSlides:
    """The rows of `split`: by default test, or val where there is none. `InputError` in one line for a broken table."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path}: not read: {error.strerror}; the cross-validation writes it") from error
    for name in ("case_id", "slide_id", "split"):
        if lines and name not in lines[0]:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(lines[0])}")
    main = split or ("test" if any(line["split"] == "test" for line in lines) else "val")
    chosen = tuple({"fold": "", **line} for line in lines if line["split"] == main)
    found = PredictedSlides(chosen, tuple(classes))
    _check(path, found)
    return found


def _check(path: Path, found: PredictedSlides) -> None:
    """The cells that the report computes with."""
    names = [f"prob_{c}" for c in found.classes] if found.is_classified else []
    names += ["survival_months", "event", "risk"] if found.is_followed else []
    for i, line in enumerate(found.lines):
        if found.is_classified and line["label"] not in found.classes:
            raise InputError(f"{path}: slide {line['slide_id']}: label {line['label']!r} is none of the classes")
        for name in names:
            try:
                finite = np.isfinite(float(line[name]))
            except (TypeError, ValueError):
                finite = False
            if not finite:
                raise InputError(f"{path}: evaluated row {i + 1}, {name}: {line[name]!r} is no finite number")
