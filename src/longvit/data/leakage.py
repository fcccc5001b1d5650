"""Check of a cohort and its folds: patients in two splits, slides without a label or a file, duplicate files.

A leak is a patient, a slide or a file content in two splits of one fold. HIPT's published folds leak in every fold (4
to 12 patients between train and test). Their metrics are comparable only with others on the same folds.
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
    """Number of ids that the fold lists."""
    used: dict[str, int]
    """Number of slides of the cohort that they match."""
    labels: dict[str, dict[str, int]]
    """Slides of each class."""
    unlabelled: dict[str, tuple[str, ...]]
    """Ids without a row in the cohort; they are left out."""
    shared_patients: dict[str, tuple[str, ...]]
    """Patients with slides in both splits, among the slides used."""
    shared_slides: dict[str, tuple[str, ...]]
    """Slides in both splits."""
    copies: dict[str, tuple[str, ...]]
    """Slides in both splits that are one file under two ids, as `a = b`."""
    unused: tuple[str, ...]
    """Slides of the cohort that are in no split of this fold."""

    def leaks(self) -> int:
        """Number of patients, slides and copies in two splits."""
        all_pairs = (self.shared_patients, self.shared_slides, self.copies)
        return len({name for pairs in all_pairs for names in pairs.values() for name in names})


@dataclass(frozen=True)
class CohortReport:
    """Result of `check`."""

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
    """slide_id -> reason why it cannot be opened; such slides were not compared."""
    copies: tuple[tuple[str, ...], ...]
    """Groups of slides with the same content, by id."""
    folds: tuple[FoldReport, ...]
    drawn: int
    """Number of ids in the test sets of all folds together (val where no fold has a test)."""
    different: int
    """Number of different ids among them: fewer than `drawn` where test sets overlap."""

    def leaking(self) -> tuple[FoldReport, ...]:
        """Folds that leak."""
        return tuple(fold for fold in self.folds if fold.leaks())

    def as_json(self) -> dict[str, Any]:
        """The report, ready for `json.dumps`."""
        record = asdict(self)
        for fold, entry in zip(self.folds, record["folds"], strict=True):
            entry["leaks"] = fold.leaks()
        return record


def check(cohort: Cohort, folds: Iterable[Fold] = (), *, contents: bool = True) -> CohortReport:
    """Report on slides that drop out of a cohort and on leaks in its folds; nothing is refused here.

    Read the cohort with `need_files=False, need_labels=False, allow_leak=True`, so that everything can be reported.
    `contents`: also compare the slides' files by content (milliseconds each). Raises `InputError` for folds of another
    cohort, see `match`.
    """
    folds = tuple(folds)
    missing = tuple(row.slide_id for row in cohort.rows if not os.path.exists(row.path))  # noqa: PTH110
    identities, unreadable = content_hashes(cohort) if contents else ({}, {})
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
    """Number of slides in both cohort tables. Raises `InputError` for the first with another patient, label or split,
    and for slides or patients that differ in spelling only.

    A label or split that one of them lacks is not a disagreement.
    """
    for what, name in (("slide", "slide_id"), ("patient", "case_id")):
        places, other_places = (
            first_places((getattr(row, name), row.where()) for row in cohort.rows) for cohort in (one, other)
        )
        refuse_other_spelling(what, places, one.source, what, other_places, other.source)
    by_id = {row.slide_id: row for row in other.rows}
    shared_rows = [(row, by_id[row.slide_id]) for row in one.rows if row.slide_id in by_id]
    disagreements = [
        f"slide {row.slide_id} has the {what} {value} in {one.source}, but {other_value} in {other.source}"
        for row, other_row in shared_rows
        for what, value, other_value in (
            ("patient", row.case_id, other_row.case_id),
            ("label", row.label, other_row.label),
            ("split", row.split, other_row.split),
        )
        if value and other_value and value != other_value
    ]
    if disagreements:
        more = f" ({len(disagreements) - 1} more)" if disagreements[1:] else ""
        raise InputError(f"{disagreements[0]}{more}; correct one of them")
    return len(shared_rows)


def _fold_report(cohort: Cohort, fold: Fold, copies: tuple[tuple[str, ...], ...]) -> FoldReport:
    matched = match(cohort, fold)
    listed = {split: len(fold.ids(split)) for split in SPLITS if fold.ids(split)}
    used = {i for rows in matched.rows.values() for i in rows}
    labels = {split: Counter(cohort.rows[i].label for i in matched.rows[split]) for split in listed}
    return FoldReport(
        name=fold.name,
        listed=listed,
        used={split: len(matched.rows[split]) for split in listed},
        labels={split: {label: count[label] for label in cohort.classes} for split, count in labels.items()},
        unlabelled={split: ids for split, ids in matched.unknown.items() if ids},
        shared_patients={"+".join(pair): cases for pair, cases in matched.shared_cases().items()},
        shared_slides={
            "+".join(pair): tuple(cohort.rows[i].slide_id for i in rows) for pair, rows in matched.shared_rows().items()
        },
        copies=_copies_across(cohort, matched, copies),
        unused=tuple(row.slide_id for i, row in enumerate(cohort.rows) if i not in used),
    )


def _copies_across(cohort: Cohort, matched: Match, copies: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
    splits_of: dict[str, set[str]] = {}
    for split, rows in matched.rows.items():
        for i in rows:
            splits_of.setdefault(cohort.rows[i].slide_id, set()).add(split)
    across: dict[str, list[str]] = {}
    for one, other in (pair for ids in copies for pair in combinations(ids, 2)):
        for a, b in combinations(SPLITS, 2):
            for first, second in ((one, other), (other, one)):
                if a in splits_of.get(first, ()) and b in splits_of.get(second, ()):
                    across.setdefault(f"{a}+{b}", []).append(f"{first} = {second}")
    return {pair: tuple(names) for pair, names in across.items()}


def content_hashes(cohort: Cohort) -> tuple[dict[str, str], dict[str, str]]:
    """slide_id -> content hash of its file, and slide_id -> reason why it has none; milliseconds each."""
    from longvit.progress import Progress
    from longvit.slides.reader import open_slide

    rows = [row for row in cohort.rows if os.path.exists(row.path)]  # noqa: PTH110
    identities: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    with Progress("comparing files", len(rows), unit="slides", brief=True) as progress:
        for row in rows:
            try:
                with open_slide(row.path, mpp=row.mpp) as slide:
                    identities[row.slide_id] = slide.identity()
            except Exception as error:  # a reader's errors are of any type; the check continues
                unreadable[row.slide_id] = " ".join(str(error).split())
            progress.advance()
    return identities, unreadable
