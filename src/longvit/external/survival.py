"""Survival on cohort B: c-index, Uno's, AUC over time, Brier score, calibration, and Kaplan-Meier with A's cut.

One case per patient, with the mean risk and curve of its slides. The weights of censoring (IPCW) are estimated on B:
they correct for the censoring of B's follow-up, which has nothing to do with A's.

The folds' ensemble is the mean of their risks and of their survival curves. A curve is known at the edges of its time
bins; between them it is a straight line, before the first it starts at 1, after the last it stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.external.labelled_cohort import groups_of
from longvit.external.member_predictions import ENSEMBLE, ExternalLogits
from longvit.external.settings import ExternalSettings
from longvit.external.source_run import Member, SourceRun
from longvit.metrics.classification import percentile_interval
from longvit.metrics.resampling import bootstrap_values
from longvit.metrics.survival import (
    brier_score,
    c_index,
    integrated_brier_score,
    kaplan_meier,
    log_rank,
    time_dependent_auc,
    uno_c_index,
)
from longvit.tasks.survival import Survival, patients_of, read_outcome, risk_of, survival_of
from longvit.tasks.task import Predictions

_MOST_GROUPS = 4
_LEAST_PATIENTS = 8


@dataclass(frozen=True)
class Followed:
    """Patients of cohort B. P patients, T times."""

    rows: tuple[SlideRow, ...]
    """First slide of each."""
    months: np.ndarray
    """float64 (P,)."""
    event: np.ndarray
    """bool (P,)."""
    risks: Mapping[str, np.ndarray]
    """System -> float64 (P,)."""
    curves: Mapping[str, np.ndarray]
    """System -> survival (P, T) at `times`; empty for Cox's loss."""
    times: np.ndarray
    """float64 (T,) months of the metrics over time."""
    main: str
    members: tuple[str, ...]
    controls: tuple[str, ...]


def followed(run: SourceRun, logits: ExternalLogits, source: str) -> Followed:
    """Patients of cohort B with risks and curves of every system."""
    rows = patients_of(logits.rows)
    outcomes = [read_outcome(row, source, run.settings) for row in rows]
    months = np.array([m for m, _ in outcomes], dtype=np.float64)
    event = np.array([e for _, e in outcomes], dtype=bool)
    edges = {member.name: _inner_edges(member) for member in run.members}
    has_curves = all(len(inner) for inner in edges.values())
    if has_curves:
        times = np.mean(list(edges.values()), axis=0)
    else:
        times = np.unique(np.quantile(months[event], [0.25, 0.5, 0.75])) if event.any() else np.zeros(0)
    times = times[times < months.max()]
    systems = {"": logits.members, **logits.controls}
    risks: dict[str, np.ndarray] = {}
    curves: dict[str, np.ndarray] = {}
    for system, by_member in systems.items():
        risk_of_member = {name: _by_patient(logits.rows, risk_of(z)[:, None])[:, 0] for name, z in by_member.items()}
        curve_of_member = {}
        for name, z in by_member.items():
            if has_curves and z.shape[1] > 1:
                at = _curve_at(survival_of(z), edges[name], times)
                curve_of_member[name] = _by_patient(logits.rows, at)
        whole = system or (ENSEMBLE if len(by_member) > 1 else next(iter(by_member)))
        risks[whole] = np.mean(list(risk_of_member.values()), axis=0)
        if curve_of_member:
            curves[whole] = np.mean(list(curve_of_member.values()), axis=0)
        if not system:
            risks |= risk_of_member
            curves |= curve_of_member
    main = ENSEMBLE if len(logits.members) > 1 else next(iter(logits.members))
    return Followed(rows, months, event, risks, curves, times, main, tuple(logits.members), tuple(logits.controls))


def evaluate(run: SourceRun, logits: ExternalLogits, settings: ExternalSettings, source: str) -> dict[str, Any]:
    """Entries of metrics.json; `source`: the CSV, for messages."""
    data = followed(run, logits, source)
    columns = dict.fromkeys([*(["site"] if any(row.site for row in data.rows) else []), *settings.subgroup])
    groups = {column: groups_of(data.rows, column, source) for column in columns}
    result: dict[str, Any] = {
        "patients": len(data.rows),
        "events": int(data.event.sum()),
        "times": data.times.tolist(),
        "systems": {name: system_metrics(data, name, settings) for name in data.risks},
        "differences": {
            name: _difference(data, name, settings)
            for name in (*data.controls, *(data.members if data.main == ENSEMBLE else ()))
        },
        "calibration": _calibration(data),
        "groups": {column: _groups(data, values, settings) for column, values in groups.items() if any(values)},
    }
    if all(member.slides is not None for member in run.members):
        result["drop"] = _drop(run, data, settings)
        result["cut"] = _cut(run, data)
    return result


