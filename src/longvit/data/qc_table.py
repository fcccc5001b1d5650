"""qc.csv: the quality of slides, one row each, as `longvit doctor SLIDES` writes it; and slides that it excludes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from longvit.data.identity import canonical
from longvit.data.table import read_table
from longvit.errors import InputError
from longvit.files import write_csv
from longvit.slides.file_kind import slide_stem

QC_CSV, EXCLUDED_CSV = "qc.csv", "excluded.csv"
COLUMNS = (
    "slide_id", "path", "qc", "reason", "opens", "reader", "width_px", "height_px", "mpp", "mpp_source",
    "tissue_mm2", "tissue_share", "focus", "blurred_share", "fold_share", "bubble_share", "pen_share", "pen_colours",
    "n_bad_tiles", "seconds", "badness",
)  # fmt: skip
GRADES = ("pass", "warn", "fail")


@dataclass(frozen=True)
class SlideQuality:
    """Quality of one slide."""

    slide_id: str
    grade: str
    """`pass`, `warn` or `fail`."""
    reason: str
    """Findings in words; empty for a pass."""


class NamedSlide(Protocol):
    """Anything with a slide_id: a row of a cohort, a listed slide."""

    @property
    def slide_id(self) -> str: ...


S = TypeVar("S", bound=NamedSlide)


def read_qc(path: str | Path) -> dict[str, SlideQuality]:
    """Quality by slide_id. Only the columns slide_id and qc are needed, so a table may be edited or made by hand.

    Raises `InputError` for a missing column, a qc that is not pass, warn or fail, and a slide with two rows.
    """
    path = Path(path)
    columns, table = read_table(path)
    if missing := [name for name in ("slide_id", "qc") if name not in columns]:
        raise InputError(
            f"{path}: no column {missing[0]} (it has {', '.join(columns)}); longvit doctor SLIDES writes it"
        )
    found: dict[str, SlideQuality] = {}
    for line, cells in table:
        slide_id, grade = slide_stem(canonical(cells["slide_id"])), cells["qc"].lower()
        if grade not in GRADES:
            raise InputError(f"{path}, line {line}: qc {cells['qc']!r} is not one of {', '.join(GRADES)}")
        if slide_id in found:
            raise InputError(f"{path}, line {line}: slide {slide_id} has two rows; keep one")
        found[slide_id] = SlideQuality(slide_id, grade, cells.get("reason", ""))
    return found


def without_failed(
    slides: Iterable[S], qc: Mapping[str, SlideQuality]
) -> tuple[tuple[S, ...], tuple[SlideQuality, ...]]:
    """Slides that stay, and the quality of those that failed. A slide that `qc` does not have stays.

    >>> import longvit
    >>> from longvit.data.qc_table import SlideQuality, without_failed
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> failed = SlideQuality("CMU-1-Small-Region", "fail", "pen on 40 % of the tissue")
    >>> without_failed(slides, {failed.slide_id: failed})[1][0].reason
    'pen on 40 % of the tissue'
    """
    kept: list[S] = []
    excluded = []
    for slide in slides:
        quality = qc.get(slide.slide_id)
        if quality is not None and quality.grade == "fail":
            excluded.append(quality)
        else:
            kept.append(slide)
    return tuple(kept), tuple(excluded)


@dataclass(frozen=True)
class QualityCheck:
    """Quality table that a run was given, and the slides that it left out because of it."""

    qc: Mapping[str, SlideQuality]
    excluded: tuple[SlideQuality, ...]


def write_excluded(path: str | Path, excluded: Sequence[SlideQuality]) -> None:
    """Writes the columns slide_id, qc, reason, atomically; without excluded slides the file is removed."""
    if not excluded:
        Path(path).unlink(missing_ok=True)
        return
    write_csv(path, ["slide_id", "qc", "reason"], ([row.slide_id, row.grade, row.reason] for row in excluded))
