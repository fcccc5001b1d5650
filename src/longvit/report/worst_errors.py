"""Report section with the slides that have the largest errors."""

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
    """Error of one slide over all folds in which it was evaluated; for survival, of one patient."""

    slide_ids: tuple[str, ...]
    case_id: str
    error: float
    """Sort key, the largest first."""
    cells: tuple[str, ...]
    caption: str


def worst_errors_section(predicted: PredictedSlides, images: Mapping[str, Path] | None = None) -> list[Section]:
    """Section with the worst slides as a table, and a thumbnail of each slide that `images` has.

    `images`: slide_id -> canvas or slide file. Classes: wrong predictions, the most confident first. Survival: the
    patients with the most discordant pairs within their fold. Numbers, and several labels: the predictions that are
    farthest from their label.
    """
    if predicted.is_classified:
        errors, columns, text = _misclassified(predicted)
    elif predicted.is_followed:
        errors, columns, text = _misordered(predicted)
    elif predicted.is_measured or predicted.label_columns:
        errors, columns, text = _farthest(predicted)
    else:
        return []
    gallery = [image for error in errors[:GALLERY] if (image := _thumbnail(error, images or {})) is not None]
    rows = [Row([*error.slide_ids[:1], error.case_id, *error.cells]) for error in errors[:ROWS]]
    if len(errors) > ROWS:
        text += f" The first {ROWS} of {len(errors)} are listed."
    header = ("slide", "patient", *columns)
    words = 2 if predicted.is_classified else 1 if predicted.label_columns else 0
    first_number = len(header) - len(columns) + words
    tables = (Table(header, rows, frozenset(range(first_number, len(header))), first_stays=True),) if rows else ()
    return [Section("Slides with the largest errors", text=(text,), tables=tables, gallery=gallery)]


def discordant_patients(predicted: PredictedSlides) -> list[WorstError]:
    """Survival: the patients with a discordant pair within their fold, the largest error first."""
    return _misordered(predicted)[0]


def _misclassified(predicted: PredictedSlides) -> tuple[list[WorstError], tuple[str, ...], str]:
    labels, probabilities = predicted.labels, predicted.probabilities
    right = probabilities[np.arange(len(labels)), labels]
    guess = probabilities.argmax(1)
    slides = predicted.column("slide_id")
    several = len(predicted.folds) > 1
    errors = []
    for name in np.unique(slides):
        rows = np.flatnonzero(slides == name)
        wrong = guess[rows] != labels[rows]
        if not wrong.any():
            continue
        line = predicted.lines[rows[0]]
        taken_for = predicted.classes[np.bincount(guess[rows][wrong]).argmax()]
        p = float(right[rows].mean())
        folds = (f"{int(wrong.sum())} of {len(rows)}",) if several else ()
        caption = f"label {line['label']}, predicted {taken_for}; p({line['label']}) {p:.2f}"
        if len(rows) > 1:
            caption += f", wrong in {int(wrong.sum())} of {len(rows)} folds"
        cells = (line["label"], taken_for, f"{p:.3f}", *folds)
        errors.append(WorstError((str(name),), line["case_id"], 1 - p, cells, caption))
    columns = ("label", "predicted", "p(label)", *(("wrong in folds",) if several else ()))
    text = (
        f"{counted(len(errors), 'slide')} of {len(np.unique(slides)):,} "
        f"{'is' if len(errors) == 1 else 'are'} misclassified{' in at least one fold' if several else ''}, listed by "
        f"the probability of the label, lowest first. A confident error is a reason to check the slide and its label."
    )
    if not errors:
        text = "No slide is misclassified."
    return sorted(errors, key=lambda error: (-error.error, error.slide_ids)), columns, text


