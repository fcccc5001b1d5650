"""Ordinal: a grade per slide, one of classes that have an order; conditional cuts (CORN).

Cut k lies between grade k and grade k + 1. Its output z_k is the logit of P(y > k | y ≥ k), so that

    P(y > k) = sigmoid(z_0) … sigmoid(z_k)                       never increases with k
    loss = -log P(y) = Σ_{k ≤ y} BCE(z_k, y > k)                 over the C - 1 cuts

The conditional cuts are those of Shi, Cao and Raschka 2021 (arXiv 2111.08851, "Deep neural networks for
rank-consistent ordinal regression"). Their sum is divided by the number of slides, as in a likelihood. The predicted
grade is the most probable one. Grades are numbers, names with a number (G1, G2), or named in rising order by
`--keep low intermediate high`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.table import number
from longvit.errors import InputError
from longvit.metrics.classification import Interval
from longvit.tasks.settings import TaskSettings
from longvit.tasks.subtyping import logistic_probabilities
from longvit.tasks.task import Aggregate, OutputMeaning, Predictions, Task

if TYPE_CHECKING:
    import torch

_BETWEEN = " | "
_NUMBERED = re.compile(r"([^0-9]*)([0-9]{1,9})([^0-9]*)")
"""A name with one number: G1, G2 … have the order of their numbers."""


class Ordinal(Task):
    """Ordinal: one of the cohort's grades per slide."""

    name: ClassVar[str] = "ordinal"
    metric: ClassVar[str] = "quadratic_kappa"
    metric_label: ClassVar[str] = "quadratic-weighted kappa"
    chance: ClassVar[float] = 0.0
    loss_label: ClassVar[str] = "negative log likelihood"
    has_classes: ClassVar[bool] = True
    pools_folds: ClassVar[bool] = True

    def __init__(self, cohort: Cohort, settings: TaskSettings) -> None:
        super().__init__(cohort, settings)
        self.grades = checked_grades(cohort)
        self._grade_of = {name: k for k, name in enumerate(self.grades)}

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(_BETWEEN.join(pair) for pair in pairwise(self.grades))

    @classmethod
    def classes_of(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        return grades_of(output_names)

    @classmethod
    def meanings(cls, output_names: Sequence[str]) -> tuple[OutputMeaning, ...]:
        grades = grades_of(output_names)
        first = [OutputMeaning(f"above {grades[0]}", f"log-odds of a grade above {grades[0]}")]
        others = [
            OutputMeaning(f"above {name}", f"log-odds of a grade above {name}, of slides of at least {name}")
            for name in grades[1:-1]
        ]
        return (*first, *others)

    @classmethod
    def shown_output(cls, logits: np.ndarray) -> int:
        """The cut whose probability is nearest to one half: it decides between the two likeliest grades."""
        return int(np.abs(probabilities_above(logits[None])[0] - 0.5).argmin())

    @classmethod
    def aggregated(cls, logits: np.ndarray, how: Aggregate) -> np.ndarray:
        """Mean of the slides' probabilities of each grade. Maximum: the slide with the highest expected rank."""
        p = grade_probabilities(logits)
        if how == "max":
            return np.asarray(logits[(p @ np.arange(p.shape[1])).argmax()])
        mean = np.maximum(p.mean(0), 1e-300)
        above = mean[::-1].cumsum()[::-1]  # P(y ≥ k)
        return np.log(above[1:]) - np.log(mean[:-1])

    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """`label`: number of the grade from 0, int64 (N,)."""
        return {"label": np.array([self._grade_of[row.label] for row in rows], dtype=np.int64)}

    def losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch
        from torch.nn import functional

        grade = targets["label"].unsqueeze(1)  # (B, 1)
        cut = torch.arange(logits.shape[1], device=logits.device).unsqueeze(0)  # (1, C - 1)
        losses = functional.binary_cross_entropy_with_logits(logits, (grade > cut).to(logits.dtype), reduction="none")
        return (losses * (grade >= cut)).sum(1)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        from longvit.metrics.ordinal import ordinal_metrics

        labels = self.targets(predictions.rows)["label"]
        return ordinal_metrics(labels, grade_probabilities(predictions.logits), self.grades)

    def intervals(self, predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Interval]:
        from longvit.metrics.ordinal import bootstrap_ordinal

        labels, probabilities = self.targets(predictions.rows)["label"], grade_probabilities(predictions.logits)
        return bootstrap_ordinal(
            labels, probabilities, self.grades, predictions.patients, resamples=resamples, seed=seed
        )

    @classmethod
    def prediction_columns(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        return (*(f"prob_{name}" for name in grades_of(output_names)), "prediction", "expected_rank")

    @classmethod
    def prediction_cells(cls, logits: np.ndarray, output_names: Sequence[str]) -> tuple[str, ...]:
        """`expected_rank`: mean number of grades below, 0 … C - 1."""
        p = grade_probabilities(logits[None])[0]
        rank = float(p @ np.arange(len(p)))
        return (*(f"{value:.9g}" for value in p), grades_of(output_names)[int(p.argmax())], f"{rank:.9g}")

    def label_columns(self) -> tuple[str, ...]:
        return ("label",)

    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        return (row.label,)

    def control(
        self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A logistic regression for each cut, on the training slides of at least its grade."""
        labels = self.targets(rows)["label"]
        logits = {split: np.zeros((len(x), len(self.grades) - 1)) for split, x in others.items()}
        for k in range(len(self.grades) - 1):
            reached = labels >= k
            for split, z in binary_logits(features[reached], labels[reached] > k, others).items():
                logits[split][:, k] = z
        return logits

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:
        if len({row.label for row in rows}) < 2:
            raise InputError(f"{self.cohort.source}: one grade only in split train: nothing to learn{after}")


def checked_grades(cohort: Cohort) -> tuple[str, ...]:
    """Grades in rising order. `InputError`: fewer than two, or names whose order is not known."""
    grades = cohort.classes
    if len(grades) < 2:
        raise InputError(f"{cohort.source}: --task ordinal needs two or more grades in the label column")
    if odd := [name for name in grades if _BETWEEN.strip() in name]:
        raise InputError(f"{cohort.source}: the grade {odd[0]!r} has a '|'; write it without")
    if cohort.is_ordered or all(number(name) is not None for name in grades):
        return grades
    parts = [match.groups() if (match := _NUMBERED.fullmatch(name)) else ("", name, "") for name in grades]
    if len({(before, after) for before, _, after in parts}) == 1 and all(part[1].isdecimal() for part in parts):
        return tuple(name for _, name in sorted(zip((int(part[1]) for part in parts), grades, strict=True)))
    raise InputError(
        f"{cohort.source}: the grades {', '.join(grades)} are names, of which the order is not known; give it: "
        f"--keep low intermediate high"
    )


def grades_of(output_names: Sequence[str]) -> tuple[str, ...]:
    """Grades in the names of the cuts, `0 | 1`, `1 | 2`. `InputError`: names of another form."""
    pairs = [name.split(_BETWEEN) for name in output_names]
    chained = all(a[-1] == b[0] for a, b in pairwise(pairs))
    if not pairs or any(len(pair) != 2 for pair in pairs) or not chained:
        raise InputError(f"model of grades: its outputs are {', '.join(output_names)}, not cuts; train it again")
    return (pairs[0][0], *(pair[1] for pair in pairs))


def probabilities_above(logits: np.ndarray) -> np.ndarray:
    """P(y > k) for every cut, float64 (N, C - 1), falling with k."""
    from scipy import special

    return np.asarray(np.exp(special.log_expit(logits).cumsum(1)))


def grade_probabilities(logits: np.ndarray) -> np.ndarray:
    """Probability of every grade, float64 (N, C); rows sum to 1."""
    from scipy import special

    before = np.pad(special.log_expit(logits).cumsum(1), ((0, 0), (1, 0)))  # log P(y ≥ k)
    ends = np.pad(special.log_expit(-logits), ((0, 0), (0, 1)))  # log P(y = k | y ≥ k); 0 for the last grade
    return np.asarray(np.exp(before + ends))


def binary_logits(features: np.ndarray, is_one: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split -> logits (slides,) of a logistic regression; of one class alone, the smoothed log-odds of all rows."""
    if is_one.all() or not is_one.any():
        log_odds = float(np.log((is_one.sum() + 0.5) / ((~is_one).sum() + 0.5)))
        return {split: np.full(len(x), log_odds) for split, x in others.items()}
    probabilities = logistic_probabilities(features, is_one.astype(np.int64), others, 2)
    return {split: np.log(np.maximum(p[:, 1], 1e-300)) - np.log(np.maximum(p[:, 0], 1e-300))
            for split, p in probabilities.items()}  # fmt: skip
