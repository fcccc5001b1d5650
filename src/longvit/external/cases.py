"""Cases of a cohort: labels and probabilities of each system, per slide or per patient.

A patient has the mean of the probabilities of its slides. Patients whose slides have different labels have no label as
a patient; they are left out at this level and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longvit.data.cohort import SlideRow

SLIDES, PATIENTS = "slides", "patients"
LEVELS = (SLIDES, PATIENTS)


@dataclass(frozen=True)
class Cases:
    """Labelled cases. N cases, C classes."""

    labels: np.ndarray
    """int64 (N,), an index into the classes."""
    patients: tuple[str, ...]
    """case_id of each."""
    probabilities: Mapping[str, np.ndarray]
    """System -> float64 (N, C)."""
    slides: np.ndarray
    """int64 (N,): number of slides of each case."""
    mixed: int = 0
    """Patients that are left out, since their slides have different labels."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, mask: np.ndarray) -> Cases:
        """The cases where `mask` (N,) is True."""
        index = np.flatnonzero(mask)
        return Cases(
            self.labels[index],
            tuple(self.patients[i] for i in index),
            {name: p[index] for name, p in self.probabilities.items()},
            self.slides[index],
        )


def slide_cases(rows: Sequence[SlideRow], labels: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> Cases:
    """A case per slide."""
    return Cases(labels, tuple(row.case_id for row in rows), dict(probabilities), np.ones(len(rows), np.int64))


def patient_cases(slides: Cases) -> Cases:
    """A case per patient, in the order of their first slides."""
    names = list(dict.fromkeys(slides.patients))
    index = {name: i for i, name in enumerate(names)}
    patient = np.array([index[name] for name in slides.patients], dtype=np.int64)
    count = np.bincount(patient, minlength=len(names))
    lowest = np.full(len(names), np.iinfo(np.int64).max)
    highest = np.full(len(names), -1)
    np.minimum.at(lowest, patient, slides.labels)
    np.maximum.at(highest, patient, slides.labels)
    one_label = lowest == highest
    means = {}
    for name, p in slides.probabilities.items():
        sums = np.zeros((len(names), p.shape[1]))
        np.add.at(sums, patient, p)
        means[name] = (sums / count[:, None])[one_label]
    kept = tuple(name for name, ok in zip(names, one_label, strict=True) if ok)
    return Cases(lowest[one_label], kept, means, count[one_label], int((~one_label).sum()))


def cases_at(level: str, slides: Cases) -> Cases:
    """The cases of a level, from those of the slides."""
    return slides if level == SLIDES else patient_cases(slides)


def joined(parts: Sequence[Cases], system: str = "model") -> Cases:
    """Cases of several members pooled, under one system name."""
    return Cases(
        np.concatenate([part.labels for part in parts]),
        tuple(name for part in parts for name in part.patients),
        {system: np.concatenate([next(iter(part.probabilities.values())) for part in parts])},
        np.concatenate([part.slides for part in parts]),
    )