def _farthest(predicted: PredictedSlides) -> tuple[list[WorstError], tuple[str, ...], str]:
    """Numbers: every slide by its distance from the label. Several labels: the slides with a wrong label."""
    errors = []
    if predicted.is_measured:
        for line in predicted.lines:
            truth, guess = float(line["value"]), float(line["predicted_value"])
            cells = (f"{truth:.4g}", f"{guess:.4g}", f"{abs(guess - truth):.4g}")
            caption = f"label {truth:.4g}, predicted {guess:.4g}"
            errors.append(WorstError((line["slide_id"],), line["case_id"], abs(guess - truth), cells, caption))
        columns: tuple[str, ...] = ("label", "predicted", "distance")
        text = "Slides by the distance of the prediction from the label, the farthest first."
    else:
        labels, p = predicted.label_table()
        for line, truths, guesses in zip(predicted.lines, labels, p, strict=True):
            distance = np.nan_to_num(np.abs(truths - guesses), nan=-1.0)
            c = int(distance.argmax())
            if distance[c] > 0.5:
                name = predicted.label_columns[c]
                cells = (name, f"{truths[c]:g}", f"{guesses[c]:.3f}")
                caption = f"{name}: label {truths[c]:g}, predicted {guesses[c]:.2f}"
                errors.append(WorstError((line["slide_id"],), line["case_id"], float(distance[c]), cells, caption))
        columns = ("label column", "label", "probability of 1")
        text = "Slides with a wrong label, each with its worst one; the most confident errors first."
        if not errors:
            text = "No label is predicted wrongly."
    return sorted(errors, key=lambda error: (-error.error, error.slide_ids)), columns, text


def _misordered(predicted: PredictedSlides) -> tuple[list[WorstError], tuple[str, ...], str]:
    months, event, risk = (predicted.numbers(name) for name in ("survival_months", "event", "risk"))
    folds, cases = predicted.column("fold"), predicted.column("case_id")
    wrong, pairs = np.zeros(len(predicted)), np.zeros(len(predicted))
    rank = np.zeros(len(predicted))
    for fold in predicted.folds:
        rows = np.flatnonzero(folds == fold)
        m, e, r = months[rows], event[rows] == 1, risk[rows]
        other = cases[rows][:, None] != cases[rows][None]
        first = other & e[:, None] & ((m[:, None] < m[None]) | ((m[:, None] == m[None]) & ~e[None]))  # i before j
        against = first & (r[:, None] < r[None])
        pairs[rows] = first.sum(0) + first.sum(1)
        wrong[rows] = against.sum(0) + against.sum(1)
        rank[rows] = (r[:, None] > r[None]).mean(1)
    errors = []
    slides = predicted.column("slide_id")
    for name in np.unique(cases):
        rows = np.flatnonzero(cases == name)
        if not wrong[rows].sum():
            continue
        share = wrong[rows].sum() / pairs[rows].sum()
        happened = "event after" if event[rows[0]] == 1 else "no event in"
        above = rank[rows].mean()
        caption = f"{happened} {months[rows[0]]:.0f} months; risk above {above:.0%} of the fold"
        cells = (f"{months[rows[0]]:.1f}", "yes" if event[rows[0]] == 1 else "no", f"{100 * above:.0f}", f"{share:.0%}")
        errors.append(
            WorstError(
                tuple(np.unique(slides[rows]).tolist()),
                str(name),
                float(share * np.sqrt(pairs[rows].mean())),
                cells,
                caption,
            )
        )
    columns = ("months", "event", "risk percentile", "discordant pairs")
    text = (
        "Patients with the most discordant pairs within their fold, among the pairs whose order is known: early events "
        "with a low predicted risk, long follow-up with a high one."
    )
    if not errors:
        text = "Every pair of patients whose order is known is concordant."
    return sorted(errors, key=lambda error: (-error.error, error.slide_ids)), columns, text


def _thumbnail(error: WorstError, images: Mapping[str, Path]) -> ReportImage | None:
    """Thumbnail of the slide, read in pieces by the slide reader; None where it cannot be read."""
    from longvit.slides.reader import open_slide

    slide_id = next((name for name in error.slide_ids if name in images), None)
    if slide_id is None:
        return None
    path = images[slide_id]
    with suppress(InputError, OSError), open_slide(path) as slide:
        pixels = np.asarray(slide.canvas(_GALLERY_PX, "pad"))
        return thumbnail_of(pixels, slide_id, error.caption, _GALLERY_PX)
    return None
