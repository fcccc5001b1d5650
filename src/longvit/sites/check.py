"""Site check: does the embedding (or the prediction) show the site, does the site show the label, or both?

Both together are a shortcut: a model can recognise the hospital, by stain or scanner, and answer with the label that is
frequent there. On sites that it has not seen it fails. A shortcut is named as likely where

1. label and site are associated: Cramér's V at least 0.3 and p at most 0.01; and
2. the site is predicted from the vectors: balanced accuracy at least 0.1 above chance, p at most 0.01 for the better
   of the two methods after Bonferroni's correction. Sites are permuted within labels, so this is what vectors show of
   the site beyond the label. Where site and label are nearly the same (V at least 0.9) that cannot be separated, and
   sites are permuted freely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvit.data.cohort import Cohort
from longvit.data.identity import class_name
from longvit.metrics.classification import classification_metrics
from longvit.sites.association import Association, association
from longvit.sites.robustness import RobustnessIndex, robustness_index
from longvit.sites.samples import Samples, patients_of, read_samples
from longvit.sites.site_prediction import SitePrediction, predict_sites

MIN_V, MAX_P, MIN_GAIN, SAME_V = 0.3, 0.01, 0.1, 0.9
_THING = {"embeddings": "embedding", "predictions": "prediction", "features": "mean tile feature"}


@dataclass(frozen=True)
class SiteMetrics:
    """One site: its size, its labels and, for predictions of classes, their metrics."""

    site: str
    slides: int
    patients: int
    labels: Mapping[str, int]
    """Slides of each label."""
    metrics: Mapping[str, float]
    """`auc` and `balanced_accuracy`; a metric that is not defined is left out."""


@dataclass(frozen=True)
class SiteCheck:
    """Result of a site check."""

    source: str
    cohort: str
    kind: str
    patients: int
    predictions: tuple[SitePrediction, ...]
    """Prediction of the site by k-NN and by a linear probe."""
    within_label: bool
    """True where sites were permuted within labels."""
    association: Association | None
    """None without labels."""
    robustness: RobustnessIndex | None
    """None without labels, and for predictions."""
    sites: tuple[SiteMetrics, ...]
    shortcut: bool
    sentence: str
    """The finding in words."""
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON value."""
        return asdict(self)


def site_check(
    source: str | Path, cohort: str | Path, *, label_column: str = "label", permutations: int = 999, seed: int = 0
) -> SiteCheck:
    """Checks vectors of slides for the site; see the top of this file, and `samples.read_samples` for both files.

    Raises `InputError` as `read_samples` does.

    >>> from longvit.sites.check import site_check
    >>> check = site_check("embeddings", "cohort.csv")
    >>> check.sentence.startswith("No shortcut found")
    True
    """
    samples = read_samples(source, cohort, label_column)
    labels = samples.labels if samples.labels is not None and len(set(samples.labels)) > 1 else None
    found = judge(
        samples.kind, samples.vectors, samples.sites, samples.patients, labels, permutations=permutations, seed=seed
    )
    robustness = None
    if labels is not None and samples.kind != "predictions":
        robustness = robustness_index(samples.vectors, labels, samples.sites, samples.patients)
    return SiteCheck(
        source=str(source),
        cohort=str(cohort),
        kind=samples.kind,
        patients=len(set(samples.patients)),
        predictions=found.predictions,
        within_label=found.within_label,
        association=found.association,
        robustness=robustness,
        sites=_by_site(samples),
        shortcut=found.shortcut,
        sentence=found.sentence,
        notes=samples.notes,
    )


@dataclass(frozen=True)
class Finding:
    """Finding on vectors: what they show of the site, and whether a shortcut is likely; see `SiteCheck`."""

    predictions: tuple[SitePrediction, ...]
    within_label: bool
    association: Association | None
    shortcut: bool
    sentence: str


