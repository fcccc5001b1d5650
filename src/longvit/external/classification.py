"""Classification on cohort B: metrics with intervals, DeLong, calibration, A's threshold, the drop, groups.

Two classes: everything. More classes: no threshold, decision curve, calibration slope or DeLong test, but DeLong's
interval of each class against the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longvit.data.cohort import SlideRow
from longvit.errors import InputError
from longvit.external.cases import LEVELS, SLIDES, Cases, cases_at, joined, slide_cases
from longvit.external.labelled_cohort import groups_of
from longvit.external.member_predictions import ENSEMBLE, ExternalLogits
from longvit.external.settings import ExternalSettings
from longvit.external.source_run import SourceRun
from longvit.metrics.calibration import calibration, fit_logistic, logits_of, recalibrated
from longvit.metrics.classification import METRICS, classification_metrics, percentile_interval, resampled_metrics
from longvit.metrics.decision import OPERATING, counts_at, net_benefit, operating_point, youden_threshold
from longvit.metrics.delong import Estimate, delong_interval, delong_test, delong_unpaired
from longvit.metrics.resampling import bootstrap_values
from longvit.tasks.subtyping import softmax

_GRID = np.arange(1, 100) / 100
_CALIBRATION = ("slope", "intercept", "in_the_large", "brier")


@dataclass(frozen=True)
class Reference:
    """Predictions of cohort A by member, as slide cases."""

    tuning: tuple[Cases, ...]
    """Slides on which the threshold is chosen."""
    reported: tuple[Cases, ...]
    """Slides whose metrics the run reports."""
    tuning_split: str
    reported_split: str


@dataclass(frozen=True)
class Classified:
    """Cohort B as cases, with everything that its evaluation needs."""

    classes: tuple[str, ...]
    main: str
    """Name of the main system: model, or ensemble."""
    members: tuple[str, ...]
    controls: tuple[str, ...]
    rows: tuple[SlideRow, ...]
    slides: Cases

    @property
    def is_binary(self) -> bool:
        """True for two classes."""
        return len(self.classes) == 2


def classified(run: SourceRun, logits: ExternalLogits) -> Classified:
    """Cases of cohort B: probabilities of the members, their mean (the ensemble), and of the controls."""
    classes = run.outputs
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index[row.label] for row in logits.rows], dtype=np.int64)
    probabilities: dict[str, np.ndarray] = {}
    members = {name: softmax(z) for name, z in logits.members.items()}
    main = next(iter(members))
    if len(members) > 1:
        main = ENSEMBLE
        probabilities[ENSEMBLE] = np.mean(list(members.values()), axis=0)
    probabilities |= members
    for control, by_member in logits.controls.items():
        probabilities[control] = np.mean([softmax(z) for z in by_member.values()], axis=0)
    slides = slide_cases(logits.rows, labels, probabilities)
    return Classified(classes, main, tuple(members), tuple(logits.controls), logits.rows, slides)


def reference_of(run: SourceRun) -> Reference | None:
    """Predictions of cohort A; None for runs of older versions."""
    if any(member.slides is None for member in run.members):
        return None
    kinds: dict[str, list[Cases]] = {"tuning": [], "reported": []}
    for member in run.members:
        for kind, split in (("tuning", member.tuning_split), ("reported", member.reported_split)):
            p = member.predictions(split)
            labels = member.task.targets(p.rows)["label"]
            kinds[kind].append(slide_cases(p.rows, labels, {"model": softmax(p.logits)}))
    first = run.first
    return Reference(tuple(kinds["tuning"]), tuple(kinds["reported"]), first.tuning_split, first.reported_split)


def evaluate(data: Classified, reference: Reference | None, settings: ExternalSettings, source: str) -> dict[str, Any]:
    """Entries of metrics.json; `source`: the CSV, for messages."""
    columns = [*(["site"] if any(row.site for row in data.rows) else []), *settings.subgroup]
    groups = {column: groups_of(data.rows, column, source) for column in dict.fromkeys(columns)}
    result: dict[str, Any] = {"levels": {}}
    for level in LEVELS:
        cases = cases_at(level, data.slides)
        if len(cases):
            result["levels"][level] = _level(data, cases, level, reference, settings)
    threshold = result["levels"][SLIDES].get("threshold")
    at = None if threshold is None else threshold["value"]
    result["groups"] = {column: _groups(data, values, at, settings) for column, values in groups.items() if any(values)}
    if (part := settings.recalibration) is not None:
        result["recalibration"] = _recalibration(data, part, settings, source)
    return result


def _level(
    data: Classified, cases: Cases, level: str, reference: Reference | None, settings: ExternalSettings
) -> dict[str, Any]:
    main = cases.probabilities[data.main]
    entry: dict[str, Any] = {
        "cases": len(cases),
        "patients": len(set(cases.patients)),
        "left_out_mixed_labels": cases.mixed,
        "classes": {name: int((cases.labels == i).sum()) for i, name in enumerate(data.classes)},
        "systems": {name: system_metrics(cases, name, settings) for name in cases.probabilities},
    }
    others = [*data.controls, *(data.members if data.main == ENSEMBLE else ())]
    entry["differences"] = {name: _difference(cases, data.main, name, settings) for name in others}
    if reference is not None:
        entry["drop"] = _drop(data, cases, level, reference, settings)
    if not data.is_binary:
        entry["per_class"] = {
            name: _estimate(delong_interval(cases.labels == i, main[:, i])) for i, name in enumerate(data.classes)
        }
        return entry
    positive = main[:, 1]
    entry["calibration"] = _calibration(cases, positive, settings)
    if reference is not None:
        tuning = joined([cases_at(level, part) for part in reference.tuning])
        value = youden_threshold(tuning.labels, tuning.probabilities["model"][:, 1])
        entry["threshold"] = {
            "value": value,
            "chosen_on": reference.tuning_split,
            "cases": len(tuning),
            **({} if math.isnan(value) else threshold_metrics(cases, positive, value, settings)),
        }
    model, everyone = net_benefit(cases.labels, positive, _GRID, settings.prevalence)
    entry["decision_curve"] = {
        "threshold": _GRID.tolist(), "model": model.tolist(), "all": everyone.tolist(), "none": [0.0] * len(_GRID)
    }  # fmt: skip
    return entry


def system_metrics(cases: Cases, system: str, settings: ExternalSettings) -> dict[str, dict[str, float]]:
    """Metric -> value, low and high (bootstrap by patient); two classes: also auc_delong."""
    p = cases.probabilities[system]
    values = classification_metrics(cases.labels, p)
    drawn = resampled_metrics(cases.labels, p, cases.patients, resamples=settings.bootstrap, seed=settings.seed)
    result = {name: ranged_value(values[name], drawn[name]) for name in METRICS}
    if p.shape[1] == 2:
        result["auc_delong"] = _estimate(delong_interval(cases.labels, p[:, 1]))
    return result


def threshold_metrics(
    cases: Cases, positive: np.ndarray, threshold: float, settings: ExternalSettings
) -> dict[str, Any]:
    """Counts and operating point at a threshold, with intervals; `stated_prevalence` where one was given."""
    y = cases.labels

    def at(rows: np.ndarray, prevalence: float | None) -> dict[str, float]:
        return operating_point(y[rows], positive[rows], threshold, prevalence)

    everyone = np.arange(len(y))
    result: dict[str, Any] = {"counts": counts_at(y, positive, threshold), "prevalence": float(y.mean())}
    for key, prevalence in (("at_prevalence_of_b", None), ("at_stated_prevalence", settings.prevalence)):
        if key == "at_stated_prevalence" and prevalence is None:
            continue
        drawn = bootstrap_values(
            cases.patients,
            lambda rows, prevalence=prevalence: at(rows, prevalence),  # type: ignore[misc]
            resamples=settings.bootstrap,
            seed=settings.seed,
        )
        values = at(everyone, prevalence)
        result[key] = {name: ranged_value(values[name], drawn.get(name, np.zeros(0))) for name in OPERATING}
    if settings.prevalence is not None:
        result["stated_prevalence"] = settings.prevalence
    return result


def _calibration(cases: Cases, positive: np.ndarray, settings: ExternalSettings) -> dict[str, dict[str, float]]:
    """slope, intercept, in_the_large and brier with intervals."""

    def fitted(rows: np.ndarray) -> dict[str, float]:
        c = calibration(cases.labels[rows], positive[rows])
        return {name: getattr(c, name) for name in _CALIBRATION}

    drawn = bootstrap_values(cases.patients, fitted, resamples=settings.bootstrap, seed=settings.seed)
    values = fitted(np.arange(len(cases)))
    return {name: ranged_value(values[name], drawn.get(name, np.zeros(0))) for name in _CALIBRATION}


def _difference(cases: Cases, main: str, other: str, settings: ExternalSettings) -> dict[str, Any]:
    """AUC of the main system minus that of another: bootstrap interval, and DeLong's test for two classes."""
    options = {"resamples": settings.bootstrap, "seed": settings.seed}
    values, drawn = {}, {}
    for name in (main, other):
        p = cases.probabilities[name]
        values[name] = classification_metrics(cases.labels, p)["auc"]
        drawn[name] = resampled_metrics(cases.labels, p, cases.patients, ("auc",), **options)["auc"]
    result: dict[str, Any] = {"auc": ranged_value(values[main] - values[other], drawn[main] - drawn[other])}
    one, two = cases.probabilities[main], cases.probabilities[other]
    if one.shape[1] == 2:
        result["auc_delong"] = _estimate(delong_test(cases.labels, one[:, 1], two[:, 1]), with_p=True)
    return result


