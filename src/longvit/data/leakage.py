"""What is wrong with a cohort and its folds: patients on two sides, slides without a label or a file, copies.

A leak is a patient, a slide or a file content that stands in two splits of one fold. HIPT's published folds leak in
every fold (4 to 12 patients between train and test); their figures are comparable only with others on the same folds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from longvit.data.cohort import SPLITS, Cohort
from longvit.data.folds import Fold, Match, match
from longvit.data.identity import first_places, refuse_other_spelling
from longvit.errors import InputError


@dataclass(frozen=True)
class FoldReport:
    """One fold against its cohort. Keys are splits ("train"), or pairs of them ("train+test")."""

    name: str
    listed: dict[str, int]
    """Ids that the fold lists."""
    used: dict[str, int]
    """Slides of the cohort that they mean."""
    labels: dict[str, dict[str, int]]
    """Slides of each class."""
    unlabelled: dict[str, tuple[str, ...]]
    """Ids without a row in the cohort: they drop out."""
    shared_patients: dict[str, tuple[str, ...]]
    """Patients with slides on both sides, of the slides that are used."""
    shared_slides: dict[str, tuple[str, ...]]
    """Slides on both sides."""
    copies: dict[str, tuple[str, ...]]
    """Slides on both sides that are one file under two ids, as `a = b`."""
    unused: tuple[str, ...]
    """Slides of the cohort that are in no split of this fold."""

    def leaks(self) -> int:
        """How many patients, slides and copies stand on two sides."""
        found = (self.shared_patients, self.shared_slides, self.copies)
        return len({name for pairs in found for names in pairs.values() for name in names})


@dataclass(frozen=True)
class CohortReport:
    """What `check` found."""

    source: str
    slides: int
    patients: int
    labels: dict[str, int]
    """Slides of each class."""
    patients_of: dict[str, int]
    """Patients with a slide of each class."""
    notes: tuple[str, ...]
    missing_files: tuple[str, ...]
    """Slides without a file."""
    unreadable: dict[str, str]
    """slide_id -> why it cannot be opened; such slides were not compared."""
    copies: tuple[tuple[str, ...], ...]
    """Slides with the same content, by their ids."""
    folds: tuple[FoldReport, ...]
    drawn: int
    """Ids in the test sets of all folds together (val where no fold has a test)."""
    different: int
    """How many different ids those are: fewer than `drawn` where test sets overlap."""

    def leaking(self) -> tuple[FoldReport, ...]:
        """The folds that leak."""
        return tuple(fold for fold in self.folds if fold.leaks())

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dumps`."""
        facts = asdict(self)
        for fold, entry in zip(self.folds, facts["folds"], strict=True):
            entry["leaks"] = fold.leaks()
        return facts


def check(cohort: Cohort, folds: Iterable[Fold] = (), *, contents: bool = True) -> CohortReport:
    """Counts and names what drops out of a cohort and what leaks in its folds; nothing is refused here.

    Read the cohort with `need_files=False, need_labels=False, allow_leak=True`, so that all of it can be told.
    `contents`: also compare the slides' files by content (milliseconds each). `InputError`: folds of another cohort,
    see `match`.
    """
    folds = tuple(folds)
    missing = tuple(row.slide_id for row in cohort.rows if not os.path.exists(row.path))  # noqa: PTH110
    identities, unreadable = _identities(cohort, set(missing)) if contents else ({}, {})
    by_identity: dict[str, list[str]] = {}
    for slide_id, identity in identities.items():
        by_identity.setdefault(identity, []).append(slide_id)
    copies = tuple(tuple(ids) for ids in by_identity.values() if len(ids) > 1)
    evaluated = "test" if any(fold.test for fold in folds) else "val"
    drawn = [text for fold in folds for text in fold.ids(evaluated)]
    return CohortReport(
        source=cohort.source,
        slides=len(cohort.rows),
        patients=len({row.case_id for row in cohort.rows}),
        labels={label: sum(row.label == label for row in cohort.rows) for label in cohort.classes},
        patients_of={c: len({row.case_id for row in cohort.rows if row.label == c}) for c in cohort.classes},
        notes=cohort.notes,
        missing_files=missing,
        unreadable=unreadable,
        copies=copies,
        folds=tuple(_fold_report(cohort, fold, copies) for fold in folds),
        drawn=len(drawn),
        different=len(set(drawn)),
    )


