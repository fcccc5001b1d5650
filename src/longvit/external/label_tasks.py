"""Numbers, grades and several labels on cohort B: metrics with intervals, the drop from A, groups, A's thresholds.

A case has labels (N, C): a number, the index of a grade, or the labels 1, 0 and NaN of several columns. It has
predictions (N, K): the number, the probability of each grade, or that of each label. A patient has the mean of the
predictions of its slides. Patients whose slides have different labels are left out at this level and counted; a label
that one slide lacks is that of another.

Several labels have a threshold of A each. A number has no decision to evaluate; of grades it is the most probable one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.external.cases import LEVELS, SLIDES, Cases
from longvit.external.classification import ranged_value, threshold_metrics
from longvit.external.labelled_cohort import groups_of
from longvit.external.member_predictions import ENSEMBLE, ExternalLogits
from longvit.external.settings import ExternalSettings
from longvit.external.source_run import Member, SourceRun
from longvit.metrics.classification import resampled_weighted
from longvit.metrics.decision import youden_threshold
from longvit.metrics.multilabel import weighted_multilabel
from longvit.metrics.ordinal import weighted_ordinal
from longvit.metrics.regression import weighted_regression
from longvit.tasks.multilabel import Multilabel, sigmoid
from longvit.tasks.ordinal import Ordinal, grade_probabilities
from longvit.tasks.regression import Regression, scale_of
from longvit.tasks.task import Task, task_class

Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
"""Labels (N, C), predictions (N, K) and weights (B, N) -> metric -> (B,)."""


@dataclass(frozen=True)
class LabelCases:
    """Cases of a cohort: slides or patients."""

    labels: np.ndarray
    """float64 (N, C)."""
    patients: tuple[str, ...]
    predictions: Mapping[str, np.ndarray]
    """System -> float64 (N, K)."""
    slides: np.ndarray
    """int64 (N,): number of slides of each case."""
    mixed: int = 0
    """Patients that are left out, since their slides have different labels."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, mask: np.ndarray) -> LabelCases:
        """The cases where `mask` (N,) is True."""
        i = np.flatnonzero(mask)
        names = tuple(self.patients[k] for k in i)
        return LabelCases(self.labels[i], names, {name: p[i] for name, p in self.predictions.items()}, self.slides[i])


@dataclass(frozen=True)
class LabelledB:
    """Cohort B as cases, with everything that its evaluation needs."""

    task: Task
    """Task of cohort B."""
    outputs: tuple[str, ...]
    """The number's column, the grades, or the label columns."""
    main: str
    members: tuple[str, ...]
    controls: tuple[str, ...]
    rows: tuple[SlideRow, ...]
    slides: LabelCases

    @property
    def weighted(self) -> Weighted:
        """The task's metrics."""
        return _weighted(type(self.task), self.outputs)


def predictions_of(kind: type[Task], logits: np.ndarray, output_names: Sequence[str]) -> np.ndarray:
    """Predictions float64 (N, K) of a model from its logits (N, W); numbers are in the unit of the column."""
    if issubclass(kind, Regression):
        _, mean, sd = scale_of(output_names)
        return np.asarray(logits * sd + mean)
    return grade_probabilities(logits) if issubclass(kind, Ordinal) else sigmoid(logits)


def labels_of_rows(task: Task, rows: Sequence[SlideRow]) -> np.ndarray:
    """Labels float64 (N, C) of rows."""
    if isinstance(task, Multilabel):
        return task.labels(rows)
    if isinstance(task, Regression):
        return task.values(rows)[:, None]
    return np.asarray(task.targets(rows)["label"], dtype=np.float64)[:, None]


def labelled_b(run: SourceRun, cohort: Cohort, logits: ExternalLogits) -> LabelledB:
    """Cases of cohort B: predictions of the members, their mean (the ensemble), and of the controls."""
    kind = task_class(run.settings.task)
    task = kind(Cohort(logits.rows, cohort.classes, cohort.source, is_ordered=True), run.settings)
    names = {member.name: member.classes for member in run.members}

    def of_members(by_member: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: predictions_of(kind, z, names[name]) for name, z in by_member.items()}

    members = of_members(logits.members)
    main = ENSEMBLE if len(members) > 1 else next(iter(members))
    predictions = {main: np.mean(list(members.values()), axis=0)} | members
    for control, by_member in logits.controls.items():
        predictions[control] = np.mean(list(of_members(by_member).values()), axis=0)
    slides = _slides(task, logits.rows, predictions)
    outputs = cohort.classes if isinstance(task, Ordinal) else tuple(m.title for m in kind.meanings(run.outputs))
    return LabelledB(task, outputs, main, tuple(members), tuple(logits.controls), logits.rows, slides)