def _drop(
    data: Classified, cases: Cases, level: str, reference: Reference, settings: ExternalSettings
) -> dict[str, Any]:
    """Metric -> a, b (means over the members) and b - a with its interval.

    Patients of A (in every fold) and of B are resampled independently.
    """
    a_parts = [cases_at(level, part) for part in reference.reported]
    sides: dict[str, list[tuple[Cases, np.ndarray, int]]] = {
        "a": [(part, part.probabilities["model"], settings.seed + 1 + i) for i, part in enumerate(a_parts)],
        "b": [(cases, cases.probabilities[name], settings.seed) for name in data.members],
    }
    values: dict[str, dict[str, float]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for side, parts in sides.items():
        metrics = [classification_metrics(c.labels, p) for c, p, _ in parts]
        draws = [
            resampled_metrics(c.labels, p, c.patients, resamples=settings.bootstrap, seed=seed) for c, p, seed in parts
        ]
        values[side] = {name: float(np.mean([m[name] for m in metrics])) for name in METRICS}
        drawn[side] = {name: np.mean([d[name] for d in draws], axis=0) for name in METRICS}
    result: dict[str, Any] = {
        name: {
            "a": values["a"][name],
            "b": values["b"][name],
            "difference": ranged_value(values["b"][name] - values["a"][name], drawn["b"][name] - drawn["a"][name]),
        }
        for name in METRICS
    }
    if data.is_binary and len(data.members) == 1:
        (a,), p = a_parts, cases.probabilities[data.main]
        test = delong_unpaired(cases.labels, p[:, 1], a.labels, a.probabilities["model"][:, 1])
        result["auc"]["delong"] = _estimate(test, with_p=True)
    return {"split_of_a": reference.reported_split, "cases_of_a": sum(map(len, a_parts)), "metrics": result}


def _groups(
    data: Classified, values: Sequence[str], threshold: float | None, settings: ExternalSettings
) -> dict[str, Any]:
    """Value of a column -> metrics of the main system on its slides."""
    result = {}
    for value in sorted(set(values)):
        part = data.slides.part(np.array([v == value for v in values]))
        entry: dict[str, Any] = {
            "slides": len(part),
            "patients": len(set(part.patients)),
            "classes": {name: int((part.labels == i).sum()) for i, name in enumerate(data.classes)},
            "metrics": system_metrics(part, data.main, settings),
        }
        if threshold is not None and not math.isnan(threshold):
            entry["at_threshold"] = operating_point(
                part.labels, part.probabilities[data.main][:, 1], threshold, settings.prevalence
            )
        result[value or "(missing)"] = entry
    return result


def _recalibration(
    data: Classified, part: float | tuple[str, str], settings: ExternalSettings, source: str
) -> dict[str, Any]:
    """Logistic recalibration on a part of B; metrics of the other patients before and after."""
    patients = np.array(data.slides.patients, dtype=object)
    if isinstance(part, float):
        names = sorted(set(data.slides.patients))
        chosen = np.random.default_rng(settings.seed).permutation(len(names))[: max(1, round(part * len(names)))]
        fitted_on = np.isin(patients.astype(str), [names[i] for i in chosen])
        rest = ~fitted_on
    else:
        fitted_on = np.array([v == part[1] for v in groups_of(data.rows, part[0], source)])
        if not fitted_on.any():
            raise InputError(f"--recalibrate-on {part[0]}={part[1]}: no slide of {source} has this value")
        rest = ~np.isin(patients.astype(str), sorted({str(p) for p in patients[fitted_on]}))
    if not rest.any():
        raise InputError(f"--recalibrate-on {settings.recalibrate_on}: no other patient is left to evaluate")
    positive = data.slides.probabilities[data.main][:, 1]
    intercept, slope = fit_logistic(data.slides.labels[fitted_on], logits_of(positive[fitted_on]))
    entry: dict[str, Any] = {
        "part": str(settings.recalibrate_on),
        "fitted_on_slides": int(fitted_on.sum()),
        "evaluated_on_slides": int(rest.sum()),
        "intercept": intercept,
        "slope": slope,
    }
    if math.isnan(slope):
        return entry
    after = recalibrated(positive[rest], intercept, slope)
    before = data.slides.part(rest)
    for key, p in (("before", positive[rest]), ("after", after)):
        two = np.stack([1 - p, p], 1)
        cases = slide_cases([data.rows[i] for i in np.flatnonzero(rest)], before.labels, {key: two})
        entry[key] = system_metrics(cases, key, settings) | _calibration(cases, p, settings)
    return entry


def ranged_value(value: float, drawn: np.ndarray) -> dict[str, float]:
    """A metric with the 95 % interval of its resamples: value, low, high."""
    interval = percentile_interval(drawn)
    return {"value": value, "low": interval.low, "high": interval.high}


def _estimate(estimate: Estimate, *, with_p: bool = False) -> dict[str, float]:
    entry = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return entry | ({"p": estimate.p} if with_p else {})


def metric_rows(metrics: Mapping[str, Any]) -> list[list[Any]]:
    """Rows system, level, metric, value, low, high of metrics.csv, from the entries of `evaluate`."""
    return [
        [system, level, name, entry["value"], entry["low"], entry["high"]]
        for level, content in metrics["levels"].items()
        for system, by_metric in content["systems"].items()
        for name, entry in by_metric.items()
    ]