def refuse_disagreement(one: Cohort, other: Cohort) -> int:
    """How many slides are in both manifests; `InputError` for the first with another patient, label or split, and for
    slides or patients that only their spelling tells apart.

    A label or split that one of them lacks is no disagreement.
    """
    for what, name in (("slide", "slide_id"), ("patient", "case_id")):
        ours, theirs = (first_places((getattr(row, name), row.where()) for row in c.rows) for c in (one, other))
        refuse_other_spelling(what, ours, one.source, what, theirs, other.source)
    by_id = {row.slide_id: row for row in other.rows}
    both = [(row, by_id[row.slide_id]) for row in one.rows if row.slide_id in by_id]
    found = [
        f"slide {a.slide_id} has the {what} {here} in {one.source}, but {there} in {other.source}"
        for a, b in both
        for what, here, there in (
            ("patient", a.case_id, b.case_id),
            ("label", a.label, b.label),
            ("split", a.split, b.split),
        )
        if here and there and here != there
    ]
    if found:
        more = f" ({len(found) - 1} more)" if found[1:] else ""
        raise InputError(f"{found[0]}{more}; correct one of them")
    return len(both)


def _fold_report(cohort: Cohort, fold: Fold, copies: tuple[tuple[str, ...], ...]) -> FoldReport:
    found = match(cohort, fold)
    listed = {split: len(fold.ids(split)) for split in SPLITS if fold.ids(split)}
    used = {i for rows in found.rows.values() for i in rows}
    labels = {split: Counter(cohort.rows[i].label for i in found.rows[split]) for split in listed}
    return FoldReport(
        name=fold.name,
        listed=listed,
        used={split: len(found.rows[split]) for split in listed},
        labels={split: {label: count[label] for label in cohort.classes} for split, count in labels.items()},
        unlabelled={split: ids for split, ids in found.unknown.items() if ids},
        shared_patients={"+".join(pair): cases for pair, cases in found.shared_cases().items()},
        shared_slides={
            "+".join(pair): tuple(cohort.rows[i].slide_id for i in rows) for pair, rows in found.shared_rows().items()
        },
        copies=_copies_across(cohort, found, copies),
        unused=tuple(row.slide_id for i, row in enumerate(cohort.rows) if i not in used),
    )


def _copies_across(cohort: Cohort, found: Match, copies: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
    splits_of: dict[str, set[str]] = {}
    for split, rows in found.rows.items():
        for i in rows:
            splits_of.setdefault(cohort.rows[i].slide_id, set()).add(split)
    across: dict[str, list[str]] = {}
    for one, other in (pair for ids in copies for pair in combinations(ids, 2)):
        for a, b in combinations(SPLITS, 2):
            for first, second in ((one, other), (other, one)):
                if a in splits_of.get(first, ()) and b in splits_of.get(second, ()):
                    across.setdefault(f"{a}+{b}", []).append(f"{first} = {second}")
    return {pair: tuple(names) for pair, names in across.items()}


def _identities(cohort: Cohort, missing: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """slide_id -> content hash, and slide_id -> why it has none."""
    from longvit.progress import Progress
    from longvit.slides.reader import open_slide

    there = [row for row in cohort.rows if row.slide_id not in missing]
    identities: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    with Progress("comparing files", len(there), unit="slides", brief=True) as progress:
        for row in there:
            try:
                with open_slide(row.path, mpp=row.mpp) as slide:
                    identities[row.slide_id] = slide.identity()
            except Exception as error:  # a reader's own errors are of any type; the check goes on
                unreadable[row.slide_id] = " ".join(str(error).split())
            progress.advance()
    return identities, unreadable
