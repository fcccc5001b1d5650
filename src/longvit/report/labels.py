"""Labels of metrics, controls and splits, and text helpers of all reports."""

from __future__ import annotations

from collections.abc import Sequence

_METRICS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "f1": "F1",
    "ece": "calibration error",
    "c_index": "c-index",
    "uno_c_index": "Uno's c-index",
    "integrated_brier": "integrated Brier score",
    "time_auc": "AUC over time",
    "r2": "R²",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "quadratic_kappa": "quadratic-weighted kappa",
}
_CONTROLS_AND_SPLITS = {
    "mean_colour": "control: mean colour",
    "random_encoder": "control: random frozen encoder",
    "frozen_weights": "control: starting weights, frozen",
    "val": "validation",
}

CHANCE = {"auc": 0.5, "c_index": 0.5, "r2": 0.0, "quadratic_kappa": 0.0}
"""Value of each metric under random guessing, where it is one number."""

MEANINGS = {
    "auc": "AUC: probability that a slide of the second class scores higher than one of the first. With more classes: "
    "the mean over classes, each against the rest. 0.5 is random guessing.",
    "r2": "R²: 1 minus the squared error relative to that of the mean label. 1 is best, 0 is the mean for all slides, "
    "and below 0 is worse than it.",
    "mae": "Mean absolute error: mean distance between prediction and label, in the unit of the label; for grades, the "
    "number of grades between them.",
    "quadratic_kappa": "Quadratic-weighted kappa: agreement of the predicted grade with the label, where an error of "
    "two grades counts four times one of one grade. 1 is agreement, 0 is chance.",
    "c_index": "c-index: over pairs of patients whose order of events is known, the fraction in which the earlier "
    "event has the higher predicted risk. Ties count half. 0.5 is random guessing.",
    "average_precision": "Average precision: area under the precision-recall curve. Random guessing gives the "
    "prevalence of the class.",
    "balanced_accuracy": "Balanced accuracy: mean recall over the classes.",
    "ece": "Expected calibration error: mean difference between the predicted probability and the fraction of correct "
    "predictions. 0 is best; with few slides it is biased upwards.",
    "uno_c_index": "Uno's c-index: the c-index, weighted so that it does not depend on the censoring times.",
    "time_auc": "AUC over time: probability that a patient with the event by a given month has a higher predicted "
    "risk than one without, averaged over the edges of the time bins.",
    "integrated_brier": "Integrated Brier score: squared error of the predicted survival probability, averaged over "
    "time. Lower is better.",
}
"""Explanation of each metric for the reader of a report."""


def metric_label(name: str) -> str:
    """Label of a metric: `c_index` -> c-index."""
    return _METRICS.get(name, name.replace("_", " "))


def display_name(name: str) -> str:
    """Label of a control or a split."""
    return _CONTROLS_AND_SPLITS.get(name, name.replace("_", " "))


def counted(n: int, thing: str) -> str:
    """Count with its noun: `1 slide`, `2 slides`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def listed(names: Sequence[str], word: str = "and") -> str:
    """List in words: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