def system_metrics(data: Followed, system: str, settings: ExternalSettings) -> dict[str, dict[str, float]]:
    """Metric -> value, low, high: bootstrap intervals by patient, for systems beside the main one of the c-index."""

    def metrics(index: np.ndarray, whole: bool = system == data.main) -> dict[str, float]:
        months, event, risk = data.months[index], data.event[index], data.risks[system][index]
        values = {"c_index": c_index(months, event, risk)}
        if not whole:
            return values
        values |= {
            "uno_c_index": uno_c_index(months, event, months, event, risk, tau=float(np.quantile(months, 0.8))),
        }
        if len(data.times):
            values["time_auc"] = time_dependent_auc(months, event, months, event, risk, data.times).mean
        if system in data.curves and len(data.times) > 1:
            curve = data.curves[system][index]
            values["integrated_brier"] = integrated_brier_score(months, event, months, event, curve, data.times)
        return values

    values = metrics(np.arange(len(data.rows)), True)
    drawn = bootstrap_values(_patients(data), metrics, resamples=settings.bootstrap, seed=settings.seed)
    result = {name: _ranged(value, drawn.get(name, np.zeros(0))) for name, value in values.items()}
    if len(data.times):
        over_time = time_dependent_auc(
            data.months, data.event, data.months, data.event, data.risks[system], data.times
        ).auc
        for time, value in zip(data.times, over_time, strict=True):
            result[f"auc_at_{time:.4g}_months"] = {"value": float(value), "low": math.nan, "high": math.nan}
    if system in data.curves and len(data.times):
        scores = brier_score(data.months, data.event, data.months, data.event, data.curves[system], data.times)
        for time, value in zip(data.times, scores, strict=True):
            result[f"brier_at_{time:.4g}_months"] = {"value": float(value), "low": math.nan, "high": math.nan}
    return result


def risk_groups(data: Followed, cut: float) -> np.ndarray:
    """1 for patients whose risk is above the cut, else 0."""
    return (data.risks[data.main] > cut).astype(np.int64)


def _inner_edges(member: Member) -> np.ndarray:
    """Ends of all time bins but the last, in months; none for Cox's loss."""
    names = Survival.prediction_columns(member.classes)
    return np.array([float(name.split("_")[1]) for name in names if name.startswith("survival_")])