def cases_at(level: str, slides: LabelCases) -> LabelCases:
    """The cases of a level; patients in the order of their first slides."""
    if level == SLIDES:
        return slides
    names = list(dict.fromkeys(slides.patients))
    number = {name: i for i, name in enumerate(names)}
    patient = np.array([number[name] for name in slides.patients], dtype=np.int64)
    count = np.bincount(patient, minlength=len(names))
    lowest = np.full((len(names), slides.labels.shape[1]), math.inf)
    highest = -lowest
    is_there = np.isfinite(slides.labels)
    np.minimum.at(lowest, patient, np.where(is_there, slides.labels, math.inf))
    np.maximum.at(highest, patient, np.where(is_there, slides.labels, -math.inf))
    agree: np.ndarray = np.all(lowest >= highest, axis=1)  # inf > -inf where no slide has the label
    labels = np.where(np.isfinite(lowest), lowest, math.nan)[agree]
    means = {}
    for name, p in slides.predictions.items():
        sums = np.zeros((len(names), p.shape[1]))
        np.add.at(sums, patient, p)
        means[name] = (sums / count[:, None])[agree]
    kept = tuple(name for name, ok in zip(names, agree, strict=True) if ok)
    return LabelCases(labels, kept, means, count[agree], int((~agree).sum()))


def evaluate(run: SourceRun, data: LabelledB, settings: ExternalSettings, source: str) -> dict[str, Any]:
    """Entries of metrics.json; `source`: the CSV, for messages."""
    columns = [*(["site"] if any(row.site for row in data.rows) else []), *settings.subgroup]
    groups = {column: groups_of(data.rows, column, source) for column in dict.fromkeys(columns)}
    result: dict[str, Any] = {"levels": {}}
    for level in LEVELS:
        cases = cases_at(level, data.slides)
        if len(cases):
            result["levels"][level] = _level(run, data, cases, level, settings)
    result["groups"] = {
        column: {
            value or "(missing)": _group(data, data.slides.part(np.array([v == value for v in values])), settings)
            for value in sorted(set(values))
        }
        for column, values in groups.items()
        if any(values)
    }
    return result


def _level(
    run: SourceRun, data: LabelledB, cases: LabelCases, level: str, settings: ExternalSettings
) -> dict[str, Any]:
    metric = data.task.metric
    drawn = {name: _drawn(data.weighted, cases, name, settings, settings.seed) for name in cases.predictions}
    values = {name: _values(data.weighted, cases, name) for name in cases.predictions}
    others = [*data.controls, *(data.members if data.main == ENSEMBLE else ())]
    entry: dict[str, Any] = {
        "cases": len(cases),
        "patients": len(set(cases.patients)),
        "left_out_mixed_labels": cases.mixed,
        "labels": _counts(data, cases),
        "systems": {name: {m: ranged_value(values[name][m], drawn[name][m]) for m in values[name]} for name in values},
        "differences": {
            name: {
                metric: ranged_value(
                    values[data.main][metric] - values[name][metric], drawn[data.main][metric] - drawn[name][metric]
                )
            }
            for name in others
        },
    }
    if any(member.slides is None for member in run.members):
        return entry
    entry["drop"] = _drop(run, data, cases, level, settings)
    if isinstance(data.task, Multilabel):
        entry["thresholds"] = _thresholds(run, data, cases, level, settings)
    return entry


def _counts(data: LabelledB, cases: LabelCases) -> dict[str, Any]:
    """Numbers: mean, SD, lowest, highest; grades: cases of each; several labels: labels there, and those of 1."""
    y = cases.labels
    if isinstance(data.task, Multilabel):
        there, ones = np.isfinite(y).sum(0), (y == 1).sum(0)
        return {name: {"cases": int(there[c]), "ones": int(ones[c])} for c, name in enumerate(data.outputs)}
    if isinstance(data.task, Ordinal):
        return {name: int((y[:, 0] == k).sum()) for k, name in enumerate(data.outputs)}
    return {"mean": float(y.mean()), "sd": float(y.std()), "lowest": float(y.min()), "highest": float(y.max())}


