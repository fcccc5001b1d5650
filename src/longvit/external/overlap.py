"""Overlap of two cohorts: patients, slides and file contents that are in both.

Ids are compared as everywhere in the package (`data.identity`): two spellings of one id (capitals, blanks, leading
zeros, dashes, an extension) are the same patient or slide here. Files are compared by content hash, whatever their
names. The same slide, exported again in another format, has another content and is found by its id only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longvit.data.cohort import Cohort, SlideRow
from longvit.data.identity import clashes, shown
from longvit.errors import InputError
from longvit.slides.file_kind import slide_stem

_NAMED = 5


@dataclass(frozen=True)
class Overlap:
    """Patients, slides and contents of cohort B that are also in cohort A."""

    patients: Mapping[str, str]
    """case_id of B -> case_id of A."""
    slides: Mapping[str, str]
    """slide_id of B -> slide_id of A."""
    content: Mapping[str, str]
    """slide_id of B -> slide_id of A with the same file content."""
    dropped: tuple[str, ...] = ()
    """slide_id of the rows of B that were left out for it."""

    def __bool__(self) -> bool:
        return bool(self.patients or self.slides or self.content)

    def rows(self, rows: Sequence[SlideRow]) -> tuple[SlideRow, ...]:
        """The rows of B that overlap."""
        return tuple(
            row
            for row in rows
            if row.case_id in self.patients or row.slide_id in self.slides or row.slide_id in self.content
        )

    def text(self) -> str:
        """Counts and the first names: `2 patients (P1, p2 = P2), 1 slide (a)`."""
        parts = []
        for count, pairs in (("patient", self.patients), ("slide", self.slides), ("file", self.content)):
            if pairs:
                names = [shown_pair(b, a) for b, a in list(pairs.items())[:_NAMED]]
                more = f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
                plural = "s" if len(pairs) > 1 else ""
                parts.append(f"{len(pairs)} {count}{plural} ({', '.join(names)}{more})")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """The overlap, ready for `json.dumps`."""
        return {
            "patients": dict(self.patients),
            "slides": dict(self.slides),
            "content": dict(self.content),
            "dropped": list(self.dropped),
        }


def find_overlap(
    rows: Sequence[SlideRow],
    content: Mapping[str, str],
    others: Sequence[SlideRow],
    other_content: Mapping[str, str],
) -> Overlap:
    """Overlap of the rows of B with those of A (`others`); `content`: slide_id -> content hash.

    A slide that is a patient of the other cohort counts too, since a table without case_id has a patient per slide.
    """
    by_content = {digest: slide for slide, digest in reversed(list(other_content.items()))}
    cases, other_cases = [row.case_id for row in rows], [row.case_id for row in others]
    slides, other_slides = [row.slide_id for row in rows], [row.slide_id for row in others]
    patients = _same(cases, other_cases)
    if {*cases} == {*slides} or {*other_cases} == {*other_slides}:  # one of the two has no patients
        patients = _same(cases, [*other_slides, *other_cases]) | _same(cases, other_cases)
    return Overlap(
        patients,
        _same(slides, other_slides),
        {row.slide_id: by_content[digest] for row in rows if (digest := content.get(row.slide_id)) in by_content},
    )


def resolve_overlap(cohort: Cohort, overlap: Overlap, policy: str, source: str) -> tuple[Cohort, Overlap]:
    """Cohort B without its overlap with A (`policy` drop), or as it is (allow, or without overlap).

    `InputError` for `policy` refuse, and where no slide stays. `source`: the run, for the message.
    """
    if not overlap or policy == "allow":
        return cohort, overlap
    found = f"{cohort.source}: also used in {source}: {overlap.text()}"
    if policy == "refuse":
        raise InputError(f"{found}; remove them, or leave them out with --overlap drop")
    gone = {row.slide_id for row in overlap.rows(cohort.rows)}
    kept = tuple(row for row in cohort.rows if row.slide_id not in gone)
    if not kept:
        raise InputError(f"{found}; no slide of another patient stays")
    dropped = tuple(row.slide_id for row in cohort.rows if row.slide_id in gone)
    note = f"{len(dropped)} of {len(cohort.rows)} slides are left out, since the run used them or their patients"
    kept_cohort = Cohort(kept, cohort.classes, cohort.source, (*cohort.notes, note))
    return kept_cohort, Overlap(overlap.patients, overlap.slides, overlap.content, dropped)


def shown_pair(name: str, other: str) -> str:
    """`P1`, or `p1 = P1` where the spelling differs."""
    return shown(name)[1:-1] if name == other else f"{shown(name)[1:-1]} = {shown(other)[1:-1]}"


def _same(names: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Name -> the other name that is the same, or differs from it in spelling only."""
    stems = {slide_stem(name): name for name in reversed(others)}
    same = {name: stems[slide_stem(name)] for name in names if slide_stem(name) in stems}
    left = {slide_stem(name): name for name in reversed(names) if name not in same}
    for one, two in clashes([*stems, *left]):
        for a, b in ((one, two), (two, one)):
            if a in stems and b in left:
                same.setdefault(left[b], stems[a])
    return {name: same[name] for name in dict.fromkeys(names) if name in same}