def _curve_at(curve: np.ndarray, inner: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Survival (N, T) at times from a curve (N, n_bins) at the ends of the bins."""
    known = np.concatenate([np.ones((len(curve), 1)), curve[:, : len(inner)]], 1)
    at = np.r_[0.0, inner]
    return np.stack([np.interp(times, at, row) for row in known]) if len(curve) else np.zeros((0, len(times)))


def _by_patient(rows: Sequence[SlideRow], values: np.ndarray) -> np.ndarray:
    """Mean of the values (N, K) over the slides of each patient: (P, K)."""
    names = list(dict.fromkeys(row.case_id for row in rows))
    index = {name: i for i, name in enumerate(names)}
    patient = np.array([index[row.case_id] for row in rows], dtype=np.int64)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, patient, values)
    return sums / np.bincount(patient, minlength=len(names))[:, None]


def _patients(data: Followed) -> list[str]:
    return [row.case_id for row in data.rows]


def _difference(data: Followed, other: str, settings: ExternalSettings) -> dict[str, dict[str, float]]:
    """c-index of the main system minus that of another, with the interval of the same resamples."""

    def difference(index: np.ndarray) -> dict[str, float]:
        months, event = data.months[index], data.event[index]
        one, two = (c_index(months, event, data.risks[name][index]) for name in (data.main, other))
        return {"c_index": one - two}

    drawn = bootstrap_values(_patients(data), difference, resamples=settings.bootstrap, seed=settings.seed)
    value = difference(np.arange(len(data.rows)))["c_index"]
    return {"c_index": _ranged(value, drawn.get("c_index", np.zeros(0)))}


def _calibration(data: Followed) -> list[dict[str, Any]]:
    """Per time: predicted and observed (Kaplan-Meier) survival in groups of equal size, and observed / expected."""
    curve = data.curves.get(data.main)
    if curve is None:
        return []
    entries = []
    for k, time in enumerate(data.times):
        predicted = curve[:, k]
        groups = max(1, min(_MOST_GROUPS, len(predicted) // _LEAST_PATIENTS))
        rank = np.argsort(np.argsort(predicted, kind="stable"), kind="stable")
        group = rank * groups // len(predicted)
        rows = []
        for g in range(groups):
            mask = group == g
            km = kaplan_meier(data.months[mask], data.event[mask])
            observed, low, high = _km_at(km, float(time))
            rows.append(
                {
                    "patients": int(mask.sum()),
                    "predicted": float(predicted[mask].mean()),
                    "observed": observed,
                    "low": low,
                    "high": high,
                }
            )
        observed, _, _ = _km_at(kaplan_meier(data.months, data.event), float(time))
        expected = 1 - float(predicted.mean())
        ratio = (1 - observed) / expected if expected > 0 else math.nan
        entries.append({"months": float(time), "observed_to_expected": ratio, "groups": rows})
    return entries


def _km_at(km: Any, time: float) -> tuple[float, float, float]:
    """Survival with its interval at a time; NaN after the last observation."""
    value = float(km.at(time))
    k = int(np.searchsorted(km.times, time, side="right")) - 1
    if math.isnan(value) or k < 0:
        return value, value, value
    return value, float(km.lower[k]), float(km.upper[k])


def _drop(run: SourceRun, data: Followed, settings: ExternalSettings) -> dict[str, Any]:
    """c-index on A and B (means over the members) and b - a with its interval; patients of both are resampled."""
    a_values, a_drawn, cases = [], [], 0
    for i, member in enumerate(run.members):
        months, event, risk, names = _of_a(member, member.predictions(member.reported_split))
        cases += len(names)

        def of_a(index: np.ndarray, m: Any = (months, event, risk)) -> dict[str, float]:
            return {"c_index": c_index(m[0][index], m[1][index], m[2][index])}

        a_values.append(of_a(np.arange(len(names)))["c_index"])
        drawn = bootstrap_values(names, of_a, resamples=settings.bootstrap, seed=settings.seed + 1 + i)
        a_drawn.append(drawn.get("c_index", np.zeros(0)))

    def of_b(index: np.ndarray) -> dict[str, float]:
        months, event = data.months[index], data.event[index]
        return {"c_index": float(np.mean([c_index(months, event, data.risks[m][index]) for m in data.members]))}

    b = of_b(np.arange(len(data.rows)))["c_index"]
    b_drawn = bootstrap_values(_patients(data), of_b, resamples=settings.bootstrap, seed=settings.seed)
    a = float(np.mean(a_values))
    difference = _ranged(b - a, b_drawn.get("c_index", np.zeros(0)) - np.mean(a_drawn, axis=0))
    metrics = {"c_index": {"a": a, "b": b, "difference": difference}}
    return {"split_of_a": run.first.reported_split, "cases_of_a": cases, "metrics": metrics}


def _of_a(member: Member, p: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Months, events, risks and names of the patients of predictions on cohort A."""
    task = member.task
    assert isinstance(task, Survival)
    rows, risk, _ = task.by_patient(p)
    months, event = task.times(rows)
    return months, event, risk, [row.case_id for row in rows]


def _cut(run: SourceRun, data: Followed) -> dict[str, Any]:
    """A's cut, the median risk of its tuning patients (mean over the members), and what it separates in B."""
    medians = [float(np.median(_of_a(m, m.predictions(m.tuning_split))[2])) for m in run.members]
    cut = float(np.mean(medians))
    group = risk_groups(data, cut)
    statistic, p = log_rank(data.months, data.event, group)
    return {
        "risk": cut,
        "chosen_on": run.first.tuning_split,
        "log_rank": statistic,
        "p": p,
        "groups": {
            name: {
                "patients": int((group == g).sum()),
                "events": int(data.event[group == g].sum()),
                "median_months": kaplan_meier(data.months[group == g], data.event[group == g]).median(),
            }
            for g, name in enumerate(("lower risk", "higher risk"))
        },
    }


def _groups(data: Followed, values: Sequence[str], settings: ExternalSettings) -> dict[str, Any]:
    """Value of a column -> patients, events and c-index of the main system."""
    result = {}
    for value in sorted(set(values)):
        rows = np.flatnonzero([v == value for v in values])
        months, event, risk = data.months[rows], data.event[rows], data.risks[data.main][rows]

        def of_part(index: np.ndarray, m: Any = (months, event, risk)) -> dict[str, float]:
            return {"c_index": c_index(m[0][index], m[1][index], m[2][index])}

        names = [data.rows[i].case_id for i in rows]
        drawn = bootstrap_values(names, of_part, resamples=settings.bootstrap, seed=settings.seed)
        c = _ranged(of_part(np.arange(len(rows)))["c_index"], drawn.get("c_index", np.zeros(0)))
        result[value or "(missing)"] = {
            "patients": len(rows), "events": int(event.sum()), "metrics": {"c_index": c}
        }  # fmt: skip
    return result


def _ranged(value: float, drawn: np.ndarray) -> dict[str, float]:
    interval = percentile_interval(drawn)
    return {"value": value, "low": interval.low, "high": interval.high}
