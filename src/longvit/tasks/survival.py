"""Survival: time to an event; the discrete-time likelihood over time bins, or Cox's partial likelihood.

The label has two columns, time and event. The name of the second gives its coding: `event` (1 = the event happened) or
`censorship` (1 = follow-up ended before it); it is never inferred from the values. Each slide of a patient is predicted
by itself; metrics take the mean of their risks. With `slides="first"`, as published, a patient has only the first
slide. survival_loss.py defines the likelihood, metrics/survival.py the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.identity import is_missing_number
from longvit.data.table import column_name, number
from longvit.errors import InputError
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import Aggregate, OutputMeaning, Predictions, Task

if TYPE_CHECKING:
    import torch

    from longvit.metrics.classification import Interval

EVENT, CENSORSHIP = "event", "censorship"


class Times(NamedTuple):
    """Outcomes of patients (or slides), one entry each."""

    months: np.ndarray
    """float64 (N,)."""
    event: np.ndarray
    """bool (N,): True where the event happened."""


class Survival(Task):
    """Survival: time to an event, with censoring."""

    name: ClassVar[str] = "survival"
    metric: ClassVar[str] = "c_index"
    metric_label: ClassVar[str] = "c-index"
    loss_label: ClassVar[str] = "negative log likelihood"
    per_patient: ClassVar[bool] = True

    def __init__(self, cohort: Cohort, settings: TaskSettings) -> None:
        super().__init__(cohort, settings)
        self._time_of = {row.slide_id: read_outcome(row, cohort.source, settings) for row in cohort.rows}
        first: dict[str, tuple[str, tuple[float, bool]]] = {}
        for row in cohort.rows:
            slide_id, outcome = first.setdefault(row.case_id, (row.slide_id, self._time_of[row.slide_id]))
            if outcome != self._time_of[row.slide_id]:
                raise InputError(
                    f"{cohort.source}: slides {slide_id} and {row.slide_id} of patient {row.case_id} have different "
                    f"times or events; a patient has one outcome"
                )
        if settings.survival_loss == "nll":
            _ = self.edges  # fails early

    @classmethod
    def select(cls, cohort: Cohort, settings: TaskSettings) -> Cohort:
        if settings.slides == "all":
            return cohort
        from dataclasses import replace

        rows = patients_of(cohort.rows)
        note = f"the first slide of each patient: {len(rows)} of {len(cohort.rows)} slides"
        return replace(cohort, rows=rows, notes=(*cohort.notes, note))

    @classmethod
    def strata(cls, cohort: Cohort, settings: TaskSettings) -> list[str]:
        return [EVENT if read_outcome(row, cohort.source, settings)[1] else "censored" for row in cohort.rows]

    @cached_property
    def edges(self) -> np.ndarray:
        """Edges of the time bins, float64 (n_bins + 1,) months: quantiles of the uncensored times.

        The times are those of the training patients, or (`bins="cohort"`) of all.
        """
        from longvit.tasks.survival_loss import time_bins

        train = self.cohort.split("train")
        rows = self.cohort.rows if self.settings.bins == "cohort" or not train else train
        times = self.times(patients_of(rows))
        try:
            return time_bins(times.months, times.event, self.settings.n_bins)
        except InputError as error:
            raise InputError(f"{self.cohort.source}: {error}") from error

    @property
    def output_names(self) -> tuple[str, ...]:
        if self.settings.survival_loss == "cox":
            return ("log hazard ratio",)
        inner = [f"{edge:.6g}" for edge in self.edges[1:-1]]
        return tuple(f"{low}-{high} months" for low, high in zip(["0", *inner], [*inner, "end"], strict=True))

    @classmethod
    def meanings(cls, output_names: Sequence[str]) -> tuple[OutputMeaning, ...]:
        if len(output_names) == 1:
            return (OutputMeaning(output_names[0], "risk"),)
        return tuple(OutputMeaning(name, f"log-odds of an event in {name}") for name in output_names)

    @classmethod
    def aggregated(cls, logits: np.ndarray, how: Aggregate) -> np.ndarray:
        """Mean of the slides' survival curves, and so of their risks; of Cox's, of the log hazard ratios. Maximum: the
        slide with the highest risk."""
        if how == "max":
            return np.asarray(logits[risk_of(logits).argmax()])
        if logits.shape[1] == 1:
            return np.asarray(logits.mean(0))
        curve = survival_of(logits).mean(0)
        before = np.concatenate([[1.0], curve[:-1]])
        return np.log(np.maximum(before - curve, 1e-300)) - np.log(np.maximum(curve, 1e-300))

    def times(self, rows: Sequence[SlideRow]) -> Times:
        """Outcomes of rows, in their order."""
        outcomes = [self._time_of[row.slide_id] for row in rows]
        months, events = [m for m, _ in outcomes], [e for _, e in outcomes]
        return Times(np.array(months, dtype=np.float64), np.array(events, dtype=bool))

    def targets(self, rows: Sequence[SlideRow]) -> dict[str, np.ndarray]:
        """`months` float32, `event` int64 (1 happened), and `bin` int64 for the discrete-time likelihood."""
        times = self.times(rows)
        targets: dict[str, np.ndarray] = {
            "months": times.months.astype(np.float32),
            "event": times.event.astype(np.int64),
        }
        if self.settings.survival_loss == "nll" and len(rows):
            from longvit.tasks.survival_loss import bin_of

            targets["bin"] = bin_of(times.months, self.edges)
        return targets

    def losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from longvit.tasks.survival_loss import cox_loss, nll_loss

        if self.settings.survival_loss == "cox":
            return cox_loss(logits[:, 0], targets["months"], targets["event"])
        return nll_loss(logits, targets["bin"], targets["event"], alpha=self.settings.alpha)

    def by_patient(self, predictions: Predictions) -> tuple[tuple[SlideRow, ...], np.ndarray, np.ndarray | None]:
        """Each patient's first row, with the mean risk (P,) and curve (P, n_bins; None for Cox) of its slides."""
        rows = patients_of(predictions.rows)
        index = {row.case_id: i for i, row in enumerate(rows)}
        patient = np.array([index[row.case_id] for row in predictions.rows], dtype=np.int64)
        count = np.bincount(patient, minlength=len(rows))
        mean = np.bincount(patient, weights=risk_of(predictions.logits), minlength=len(rows)) / count
        curves = None
        if predictions.logits.shape[1] > 1:
            curves = np.zeros((len(rows), predictions.logits.shape[1]))
            np.add.at(curves, patient, survival_of(predictions.logits))
            curves /= count[:, None]
        return rows, mean, curves

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Metrics of the patients.

        `c_index`: ties count one half. `uno_c_index`: up to the 80 % quantile of the training times. `time_auc` (the
        mean) and `integrated_brier` (lower is better; nll only): at the inner edges of the bins.
        """
        from longvit.metrics.survival import c_index, integrated_brier_score, time_dependent_auc, uno_c_index

        if not predictions.rows:
            return {"c_index": math.nan}
        rows, risk, curves = self.by_patient(predictions)
        months, event = self.times(rows)
        train = self.times(patients_of(self.cohort.split("train")))
        edges = self.edges[1:-1]
        metrics = {
            "c_index": c_index(months, event, risk),
            "uno_c_index": uno_c_index(*train, months, event, risk, tau=float(np.quantile(train.months, 0.8))),
            "time_auc": time_dependent_auc(*train, months, event, risk, edges).mean,
        }
        if curves is not None and len(edges) > 1:
            metrics["integrated_brier"] = integrated_brier_score(*train, months, event, curves[:, :-1], edges)
        return metrics

    def main_metric(self, predictions: Predictions) -> float:
        from longvit.metrics.survival import c_index

        rows, risk, _ = self.by_patient(predictions)
        return c_index(*self.times(rows), risk)

    def intervals(self, predictions: Predictions, *, resamples: int, seed: int) -> dict[str, Interval]:
        from longvit.metrics.survival import bootstrap_c_index

        rows, risk, _ = self.by_patient(predictions)
        times = self.times(rows)
        patients = [row.case_id for row in rows]
        interval = bootstrap_c_index(times.months, times.event, risk, patients, resamples=resamples, seed=seed)
        return {"c_index": interval}

    @classmethod
    def prediction_columns(cls, output_names: Sequence[str]) -> tuple[str, ...]:
        ends = [name.split("-")[1].split()[0] for name in output_names[:-1]]
        return ("risk", *(f"survival_{end}_months" for end in ends))

    @classmethod
    def prediction_cells(cls, logits: np.ndarray, output_names: Sequence[str]) -> tuple[str, ...]:
        curve = survival_of(logits[None])[0, :-1] if len(logits) > 1 else ()
        return (f"{risk_of(logits[None])[0]:.9g}", *(f"{s:.9g}" for s in curve))

    def label_columns(self) -> tuple[str, ...]:
        return ("survival_months", "event")

    def label_cells(self, row: SlideRow) -> tuple[str, ...]:
        months, event = self._time_of[row.slide_id]
        return (f"{months:.9g}", str(int(event)))

    def control(
        self, features: np.ndarray, rows: Sequence[SlideRow], others: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Discrete-time likelihood as a logistic regression: a line per patient and bin that the patient reached.

        Features are standardised. The bins share the weights of the features and have free base hazards: with four
        weights per feature, as in the head, a control would overfit.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        from longvit.tasks.survival_loss import bin_of, time_bins

        times = self.times(rows)
        edges = self.edges if self.settings.survival_loss == "nll" else time_bins(times.months, times.event)
        n_bins = len(edges) - 1
        bins = bin_of(times.months, edges)
        scaler = StandardScaler().fit(features)
        x = scaler.transform(features)
        base = np.eye(n_bins) * 5.0  # large columns: the ridge hardly touches the base hazards
        lines = [(i, k, int(times.event[i] and k == bins[i])) for i in range(len(rows)) for k in range(bins[i] + 1)]
        table = np.stack([np.concatenate([base[k], x[i]]) for i, k, _ in lines])
        fitted = LogisticRegression(max_iter=2000, fit_intercept=False, C=0.1)
        fitted.fit(table, [happened for _, _, happened in lines])
        weights = fitted.coef_[0]
        logits = {
            split: (scaler.transform(f) @ weights[n_bins:])[:, None] + 5.0 * weights[:n_bins]
            for split, f in others.items()
        }
        if self.settings.survival_loss == "cox":
            return {split: risk_of(z)[:, None] for split, z in logits.items()}
        return logits

    def check_training(self, rows: Sequence[SlideRow], after: str) -> None:
        if not self.times(rows).event.any():
            raise InputError(
                f"{self.cohort.source}: all times in split train are censored: no event to learn from{after}"
            )


def read_outcome(row: SlideRow, source: str, settings: TaskSettings) -> tuple[float, bool]:
    """Outcome of a slide: (months, True where the event happened). `InputError` with the slide and the way out."""
    where = (
        f"{source}: slide {row.slide_id}" if row.line is None else f"{source}, line {row.line}: slide {row.slide_id}"
    )
    columns = _event_columns(row, source, settings)
    for name in (settings.time_column, *columns):
        if is_missing_number(text := _cell(row, name)):
            fault = f"{name} is {text!r}, which stands for none" if text else f"no {name}"
            raise InputError(f"{where}: {fault}; fill it in or remove the row")
    text = _cell(row, settings.time_column)
    months = number(text)
    if months is None or months < 0:
        raise InputError(f"{where}: {settings.time_column} is {text!r}; it must be a number of months, at least 0")
    events = []
    for name in columns:
        value = number(_cell(row, name))
        if value not in (0, 1):
            raise InputError(f"{where}: {name} is {_cell(row, name)!r}; it must be 0 or 1")
        is_event = name == (settings.event_column or EVENT)
        events.append(bool(value) if is_event else not value)
    if len(set(events)) > 1:
        raise InputError(f"{where}: {' and '.join(columns)} contradict each other; one must be 1 where the other is 0")
    return months, events[0]


def lacks_outcome(row: SlideRow, source: str, settings: TaskSettings) -> bool:
    """True where the time or the event of a slide is missing. `InputError`: the CSV has no such columns."""
    names = (settings.time_column, *_event_columns(row, source, settings))
    return any(is_missing_number(_cell(row, name)) for name in names)


def _event_columns(row: SlideRow, source: str, settings: TaskSettings) -> list[str]:
    if column_name(settings.time_column) not in row.extra_columns:
        raise InputError(f"{source}: no column {settings.time_column!r}; name it with --time-column")
    columns = [name for name in (settings.event_column, settings.censorship_column) if name is not None]
    if not columns:
        columns = [name for name in (EVENT, CENSORSHIP) if name in row.extra_columns]
    if not columns:
        raise InputError(
            f"{source}: no column 'event' (1 = it happened) or 'censorship' (1 = censored); name yours with "
            f"--event-column or --censorship-column, the numbers do not tell which it is"
        )
    for name in columns:
        if column_name(name) not in row.extra_columns:
            raise InputError(f"{source}: no column {name!r}")
    return columns


def _cell(row: SlideRow, column: str) -> str:
    return row.extra_columns[column_name(column)]


def patients_of(rows: Sequence[SlideRow]) -> tuple[SlideRow, ...]:
    """First row of each patient, in their order."""
    first: dict[str, SlideRow] = {}
    for row in rows:
        first.setdefault(row.case_id, row)
    return tuple(first.values())


def survival_of(logits: np.ndarray) -> np.ndarray:
    """Survival curves float64 (N, n_bins): the probability of no event up to the end of each bin."""
    import torch

    from longvit.tasks.survival_loss import survival_curve

    return survival_curve(torch.from_numpy(logits)).numpy()


def risk_slopes(logits: np.ndarray) -> np.ndarray:
    """Derivatives of the risk with respect to each logit, float64 (N, n_bins), at least 0; 1 for Cox's logit."""
    if logits.shape[1] == 1:
        return np.ones_like(logits, np.float64)
    later = np.cumsum(survival_of(logits)[:, ::-1], 1)[:, ::-1]  # S_k + … + S_{n_bins - 1}
    slopes: np.ndarray = later / (1 + np.exp(-logits))
    return slopes


def risk_of(logits: np.ndarray) -> np.ndarray:
    """Risks float64 (N,), higher for an earlier event: -Σ S, or Cox's log hazard ratio."""
    return logits[:, 0] if logits.shape[1] == 1 else -survival_of(logits).sum(1)
