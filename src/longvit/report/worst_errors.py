"""The slides on which the model errs most, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvit.errors import InputError
from longvit.report.labels import counted
from longvit.report.page import ReportImage, Row, Section, Table, thumbnail_of
from longvit.report.predictions import PredictedSlides

GALLERY = 12
ROWS = 30
_GALLERY_PX = 240


@dataclass(frozen=True)
class WorstError:
    """One slide, over all folds in which it was evaluated; for survival, one patient."""

    slide_ids: tuple[str, ...]
    case_id: str
    error: float
    """What the list is sorted by, the worst first."""
    cells: tuple[str, ...]
    caption: str


def mistakes_section(predicted: PredictedSlides, images: Mapping[str, Path] | None = None) -> list[Section]:
    """The worst slides: a picture each where `images` (slide_id -> canvas or slide file) has one, and a table.

    Classes: the wrong predictions, the surest first. Survival: the patients whose order against the others of their
    fold is wrong most often.
    """
    if predicted.is_classified:
        found, columns, text = _misclassified(predicted)
    elif predicted.is_followed:
        found, columns, text = _misordered(predicted)
    else:
        return []
    gallery = [plot for one in found[:GALLERY] if (plot := _picture(one, images or {})) is not None]
    rows = [Row([*one.slide_ids[:1], one.case_id, *one.cells]) for one in found[:ROWS]]
    if len(found) > ROWS:
        text += f" The first {ROWS} of {len(found)} are listed."
    n = len(columns)
    wide = ("slide", "patient", *columns)
    numbers = frozenset(range(len(wide) - n + (2 if predicted.is_classified else 0), len(wide)))
    tables = (Table(wide, rows, numbers, first_stays=True),) if rows else ()
    return [Section("Slides with the largest errors", text=(text,), tables=tables, gallery=gallery)]


def _misclassified(predicted: PredictedSlides) -> tuple[list[WorstError], tuple[str, ...], str]:
    labels, probabilities = predicted.labels, predicted.probabilities
    right = probabilities[np.arange(len(labels)), labels]
    guess = probabilities.argmax(1)
    slides = predicted.column("slide_id")
    several = len(predicted.folds) > 1
    found = []
    for name in np.unique(slides):
        here = np.flatnonzero(slides == name)
        wrong = guess[here] != labels[here]
        if not wrong.any():
            continue
        line = predicted.lines[here[0]]
        taken_for = predicted.classes[np.bincount(guess[here][wrong]).argmax()]
        p = float(right[here].mean())
        folds = (f"{int(wrong.sum())} of {len(here)}",) if several else ()
        caption = f"{line['label']}, taken for {taken_for}; p({line['label']}) {p:.2f}"
        if len(here) > 1:
            caption += f", wrong in {int(wrong.sum())} of {len(here)} folds"
        cells = (line["label"], taken_for, f"{p:.3f}", *folds)
        found.append(WorstError((str(name),), line["case_id"], 1 - p, cells, caption))
    columns = ("label", "taken for", "p(label)", *(("wrong in folds",) if several else ()))
    text = (
        f"{counted(len(found), 'slide')} of {len(np.unique(slides)):,} "
        f"{'is' if len(found) == 1 else 'are'} predicted wrongly{' in at least one fold' if several else ''}; those "
        f"with the least probability for their label come first. A sure mistake is worth a second look at the slide, "
        f"and at its label."
    )
    if not found:
        text = "No slide is predicted wrongly."
    return sorted(found, key=lambda one: (-one.error, one.slide_ids)), columns, text


def _misordered(predicted: PredictedSlides) -> tuple[list[WorstError], tuple[str, ...], str]:
    months, event, risk = (predicted.numbers(name) for name in ("survival_months", "event", "risk"))
    folds, cases = predicted.column("fold"), predicted.column("case_id")
    wrong, pairs = np.zeros(len(predicted)), np.zeros(len(predicted))
    rank = np.zeros(len(predicted))
    for fold in predicted.folds:
        here = np.flatnonzero(folds == fold)
        m, e, r = months[here], event[here] == 1, risk[here]
        other = cases[here][:, None] != cases[here][None]
        first = other & e[:, None] & ((m[:, None] < m[None]) | ((m[:, None] == m[None]) & ~e[None]))  # i before j
        against = first & (r[:, None] < r[None])
        pairs[here] = first.sum(0) + first.sum(1)
        wrong[here] = against.sum(0) + against.sum(1)
        rank[here] = (r[:, None] > r[None]).mean(1)
    found = []
    slides = predicted.column("slide_id")
    for name in np.unique(cases):
        here = np.flatnonzero(cases == name)
        if not wrong[here].sum():
            continue
        share = wrong[here].sum() / pairs[here].sum()
        happened = "event after" if event[here[0]] == 1 else "no event in"
        above = rank[here].mean()
        caption = f"{happened} {months[here[0]]:.0f} months; risk above {above:.0%} of the fold"
        cells = (f"{months[here[0]]:.1f}", "yes" if event[here[0]] == 1 else "no", f"{100 * above:.0f}", f"{share:.0%}")
        found.append(
            WorstError(
                tuple(np.unique(slides[here]).tolist()),
                str(name),
                float(share * np.sqrt(pairs[here].mean())),
                cells,
                caption,
            )
        )
    columns = ("months", "event", "risk percentile", "wrong order")
    text = (
        "The patients whose order against the others of their fold is wrong most often, among the pairs whose order is "
        "known: early events with a low risk, long follow-up with a high one."
    )
    if not found:
        text = "Every pair of patients whose order is known is in the right order."
    return sorted(found, key=lambda one: (-one.error, one.slide_ids)), columns, text


def _picture(one: WorstError, images: Mapping[str, Path]) -> ReportImage | None:
    """A small view through the slide reader, which reads a gigapixel canvas in pieces; None where it cannot be read."""
    from longvit.slides.reader import open_slide

    slide_id = next((name for name in one.slide_ids if name in images), None)
    if slide_id is None:
        return None
    path = images[slide_id]
    with suppress(InputError, OSError), open_slide(path) as slide:
        pixels = np.asarray(slide.canvas(_GALLERY_PX, "pad"))
        return thumbnail_of(pixels, slide_id, one.caption, _GALLERY_PX)
    return None