def judge(
    kind: str,
    vectors: NDArray[np.float64],
    sites: Sequence[str],
    patients: Sequence[str],
    labels: Sequence[str] | None,
    *,
    permutations: int = 999,
    seed: int = 0,
) -> Finding:
    """Finding on the vectors (N, D) of samples; `kind`: embeddings, predictions or features."""
    linked = None if labels is None else association(labels, sites, permutations=permutations, seed=seed)
    within_label = labels is not None and linked is not None and linked.v < SAME_V
    strata = labels if within_label and labels is not None else [""] * len(sites)
    predictions = predict_sites(vectors, sites, patients, strata, permutations=permutations, seed=seed)
    shown = best(predictions)
    shows_site = len(predictions) * shown.p <= MAX_P and shown.accuracy - shown.chance >= MIN_GAIN
    shows_label = linked is not None and is_linked(linked)
    sentence = _sentence(kind, shown, linked, shows_site, shows_label, within_label)
    return Finding(predictions, within_label, linked, shows_site and shows_label, sentence)


def site_note(cohort: Cohort) -> str | None:
    """Sentence on a cohort whose sites predict the labels; None where they do not, or a row has no site or label."""
    if any(not row.site or not row.label for row in cohort.rows):
        return None
    units = dict.fromkeys((row.case_id, str(row.site), row.label) for row in cohort.rows)
    sites, labels = [site for _, site, _ in units], [label for _, _, label in units]
    if min(len(set(sites)), len(set(labels))) < 2:
        return None
    linked = association(labels, sites)
    if not is_linked(linked):
        return None
    return (
        f"{cohort.source}: the site predicts the label (balanced accuracy {linked.accuracy:.2f}, chance "
        f"{linked.chance:.2f}; Cramér's V {linked.v:.2f}); test on sites left out (`longvit cohort split --by-site`) "
        "and see `longvit site-check`"
    )


def best(predictions: Sequence[SitePrediction]) -> SitePrediction:
    """The prediction with the smallest p value; among equal ones the one furthest above chance."""
    return min(predictions, key=lambda one: (one.p, one.chance - one.accuracy))


def is_linked(linked: Association) -> bool:
    """True where label and site are associated."""
    return linked.v >= MIN_V and linked.p <= MAX_P


def _by_site(samples: Samples) -> tuple[SiteMetrics, ...]:
    found = []
    number_of = {class_name(name): i for i, name in enumerate(samples.classes)}
    for site in sorted({str(row.site) for row in samples.slides}):
        rows = [row for row in samples.slides if row.site == site]
        labels = {
            label: sum(row.label == label for row in rows) for label in sorted({row.label for row in rows} - {""})
        }
        metrics: dict[str, float] = {}
        judged = [row for row in rows if row.label in number_of]
        if samples.probabilities and judged:
            truth = [number_of[row.label] for row in judged]
            values = classification_metrics(truth, np.stack([samples.probabilities[row.slide_id] for row in judged]))
            metrics = {name: values[name] for name in ("auc", "balanced_accuracy") if np.isfinite(values[name])}
        found.append(SiteMetrics(site, len(rows), patients_of(rows), labels, metrics))
    return tuple(found)


def _sentence(
    kind: str, shown: SitePrediction, linked: Association | None, shows_site: bool, shows_label: bool, within: bool
) -> str:
    thing = _THING[kind]
    site = f"balanced accuracy {shown.accuracy:.2f}, chance {shown.chance:.2f}"
    beyond = " beyond the label" if within else ""
    if linked is None:
        verb = "shows" if shows_site else "does not clearly show"
        return f"The {thing} {verb} the site ({site}). Without labels nothing can be said about a shortcut."
    label = f"balanced accuracy {linked.accuracy:.2f}, chance {linked.chance:.2f}"
    if shows_site and shows_label:
        return (
            f"A shortcut is likely: the site predicts the label ({label}), and the {thing} shows the site{beyond} "
            f"({site}). A model may learn the hospital instead of the disease; test it on sites left out "
            "(`longvit cohort split --by-site`)."
        )
    if shows_site:
        return (
            f"No shortcut found: the {thing} shows the site{beyond} ({site}), but the site hardly predicts the label "
            f"(Cramér's V {linked.v:.2f})."
        )
    if shows_label:
        return (
            f"No shortcut found: the site predicts the label ({label}), but the {thing} does not clearly show the "
            f"site{beyond} ({site})."
        )
    return (
        f"No shortcut found: the {thing} does not clearly show the site ({site}), and the site hardly predicts the "
        f"label (Cramér's V {linked.v:.2f})."
    )