def _weighted(kind: type[Task], outputs: Sequence[str]) -> Weighted:
    if issubclass(kind, Regression):
        return lambda y, p, weights: weighted_regression(y[:, 0], p[:, 0], weights)
    if issubclass(kind, Ordinal):
        return lambda y, p, weights: weighted_ordinal(y[:, 0].astype(np.int64), p, weights, outputs)
    return lambda y, p, weights: weighted_multilabel(y, p, weights, outputs)


def _values(weighted: Weighted, cases: LabelCases, system: str) -> dict[str, float]:
    of_all = weighted(cases.labels, cases.predictions[system], np.ones((1, len(cases))))
    return {name: float(value[0]) for name, value in of_all.items()}


def _drawn(
    weighted: Weighted, cases: LabelCases, system: str, settings: ExternalSettings, seed: int
) -> dict[str, np.ndarray]:
    """Metric -> its values in the resamples of the patients."""
    p = cases.predictions[system]
    return resampled_weighted(
        lambda weights: weighted(cases.labels, p, weights), cases.patients, resamples=settings.bootstrap, seed=seed
    )


def _slides(task: Task, rows: Sequence[SlideRow], predictions: Mapping[str, np.ndarray]) -> LabelCases:
    patients = tuple(row.case_id for row in rows)
    return LabelCases(labels_of_rows(task, rows), patients, dict(predictions), np.ones(len(rows), np.int64))


def cases_of_a(member: Member, split: str) -> LabelCases:
    """Slides of a split of cohort A with the predictions of a member."""
    p = member.predictions(split)
    return _slides(member.task, p.rows, {"model": predictions_of(type(member.task), p.logits, member.classes)})


def _drop(run: SourceRun, data: LabelledB, cases: LabelCases, level: str, settings: ExternalSettings) -> dict[str, Any]:
    """Metric -> a, b (means over the members) and b - a with its interval; patients of both are resampled."""
    a_parts = [cases_at(level, cases_of_a(member, member.reported_split)) for member in run.members]
    weighted = data.weighted
    a = [_values(weighted, part, "model") for part in a_parts]
    b = [_values(weighted, cases, name) for name in data.members]
    a_drawn = [_drawn(weighted, part, "model", settings, settings.seed + 1 + i) for i, part in enumerate(a_parts)]
    b_drawn = [_drawn(weighted, cases, name, settings, settings.seed) for name in data.members]
    metrics = {}
    for name in a[0]:
        of_a, of_b = (float(np.mean([values[name] for values in side])) for side in (a, b))
        draws = np.mean([d[name] for d in b_drawn], axis=0) - np.mean([d[name] for d in a_drawn], axis=0)
        metrics[name] = {"a": of_a, "b": of_b, "difference": ranged_value(of_b - of_a, draws)}
    return {"split_of_a": run.first.reported_split, "cases_of_a": sum(map(len, a_parts)), "metrics": metrics}


def _thresholds(
    run: SourceRun, data: LabelledB, cases: LabelCases, level: str, settings: ExternalSettings
) -> dict[str, Any]:
    """Label column -> Youden's threshold of A's tuning cases, and the operating point on B."""
    tuning = [cases_at(level, cases_of_a(member, member.tuning_split)) for member in run.members]
    y_of_a = np.concatenate([part.labels for part in tuning])
    p_of_a = np.concatenate([part.predictions["model"] for part in tuning])
    result = {}
    for c, name in enumerate(data.outputs):
        known = np.isfinite(y_of_a[:, c])
        value = youden_threshold(y_of_a[known, c], p_of_a[known, c])
        entry: dict[str, Any] = {"value": value, "chosen_on": run.first.tuning_split, "cases": int(known.sum())}
        of_b = cases.part(np.isfinite(cases.labels[:, c]))
        if len(of_b) and not math.isnan(value):
            labels = of_b.labels[:, c].astype(np.int64)
            positive = of_b.predictions[data.main][:, c]
            entry |= threshold_metrics(Cases(labels, of_b.patients, {}, of_b.slides), positive, value, settings)
        result[name] = entry
    return result


def _group(data: LabelledB, part: LabelCases, settings: ExternalSettings) -> dict[str, Any]:
    values, drawn = (
        _values(data.weighted, part, data.main),
        _drawn(data.weighted, part, data.main, settings, settings.seed),
    )
    return {
        "slides": len(part),
        "patients": len(set(part.patients)),
        "labels": _counts(data, part),
        "metrics": {name: ranged_value(value, drawn[name]) for name, value in values.items()},
    }
