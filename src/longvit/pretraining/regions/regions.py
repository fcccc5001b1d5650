"""Regions of slides for pretraining: 100 random squares of each, 1,024 to 1,536 px a side at 20× (LongViT, section 2).

20× is 0.5 µm/px. Regions are defined by resolution, never by the number of a level, which means another size in every
file. Position and size of region i of a slide are a function of (seed, slide_id, i). So no list of regions is stored,
and adding or removing a slide moves no region of another slide. A region is a rectangle of whole pixels of the coarsest
level that is fine enough; crops are resampled from those pixels, once.

The authors cut their regions beforehand into a folder of a million files. Here regions are read from the slides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from longvit.annotations.area_file import check_annotations, find_area_file
from longvit.annotations.settings import AnnotationSettings
from longvit.data.problems import Problem
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError, describe_error
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.annotations.slide_area import SlideArea
    from longvit.slides.mpp import Mpp
    from longvit.slides.reader import Slide

# A level this much coarser than requested still counts as that resolution: "0.5 µm/px" is 0.4961 to 0.5054 in files.
_TOLERANCE = 0.05
# Side of the thumbnail for tissue detection: one pixel of it is some 50 µm of a large slide, a region 512.
_THUMBNAIL_PX = 512
# Cells along each side of the extent of an annotated area.
_CELLS = 512
# A slide is checked for being blank where that costs no more than decoding this many pixels.
_BLANK_CHECK_PX = 2**22
_THREADS = 4
# Lines about single slides; more of the same kind become one line with their number.
_MAX_LINES = 3


@dataclass(frozen=True)
class RegionSettings:
    """Settings of the regions of every slide."""

    region_mpp: float = 0.5
    """µm per pixel of the regions; 0.5 is 20× (LongViT, section 2)."""
    region_px: tuple[int, int] = (1024, 1536)
    """Smallest and largest side of the square regions at that resolution (LongViT, section 2)."""
    per_slide: int = 100
    """Regions per slide (LongViT, section 2)."""
    fresh: bool = False
    """New regions in every epoch; the paper's recipe keeps the same ones."""
    tissue: bool = False
    """Only regions whose centre is on tissue; the paper's recipe takes any."""
    mpp: float | None = None
    """µm per pixel at level 0, instead of what the files say (a CSV's column takes precedence)."""
    ignore_mpp: bool = False
    """Treat slides without a resolution as if they had that of the regions."""
    reader: Literal["auto", "openslide", "tiff"] = "auto"
    """Reader that decodes the slides."""
    max_bad_tiles: int = 0
    """A region with more unreadable tiles is replaced by another one."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.region_mpp) and self.region_mpp > 0):
            raise InputError(
                f"region_mpp {self.region_mpp}: a resolution is a positive number of µm per pixel, 0.5 for 20×"
            )
        low, high = self.region_px
        if not 1 <= low <= high:
            raise InputError(f"region_px {low} {high}: the smallest side, then the largest, at least 1 px")
        if self.per_slide < 1:
            raise InputError(f"per_slide {self.per_slide}: at least 1 region of every slide")
        if self.max_bad_tiles < 0:
            raise InputError(f"max_bad_tiles {self.max_bad_tiles}: at least 0")


@dataclass(frozen=True)
class Region:
    """A square at the requested resolution, as a rectangle of whole pixels of one level of its slide."""

    source: RegionSource
    number: int
    side_px: int
    """Side at the requested resolution."""
    x_px: int
    """Corner, width and height in pixels of `source.level`."""
    y_px: int
    width_px: int
    height_px: int

    @property
    def name(self) -> str:
        """`slide#17`."""
        return f"{self.source.slide_id}#{self.number}"


@dataclass(frozen=True)
class CentreCells:
    """Cells of a slide in which centres of regions are drawn, one bit for each of rows × columns cells."""

    rows: int
    columns: int
    bits: bytes
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Area of the cells: left, top, width, height, as fractions of the scanned area."""

    def cells(self) -> NDArray[np.int64]:
        """Numbers of the cells that are used, row by row."""
        return np.flatnonzero(np.unpackbits(np.frombuffer(self.bits, np.uint8)))


