"""What figures, controls and splits are called, and how numbers are written, in every report."""

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
}
_OTHER = {
    "mean_colour": "control: mean colour",
    "random_encoder": "control: random frozen encoder",
    "frozen_weights": "control: the starting weights, frozen",
    "val": "validation",
}

CHANCE = {"auc": 0.5, "c_index": 0.5}
"""What guessing gives, where that is one number."""

MEANINGS = {
    "auc": "AUC: the chance that a slide of the second class gets a higher score than one of the first (with more "
    "classes: the mean of each class against the rest); 0.5 is guessing.",
    "c_index": "c-index: of two patients whose order is known, the chance that the earlier event was given the "
    "higher risk (ties count half); 0.5 is guessing.",
    "average_precision": "Average precision: the area under the precision-recall curve; guessing gives the share of "
    "the class.",
    "balanced_accuracy": "Balanced accuracy: the mean of the classes' shares that were recognised.",
    "ece": "Calibration error: how far, on average, the stated probability of the predicted class is from the share "
    "that is right; 0 is best, and few slides make it look larger than it is.",
    "uno_c_index": "Uno's c-index: the same, weighted so that it does not depend on who was censored when.",
    "time_auc": "AUC over time: the chance that a patient with the event by a month was given a higher risk than one "
    "without, averaged over the bins' edges.",
    "integrated_brier": "Integrated Brier score: the squared error of the predicted survival over time; lower is "
    "better.",
}


def metric_label(name: str) -> str:
    """`c_index` -> c-index."""
    return _METRICS.get(name, name.replace("_", " "))


def name_words(name: str) -> str:
    """A control or a split as a reader would call it."""
    return _OTHER.get(name, name.replace("_", " "))


def counted(n: int, thing: str) -> str:
    """`1 slide`, `2 slides`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def listed(names: Sequence[str], word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
