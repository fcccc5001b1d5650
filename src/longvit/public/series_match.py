"""Match of listed ids with the series of an index: a slide id names one series, a patient all of his or her slides."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from longvit.data.identity import spelled_like
from longvit.public.idc_index import SlideSeries
from longvit.public.tcga_barcode import Barcode, parse_barcode, section_of

_SHORTEST_PATIENT = 4  # characters of a name that a message takes for the patient of an unknown slide


@dataclass(frozen=True)
class Unresolved:
    """A listed id without a slide, and the reason."""

    listed_id: str
    reason: str


@dataclass
class Matches:
    """Result of the match, in the order of the list."""

    slides: list[tuple[str, SlideSeries]] = field(default_factory=list)
    """Slide id and its series."""
    missing: list[Unresolved] = field(default_factory=list)
    ambiguous: list[Unresolved] = field(default_factory=list)
    listed_slides: list[str] = field(default_factory=list)
    """Ids that name one slide."""
    listed_patients: list[str] = field(default_factory=list)
    """Ids that name a patient."""
    n_frozen: int = 0
    """Frozen sections of listed patients that were left out."""
    n_without_colour: int = 0


def slide_id_of(series: SlideSeries) -> str:
    """Slide id of a series that is chosen without one: patient, section, eight digits from the series' UID.

    It stays the same in every version of the index: `TCGA-3C-AALI-DX1.1f0c2a9b`, `GTEX-1117F.0b7c61d2`.
    """
    digits = hashlib.sha256(series.uid.encode()).hexdigest()[:8]
    found = section_of(series.description) if series.collection.startswith("tcga_") else None
    name = series.patient if found is None else f"{series.patient}-{found[1]}"
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.{digits}"


def search_keys(ids: Iterable[str]) -> set[str]:
    """Lower-case names under which an index is searched: each id, and its beginnings up to `-`, `_` and `.`.

    The id with `-` for `_`, and the reverse, serve the reasons of ids that are not found.
    """
    keys: set[str] = set()
    for text in ids:
        name = text.lower()
        keys |= {name, name.replace("_", "-"), name.replace("-", "_")}
        keys.update(name[: match.start()] for match in re.finditer(r"[-_.]", name))
    return keys


def match_ids(ids: Sequence[str], series: Sequence[SlideSeries], *, frozen: bool, where: str) -> Matches:
    """The series of each listed id.

    - A TCGA barcode is matched by patient, sample type and section; its uuid is of the GDC, which IDC does not list.
    - A SeriesInstanceUID and an id of `slide_id_of` name one series.
    - The name of a patient means all of his or her slides.

    An id with several series, and two ids with one series, are ambiguous. `where`: the archive, for the reasons.
    """
    by_patient: dict[str, list[SlideSeries]] = defaultdict(list)
    by_name: dict[str, SlideSeries] = {}
    for one in series:
        by_patient[one.patient].append(one)
        by_name[one.uid] = by_name[slide_id_of(one)] = one
    spelling = {patient.lower(): patient for patient in by_patient}
    matches = Matches()
    for text in ids:
        if (barcode := parse_barcode(text)) is not None:
            _match_barcode(text, barcode, by_patient.get(barcode.patient, []), matches, frozen=frozen, where=where)
        elif text in by_name:
            matches.listed_slides.append(text)
            matches.slides.append((text, by_name[text]))
        elif text in by_patient:
            _match_patient(text, by_patient[text], matches, frozen=frozen)
        else:
            matches.missing.append(Unresolved(text, _reason(text, by_patient, spelling, where)))
    _refuse_shared_series(matches)
    return matches


def _match_barcode(
    text: str, barcode: Barcode, candidates: Sequence[SlideSeries], matches: Matches, *, frozen: bool, where: str
) -> None:
    matches.listed_slides.append(text)
    if not candidates:
        reason = f"patient {barcode.patient} is not in {where}"
        matches.missing.append(Unresolved(text, reason))
        return
    if barcode.is_frozen and not frozen:
        matches.missing.append(Unresolved(text, "a frozen section; --frozen includes them"))
        return
    sections = [(one, section_of(one.description)) for one in candidates]
    named = [(one, found[0]) for one, found in sections if found is not None and found[1] == barcode.section]
    fitting = [one for one, tissue in named if barcode.is_of_type(tissue)]
    if len(fitting) == 1:
        matches.slides.append((text, fitting[0]))
    elif fitting:
        choices = ", ".join(f"{one.uid} ({one.description}, {one.n_bytes / 1e6:.0f} MB)" for one in fitting)
        reason = f"{len(fitting)} series of patient, sample type and section; list one by its UID: {choices}"
        matches.ambiguous.append(Unresolved(text, reason))
    else:
        if named:
            types = ", ".join(tissue or "another" for _, tissue in named)
            reason = f"{barcode.section} of {barcode.patient} has sample type {types} in {where}, not {barcode.sample}"
        else:
            has = ", ".join(dict.fromkeys(found[1] for _, found in sections if found is not None)) or "none"
            reason = f"{barcode.patient} has no section {barcode.section} in {where} (it has {has})"
        matches.missing.append(Unresolved(text, reason))


def _match_patient(text: str, candidates: Sequence[SlideSeries], matches: Matches, *, frozen: bool) -> None:
    matches.listed_patients.append(text)
    if len(collections := dict.fromkeys(one.collection.replace("_", "-") for one in candidates)) > 1:
        reason = f"a patient of {', '.join(collections)}; name the collection too"
        matches.ambiguous.append(Unresolved(text, reason))
        return
    kept, n_frozen, n_without_colour = kept_series(candidates, frozen=frozen)
    matches.slides += [(slide_id_of(one), one) for one in kept]
    matches.n_frozen += n_frozen
    matches.n_without_colour += n_without_colour
    if not kept:
        reason = "only frozen sections; --frozen includes them" if n_frozen else "only images without colour"
        matches.missing.append(Unresolved(text, f"{len(candidates)} series, {reason}"))


def kept_series(series: Iterable[SlideSeries], *, frozen: bool) -> tuple[list[SlideSeries], int, int]:
    """Series in colour, without frozen sections unless `frozen`; and the numbers left out for either reason."""
    coloured, n_without_colour = [], 0
    for one in series:
        if one.is_colour:
            coloured.append(one)
        else:
            n_without_colour += 1
    kept = [one for one in coloured if frozen or not one.is_frozen]
    return kept, len(coloured) - len(kept), n_without_colour


def _reason(text: str, by_patient: dict[str, list[SlideSeries]], spelling: dict[str, str], where: str) -> str:
    """Reason why a listed id has no slide, with the name that may be meant."""
    if (patient := spelling.get(text.lower()) or spelled_like(text, by_patient)) is not None:
        return f"not in {where}, which has the patient {patient}; write it as there"
    beginnings = (text[: match.start()].lower() for match in reversed(list(re.finditer(r"[-_.]", text))))
    for beginning in beginnings:
        if len(beginning) >= _SHORTEST_PATIENT and (patient := spelling.get(beginning)) is not None:
            n = len(by_patient[patient])
            return (
                f"{where} lists patient {patient} with {n} slides, but not their names; "
                f"list the patient, or a slide by its SeriesInstanceUID"
            )
    return f"no patient and no slide of {where}"


def _refuse_shared_series(matches: Matches) -> None:
    """Moves listed ids that have one series to the ambiguous ones: at most one of them is that slide."""
    names: dict[str, list[str]] = defaultdict(list)
    for slide_id, one in matches.slides:
        names[one.uid].append(slide_id)
    shared = {uid: ids for uid, ids in names.items() if len(ids) > 1}
    if not shared:
        return
    matches.slides = [(slide_id, one) for slide_id, one in matches.slides if one.uid not in shared]
    for uid, ids in shared.items():
        for text in ids:
            others = ", ".join(other for other in ids if other != text)
            reason = f"{others} is the same series {uid}; list that slide once"
            matches.ambiguous.append(Unresolved(text, reason))
