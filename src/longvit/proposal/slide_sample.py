"""Sample of a cohort's slides: a few, spread over the table, opened for their size and resolution."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from longvit.data.cohort import Cohort, SlideRow
from longvit.errors import InputError, describe_error
from longvit.progress import Progress
from longvit.slides.reader import open_slide

_MAX_READ_PX = 4e9
"""Largest slide that is read to time it: about 40 s on two processor cores."""


@dataclass(frozen=True)
class OpenedSlide:
    """A slide of the sample."""

    slide_id: str
    size_px: tuple[int, int]
    """Width and height of the scanned part, at level 0."""
    mpp: float | None
    """µm per pixel at level 0; None where neither the file nor the table states it."""
    mpp_source: str | None

    @property
    def longer_px(self) -> int:
        """Longer side of the scanned part, in px."""
        return max(self.size_px)

    @property
    def pixels(self) -> int:
        """Pixels of the scanned part."""
        return self.size_px[0] * self.size_px[1]


@dataclass(frozen=True)
class SlideSample:
    """A few slides of a cohort."""

    opened: tuple[OpenedSlide, ...]
    unreadable: dict[str, str]
    """slide_id → reason."""
    read_s: float | None = None
    """Seconds to read a slide of mean size as a canvas, measured on one; None: not measured."""

    @property
    def longer_px(self) -> float:
        """Median of the slides' longer sides, in px."""
        return median(slide.longer_px for slide in self.opened)

    @property
    def longer_um(self) -> float | None:
        """Median of the longer sides in µm; None where no slide of the sample has a resolution."""
        sides = [slide.longer_px * slide.mpp for slide in self.opened if slide.mpp is not None]
        return median(sides) if sides else None


def spread(rows: Sequence[SlideRow], count: int) -> list[SlideRow]:
    """`count` rows at equal distances, the first and the last among them; all where there are fewer."""
    if count >= len(rows):
        return list(rows)
    if count == 1:
        return [rows[0]]
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def open_sample(cohort: Cohort, count: int) -> SlideSample:
    """Opens `count` slides that have a file. `InputError`: none of them can be opened."""
    rows = spread([row for row in cohort.rows if os.path.exists(row.path)], count)  # noqa: PTH110
    if not rows:
        raise InputError(f"{cohort.source}: no slide of the table has a file; give --slides-dir, or a column path")
    opened: list[OpenedSlide] = []
    unreadable: dict[str, str] = {}
    with Progress("opening slides", len(rows), unit="slides", brief=True) as progress:
        for row in rows:
            try:
                opened.append(_open(row))
            except Exception as error:  # a reader's errors are of any type; the others are opened
                unreadable[row.slide_id] = describe_error(error, 300)
            progress.advance()
    if not opened:
        slide_id, reason = next(iter(unreadable.items()))
        raise InputError(f"{cohort.source}: none of {len(rows)} slides can be opened; {slide_id}: {reason}")
    return SlideSample(tuple(opened), unreadable)


def _open(row: SlideRow) -> OpenedSlide:
    with open_slide(row.path, mpp=row.mpp) as slide:
        size_px = (round(slide.bounds.width), round(slide.bounds.height))
        mpp = slide.mpp
        if mpp is None:
            return OpenedSlide(row.slide_id, size_px, None, None)
        return OpenedSlide(row.slide_id, size_px, mpp.mean, mpp.source)


def time_reading(cohort: Cohort, sample: SlideSample, side_px: int) -> SlideSample:
    """The sample with the seconds that a slide of mean size takes, measured on the smallest that can be read.

    A slide whose pixels cannot be read moves to `unreadable`. `InputError`: no slide can be read.
    """
    row_of = {row.slide_id: row for row in cohort.rows}
    opened, unreadable = list(sample.opened), dict(sample.unreadable)
    for slide in sorted(sample.opened, key=lambda slide: slide.pixels):
        if slide.pixels > _MAX_READ_PX:
            break
        row, start = row_of[slide.slide_id], perf_counter()
        try:
            with open_slide(row.path, mpp=row.mpp) as file:
                file.canvas(side_px, progress=False)
        except Exception as error:  # a reader's errors are of any type; the next slide is read
            unreadable[slide.slide_id] = describe_error(error, 300)
            opened.remove(slide)
            if not opened:
                raise InputError(
                    f"{cohort.source}: no slide of the sample can be read; {slide.slide_id}: "
                    f"{unreadable[slide.slide_id]}"
                ) from error
            continue
        seconds = perf_counter() - start
        mean_px = sum(slide.pixels for slide in opened) / len(opened)
        return SlideSample(tuple(opened), unreadable, seconds * mean_px / slide.pixels)
    return SlideSample(tuple(opened), unreadable)