@dataclass(frozen=True)
class RegionSource:
    """A slide from which regions are read: level, area, scale."""

    slide_id: str
    path: Path
    identity: str
    """Content hash of the slide."""
    reader: Literal["auto", "openslide", "tiff"]
    """Reader that reads the slide, so that readers need not be compared when it is opened again."""
    level: int
    origin_px: tuple[int, int]
    """Corner of the scanned area, in pixels of `level`."""
    size_px: tuple[int, int]
    """Width and height of the scanned area, in pixels of `level`."""
    scale: tuple[float, float]
    """Pixels of `level` per pixel of a region, along x and y; below 1 the slide is enlarged."""
    sides_px: tuple[int, int]
    """Smallest and largest side of its regions: those of the settings, or smaller ones that fit."""
    tissue: CentreCells | None = None
    """Cells in which region centres are drawn; None: anywhere."""
    annotations: str = ""
    """Everything that the annotated area depends on (`AreaFile.key`, as JSON); "": the whole slide."""

    def region(self, number: int, seed: int, draw: int = 0) -> Region:
        """Region `number`; another `draw` (an epoch) gives another region."""
        name = int.from_bytes(hashlib.sha256(self.slide_id.encode()).digest()[:8], "little")
        rng = np.random.default_rng([seed, name, number, draw])
        side_px = int(rng.integers(self.sides_px[0], self.sides_px[1] + 1))
        box_px = [
            min(max(1, round(side_px * scale)), size) for scale, size in zip(self.scale, self.size_px, strict=True)
        ]
        offset = rng.random(2)  # along x and y, 0 … 1
        if self.tissue is None:
            corner = [int(o * (size - box + 1)) for o, size, box in zip(offset, self.size_px, box_px, strict=True)]
        else:
            cells = self.tissue.cells()
            row, column = divmod(int(cells[rng.integers(len(cells))]), self.tissue.columns)
            left, top, width, height = self.tissue.box
            relative = (
                left + width * ((column + offset[0]) / self.tissue.columns),
                top + height * ((row + offset[1]) / self.tissue.rows),
            )
            centre = [r * size for r, size in zip(relative, self.size_px, strict=True)]
            corner = [
                min(max(0, round(c - box / 2)), size - box)
                for c, box, size in zip(centre, box_px, self.size_px, strict=True)
            ]
        x_px, y_px = (origin + c for origin, c in zip(self.origin_px, corner, strict=True))
        return Region(self, number, side_px, x_px, y_px, box_px[0], box_px[1])


@dataclass(frozen=True)
class Regions:
    """Regions of all usable slides; region `index` is number index % per_slide of slide index // per_slide."""

    settings: RegionSettings
    seed: int
    sources: tuple[RegionSource, ...]
    problems: tuple[Problem, ...] = ()
    """Slides without regions."""
    notes: tuple[str, ...] = ()
    """Remarks about slides that are used; one line where many have the same."""

    @property
    def samples(self) -> int:
        return len(self.sources) * self.settings.per_slide

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the regions: the slides' content, the settings, the seed."""
        slides = [[s.slide_id, s.identity, s.level, s.scale, s.sides_px] for s in self.sources]
        annotated = [source.annotations for source in self.sources if source.annotations]
        key = json.dumps([asdict(self.settings), self.seed, slides, *([annotated] if annotated else [])])
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def region(self, index: int, epoch: int = 0) -> Region:
        """Region `index` in `epoch` (0 …)."""
        slide, number = divmod(index, self.settings.per_slide)
        return self.sources[slide].region(number, self.seed, epoch if self.settings.fresh else 0)

    def instead(self, index: int, attempt: int) -> int:
        """Region that replaces `index` after that many unreadable regions; attempt 0 is `index` itself.

        It has the same number on the next slide, since damage affects whole slides. After all slides it has the next
        number.
        """
        return (index + attempt * self.settings.per_slide + attempt // len(self.sources)) % self.samples


def find_regions(
    slides: Sequence[ListedSlide],
    settings: RegionSettings,
    seed: int = 0,
    *,
    annotations: AnnotationSettings | None = None,
    progress: bool = True,
) -> Regions:
    """Opens every slide and determines the area of its regions; with `settings.tissue` each slide is read once.

    With `annotations`, the centre of a region is in a cell whose centre is in the annotated area. There are 512 × 512
    cells over its extent. A region at the border of the slide is moved inwards.

    A slide is left out with a `Problem` where it cannot be opened, has no resolution, is too small, or shows no tissue
    where tissue is required. A slide smaller than the largest region gives smaller regions, as long as half the
    smallest fits. Raises `InputError` with the first problem where no slide is left.
    """
    # Without the further fields of a run's settings: these are sent to other processes and enter a fingerprint.
    settings = RegionSettings(**{field.name: getattr(settings, field.name) for field in fields(RegionSettings)})
    annotations = annotations or AnnotationSettings()
    check_annotations(annotations, [slide.slide_id for slide in slides])
    sources: list[RegionSource] = []
    problems: list[Problem] = []
    problem_lines: list[tuple[Path, str]] = []
    note_lines: list[tuple[Path, str]] = []
    with (
        Progress("slides", len(slides), unit="slides", brief=True) if progress else nullcontext() as bar,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="slides") as pool,
    ):
        try:
            outcomes = pool.map(lambda listed: _inspect(listed, settings, annotations), slides)
            for listed, outcome in zip(slides, outcomes, strict=True):
                if isinstance(outcome, Problem):
                    problems.append(outcome)
                    problem_lines.append((listed.path, outcome.error))
                else:
                    sources.append(outcome.source)
                    note_lines += [(listed.path, note) for note in outcome.notes]
                if bar is not None:
                    bar.advance(note=listed.slide_id)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        left_out, notes = counted(problem_lines), counted(note_lines)
        if bar is not None and sources:
            for line in (*(f"left out: {line}" for line in left_out), *notes):
                bar.log(line)
    if not sources:
        count = f" (none of {len(problems)} slides is usable)" if len(problems) > 1 else ""
        raise InputError(f"{left_out[0]}{count}" if left_out else "no slides given")
    return Regions(settings, seed, tuple(sources), tuple(problems), notes)


