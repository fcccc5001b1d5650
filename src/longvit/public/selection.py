"""Selection of public slides: a collection, a cohort table or folds become slides of an archive, or reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longvit.errors import InputError
from longvit.public.archive_slide import ArchiveSlide
from longvit.public.idc_index import IdcIndex, SlideSeries
from longvit.public.listed_ids import read_listed, refuse_mixed_kinds
from longvit.public.series_match import Matches, Unresolved, kept_series, match_ids, search_keys, slide_id_of
from longvit.slides.slide_name import fault_of_name

_KINDS_NAMED = 5


@dataclass(frozen=True)
class Selection:
    """Slides of an archive that a user asked for, and the ids that have none."""

    slides: tuple[ArchiveSlide, ...]
    missing: tuple[Unresolved, ...] = ()
    """Listed ids without a slide."""
    ambiguous: tuple[Unresolved, ...] = ()
    """Listed ids with more than one slide, or two with the same."""
    archive: str = ""
    """Archive and its version: `IDC v25 (idc-index-data 25.0.5)`."""
    citations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Kinds of the slides, and numbers of those that were left out."""

    @property
    def n_bytes(self) -> int:
        """Size of all slides together."""
        return sum(slide.n_bytes for slide in self.slides)


def select(
    collections: Sequence[str] = (),
    *,
    slides: Path | None = None,
    folds: Path | None = None,
    ids: Sequence[str] | None = None,
    frozen: bool = False,
    index: IdcIndex | None = None,
) -> Selection:
    """Slides of IDC: whole collections, or the slides and patients that a table, folds or `ids` list.

    - `collections`: names of IDC, such as `tcga-brca`. With a list, only these are searched.
    - `slides`: cohort table with slide ids, or patients of whom all slides are meant.
    - `folds`: folder of published folds, or one file.
    - `ids`: the same as texts.
    - `frozen`: frozen sections too.
    - `index`: an opened index; None: that of the installed package.

    The slide ids are those of the list; `slide_id_of` makes those of collections and patients.

    Raises `InputError` for no such collection, nothing asked for, two lists, and a list of slides and patients. A list
    of which nothing is found is refused too, and so are the faults of tables, folds and index.

    >>> from longvit.public.selection import select
    >>> selection = select(["tcga-brca"])
    >>> len(selection.slides) > 1000, selection.slides[0].case_id[:8]
    (True, 'TCGA-3C-')
    """
    listed, source = read_listed(slides, folds, ids)
    if listed is None and not collections:
        raise InputError("name a collection (longvit fetch tcga-brca), a table (--slides) or folds (--folds)")
    index = IdcIndex() if index is None else index
    names = list(dict.fromkeys(index.known_collection(name) for name in collections))
    if listed is None:
        return _of_collections(index, names, frozen=frozen)
    return _of_list(index, names, listed, source, frozen=frozen)


def _of_collections(index: IdcIndex, names: Sequence[str], *, frozen: bool) -> Selection:
    kept, n_frozen, n_without_colour = kept_series(index.series(names), frozen=frozen)
    if not kept:
        reason = "all its slides are frozen sections; --frozen includes them" if n_frozen else "no slide in colour"
        raise InputError(f"{', '.join(names)}: {reason}")
    return _selection(index, [(slide_id_of(one), one) for one in kept], Matches(), n_frozen, n_without_colour)


def _of_list(index: IdcIndex, names: Sequence[str], ids: Sequence[str], source: str, *, frozen: bool) -> Selection:
    where = index.version if not names else f"{', '.join(name.replace('_', '-') for name in names)} of {index.version}"
    matches = match_ids(ids, index.series(names, search_keys(ids)), frozen=frozen, where=where)
    refuse_mixed_kinds(source, matches.listed_slides, matches.listed_patients)
    if not matches.slides:
        first = [*matches.missing, *matches.ambiguous][0]
        raise InputError(f"{source}: none of its {len(ids)} ids has a slide; {first.listed_id}: {first.reason}")
    return _selection(index, matches.slides, matches, matches.n_frozen, matches.n_without_colour)


def _selection(
    index: IdcIndex,
    pairs: Sequence[tuple[str, SlideSeries]],
    matches: Matches,
    n_frozen: int,
    n_without_colour: int,
) -> Selection:
    for slide_id, _ in pairs:
        if (fault := fault_of_name(slide_id, slide_id)) is not None:
            raise InputError(f"{slide_id}: {fault}")
    notes = [_kinds([one for _, one in pairs])]
    if n_frozen:
        notes.append(f"{n_frozen:,} frozen sections are left out; --frozen includes them")
    if n_without_colour:
        notes.append(f"{n_without_colour:,} series without colour (fluorescence) are left out")
    return Selection(
        slides=tuple(_archive_slide(slide_id, one) for slide_id, one in pairs),
        missing=tuple(matches.missing),
        ambiguous=tuple(matches.ambiguous),
        archive=index.version,
        citations=index.citations(one.doi for _, one in pairs),
        notes=tuple(notes),
    )


def _archive_slide(slide_id: str, series: SlideSeries) -> ArchiveSlide:
    return ArchiveSlide(
        slide_id=slide_id,
        case_id=series.patient,
        source="idc",
        location=series.address,
        n_bytes=series.n_bytes,
        collection=series.collection,
        licence=series.licence,
        series_uid=series.uid,
    )


def _kinds(series: Sequence[SlideSeries]) -> str:
    """Descriptions of the series with their numbers, without the number of the section: `FFPE HE TP DX 1,062`."""
    kinds = Counter(" ".join(one.description.split()).rstrip("0123456789") or "(none)" for one in series)
    most = kinds.most_common(_KINDS_NAMED)
    rest = sum(kinds.values()) - sum(n for _, n in most)
    return "described as " + ", ".join([*(f"{kind} {n:,}" for kind, n in most), *([f"other {rest:,}"] if rest else [])])