def counted(lines: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """Lines about files, `path: text`; more than a few with the same text become one line with their number."""
    by_text: dict[str, list[str]] = {}
    for path, line in lines:
        by_text.setdefault(line.removeprefix(f"{path}: "), []).append(line)
    result: list[str] = []
    for text, same in by_text.items():
        first = same[0].removesuffix(f": {text}")
        result += same if len(same) <= _MAX_LINES else [f"{len(same):,} slides, the first {first}: {text}"]
    return tuple(result)


@dataclass(frozen=True)
class _Inspected:
    """A usable slide, with remarks."""

    source: RegionSource
    notes: tuple[str, ...]


def _inspect(listed: ListedSlide, settings: RegionSettings, annotations: AnnotationSettings) -> _Inspected | Problem:
    """Opens a slide of the list. Any error, of whatever type a decoder raises, leaves this slide out."""
    from longvit.slides.reader import open_slide

    stage = "open"
    try:
        if listed.fault is not None:
            raise InputError(listed.fault)
        area_file = find_area_file(annotations, listed.slide_id)
        known_mpp = settings.mpp if listed.mpp is None else listed.mpp
        with open_slide(listed.path, mpp=known_mpp, reader=settings.reader) as slide:
            identity = slide.identity()
            stage = "region"
            mpp = _mpp(slide, settings)
            source, notes = _place(listed, slide, identity, mpp, settings)
            stage = "read"
            area = None if area_file is None else area_file.read(slide.bounds)
            inspected = _check_tissue(source, notes, slide, mpp, settings)
            if area_file is None or area is None:
                return inspected
            cells = _annotated_cells(inspected.source.tissue, area, slide)
            source = replace(inspected.source, tissue=cells, annotations=json.dumps(area_file.key()))
            return replace(inspected, source=source)
    except InputError as error:
        return Problem(listed.slide_id, stage, str(error))
    except Exception as error:
        return Problem(listed.slide_id, stage, f"{listed.path}: {describe_error(error)}")


def _mpp(slide: Slide, settings: RegionSettings) -> Mpp:
    from longvit.slides.mpp import Mpp

    if slide.mpp is not None:
        return slide.mpp
    if settings.ignore_mpp:
        return Mpp(settings.region_mpp, settings.region_mpp, "ignored")
    places = "; ".join(map(str, slide.mpp_search.candidates)) or "the format has no place for it"
    raise InputError(
        f"{slide.path}: no resolution in the file (searched: {places}); pass --mpp 0.25 (µm per pixel of the "
        f"largest level), or add a column mpp to the CSV, or pass --ignore-mpp to take pixels as they are"
    )


def _place(
    listed: ListedSlide, slide: Slide, identity: str, mpp: Mpp, settings: RegionSettings
) -> tuple[RegionSource, tuple[str, ...]]:
    """Chooses the level and the sizes of the regions; returns remarks too."""
    fine = [level for level in slide.levels if level.downsample * mpp.mean <= settings.region_mpp * (1 + _TOLERANCE)]
    level = fine[-1] if fine else slide.levels[0]
    down = [whole / part for whole, part in zip(slide.size_px, level.size_px, strict=True)]
    scale = settings.region_mpp / (mpp.x * down[0]), settings.region_mpp / (mpp.y * down[1])
    bounds = slide.bounds
    left, top = math.ceil(bounds.x / down[0]), math.ceil(bounds.y / down[1])
    size_px = math.floor(bounds.right / down[0]) - left, math.floor(bounds.bottom / down[1]) - top
    width_px, height_px = (int(size / s + 1e-6) for size, s in zip(size_px, scale, strict=True))
    short_px, (low_px, high_px) = min(width_px, height_px), settings.region_px
    if 2 * short_px < low_px or short_px < 1:
        raise InputError(
            f"{slide.path}: {width_px} × {height_px} px at {settings.region_mpp:g} µm/px, too small for regions of "
            f"{low_px} to {high_px} px (half of the smallest must fit); pass a smaller --region-px"
        )
    notes = []
    if short_px < low_px:
        notes.append(f"{slide.path}: {width_px} × {height_px} px, smaller than a region: regions of {short_px} px")
    if not fine:
        notes.append(
            f"{slide.path}: {mpp.mean:.4g} µm/px, coarser than the {settings.region_mpp:g} of the regions: it is "
            f"enlarged {mpp.mean / settings.region_mpp:.3g} times"
        )
    sides_px = min(low_px, short_px), min(high_px, short_px)
    readers: dict[str, Literal["auto", "openslide", "tiff"]] = {"openslide": "openslide", "tiff": "tiff"}
    reader = readers.get(slide.reader, "auto")
    source = RegionSource(
        listed.slide_id, listed.path, identity, reader, level.index, (left, top), size_px, scale, sides_px
    )
    return source, tuple(notes)


def _check_tissue(
    source: RegionSource, notes: tuple[str, ...], slide: Slide, mpp: Mpp, settings: RegionSettings
) -> _Inspected:
    """Adds the tissue mask where the settings require tissue, and checks for a blank slide.

    A blank slide is an error where tissue is required, else a remark, and only where the check is cheap.
    """
    if settings.tissue:
        mask = _tissue(slide.canvas(_THUMBNAIL_PX, threads=1).pixels, slide, mpp)
        if not mask.any():
            raise InputError(f"{slide.path}: no tissue found; leave the slide out, or do not require tissue")
        return _Inspected(replace(source, tissue=_cells(mask)), notes)
    level, bounds = slide.levels[-1], slide.bounds
    if slide.reader != "image" and level.size_px[0] * level.size_px[1] <= _BLANK_CHECK_PX:
        size_px = (max(1, int(side / level.downsample)) for side in (bounds.width, bounds.height))
        pixels = slide.read_region(int(bounds.x), int(bounds.y), level.index, *size_px)
        if not _tissue(pixels, slide, mpp).any():
            notes = (*notes, f"{slide.path}: no tissue found, so its regions are empty")
    return _Inspected(source, notes)


def _cells(mask: NDArray[np.bool_], box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> CentreCells:
    return CentreCells(mask.shape[0], mask.shape[1], np.packbits(mask).tobytes(), box)


def _annotated_cells(tissue: CentreCells | None, area: SlideArea, slide: Slide) -> CentreCells:
    """Cells over the extent of the annotated area whose centres are in it, and on tissue where that is required."""
    bounds, n = slide.bounds, _CELLS
    middles = (np.arange(n) + 0.5) / n
    left, top, right, bottom = area.extent(bounds)
    width, height = right - left, bottom - top
    x, y = left + middles * width, top + middles * height
    inside = area.inside(x, y)
    u, v = (x - bounds.x) / bounds.width, (y - bounds.y) / bounds.height
    if tissue is not None:
        mask = np.zeros(tissue.rows * tissue.columns, bool)
        mask[tissue.cells()] = True
        row = (v * tissue.rows).astype(int).clip(0, tissue.rows - 1)
        column = (u * tissue.columns).astype(int).clip(0, tissue.columns - 1)
        inside &= mask.reshape(tissue.rows, tissue.columns)[np.ix_(row, column)]
    if not inside.any():
        on_tissue = " with tissue" if tissue is not None else ""
        raise InputError(f"{slide.path}: its annotations have no area{on_tissue} in which a region could be centred")
    return _cells(
        inside,
        (
            (left - bounds.x) / bounds.width,
            (top - bounds.y) / bounds.height,
            width / bounds.width,
            height / bounds.height,
        ),
    )


def _tissue(pixels: NDArray[np.uint8], slide: Slide, mpp: Mpp) -> NDArray[np.bool_]:
    """Tissue mask over the scanned area. On a field of a few cells every piece counts."""
    from longvit.slides.tissue import TissueSettings, find_tissue

    bounds, settings = slide.bounds, TissueSettings()
    least_um2 = min(settings.min_piece_um2, 0.01 * bounds.width * bounds.height * mpp.x * mpp.y)
    return find_tissue(pixels, bounds, mpp, slide.background, replace(settings, min_piece_um2=least_um2)).mask
