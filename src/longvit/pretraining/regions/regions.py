"""Regions of slides for pretraining: 100 random squares of each, 1,024 to 1,536 px a side at 20× (LongViT, section 2).

20× is 0.5 µm/px: regions are found by the resolution, never by the number of a level, which means another size in
every file. Position and size of region i of a slide are a function of (seed, slide_id, i), so no list of them is kept,
and a slide more or less in the cohort moves no region of another. A region is a rectangle of whole pixels of the level
that is the next finer than asked for; what is cut from it is resampled from those pixels, once.

The authors cut their regions beforehand into a folder of a million files. Here they are read from the slides.
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

from longvit.data.problems import Problem
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.progress import Progress

if TYPE_CHECKING:
    from longvit.slides.mpp import Mpp
    from longvit.slides.reader import Slide

# A level this much coarser than asked for still counts as that resolution: "0.5 µm/px" is 0.4961 to 0.5054 in files.
_TOLERANCE = 0.05
# Side of the thumbnail that tissue is looked for on: a pixel of it is some 50 µm of a large slide, a region 512.
_THUMBNAIL_PX = 512
# A slide is looked at for being blank where that costs no more than decoding this.
_LOOK_PX = 2**22
_THREADS = 4
# Lines about single slides before they are counted instead.
_LINES = 3


@dataclass(frozen=True)
class RegionSettings:
    """Which regions are taken of every slide."""

    region_mpp: float = 0.5
    """µm per pixel of the regions; 0.5 is 20× (LongViT, section 2)."""
    region_px: tuple[int, int] = (1024, 1536)
    """Smallest and largest side of the square regions at that resolution (LongViT, section 2)."""
    per_slide: int = 100
    """Regions of every slide (LongViT, section 2)."""
    fresh: bool = False
    """New regions in every epoch; the paper's recipe keeps them."""
    tissue: bool = False
    """Only regions whose centre lies on tissue; the paper's recipe takes any."""
    mpp: float | None = None
    """µm per pixel at level 0, instead of what the files say (a CSV's own column goes first)."""
    ignore_mpp: bool = False
    """Slides without a resolution are taken as if they were at the one of the regions."""
    reader: Literal["auto", "openslide", "tiff"] = "auto"
    """Which reader decodes the slides."""
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
    """A square at the wanted resolution, as a rectangle of whole pixels of one level of its slide."""

    source: RegionSource
    number: int
    side_px: int
    """Its side at the wanted resolution."""
    x_px: int
    """Its corner, width and height in pixels of `source.level`."""
    y_px: int
    width_px: int
    height_px: int

    @property
    def name(self) -> str:
        """`slide#17`."""
        return f"{self.source.slide_id}#{self.number}"


@dataclass(frozen=True)
class TissueCells:
    """A mask over what was scanned of a slide, a bit for each of rows × columns cells."""

    rows: int
    columns: int
    bits: bytes

    def cells(self) -> NDArray[np.int64]:
        """The numbers of the cells with tissue, row by row."""
        return np.flatnonzero(np.unpackbits(np.frombuffer(self.bits, np.uint8)))


@dataclass(frozen=True)
class RegionSource:
    """A slide that regions can be read of: which level, where on it."""

    slide_id: str
    path: Path
    identity: str
    """Hash of its content."""
    reader: Literal["auto", "openslide", "tiff"]
    """The one that was found to read it: opened again, it need not be compared again."""
    level: int
    origin_px: tuple[int, int]
    """Corner of what was scanned, in pixels of `level`."""
    size_px: tuple[int, int]
    """Width and height of it, in pixels of `level`."""
    scale: tuple[float, float]
    """Pixels of `level` per pixel of a region, along x and y; below 1 the slide is enlarged."""
    sides_px: tuple[int, int]
    """Smallest and largest side of its regions: those of the settings, or what fits."""
    tissue: TissueCells | None = None
    """Where the centres of its regions lie; None: anywhere."""

    def region(self, number: int, seed: int, draw: int = 0) -> Region:
        """Region `number`; with `draw` (an epoch) it is another one."""
        name = int.from_bytes(hashlib.sha256(self.slide_id.encode()).digest()[:8], "little")
        rng = np.random.default_rng([seed, name, number, draw])
        side_px = int(rng.integers(self.sides_px[0], self.sides_px[1] + 1))
        box_px = [
            min(max(1, round(side_px * scale)), size) for scale, size in zip(self.scale, self.size_px, strict=True)
        ]
        at = rng.random(2)  # along x and y, of the places that there are
        if self.tissue is None:
            corner = [int(a * (size - box + 1)) for a, size, box in zip(at, self.size_px, box_px, strict=True)]
        else:
            cells = self.tissue.cells()
            row, column = divmod(int(cells[rng.integers(len(cells))]), self.tissue.columns)
            shares = (column + at[0]) / self.tissue.columns, (row + at[1]) / self.tissue.rows
            centre = [share * size for share, size in zip(shares, self.size_px, strict=True)]
            corner = [
                min(max(0, round(c - box / 2)), size - box)
                for c, box, size in zip(centre, box_px, self.size_px, strict=True)
            ]
        x_px, y_px = (o + c for o, c in zip(self.origin_px, corner, strict=True))
        return Region(self, number, side_px, x_px, y_px, box_px[0], box_px[1])


@dataclass(frozen=True)
class Regions:
    """The regions of all usable slides; region `index` is number index % per_slide of slide index // per_slide."""

    settings: RegionSettings
    seed: int
    sources: tuple[RegionSource, ...]
    problems: tuple[Problem, ...] = ()
    """The slides that none are taken of."""
    notes: tuple[str, ...] = ()
    """What is worth knowing of those that are taken, of many slides in one line."""

    @property
    def samples(self) -> int:
        return len(self.sources) * self.settings.per_slide

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all that decides the regions: the slides' content, the settings, the seed."""
        slides = [[s.slide_id, s.identity, s.level, s.scale, s.sides_px] for s in self.sources]
        deciding = json.dumps([asdict(self.settings), self.seed, slides])
        return hashlib.sha256(deciding.encode()).hexdigest()[:16]

    def region(self, index: int, epoch: int = 0) -> Region:
        """Region `index` as `epoch` (0 …) has it."""
        slide, number = divmod(index, self.settings.per_slide)
        return self.sources[slide].region(number, self.seed, epoch if self.settings.fresh else 0)

    def instead(self, index: int, attempt: int) -> int:
        """Which region is read where `index` cannot be, nor those of earlier attempts (1 …); attempt 0 is itself.

        The same number of the next slide, since it is slides that are damaged; after all of them the next number.
        """
        return (index + attempt * self.settings.per_slide + attempt // len(self.sources)) % self.samples


def find_regions(
    slides: Sequence[ListedSlide], settings: RegionSettings, seed: int = 0, *, progress: bool = True
) -> Regions:
    """Opens every slide and finds where its regions may lie; with `settings.tissue` it looks at all of it, once.

    A slide that cannot be opened, has no resolution, is too small, or shows no tissue where tissue is asked for, is a
    `Problem`, and the others are taken. One that is smaller than the largest region gives smaller ones as long as half
    the smallest fits. Raises `InputError` where no slide is left, with the first problem.
    """
    # Without what else a run's settings hold: these travel to other processes and decide a fingerprint.
    settings = RegionSettings(**{field.name: getattr(settings, field.name) for field in fields(RegionSettings)})
    found: list[RegionSource] = []
    problems: list[Problem] = []
    said: list[tuple[Path, str]] = []
    noted: list[tuple[Path, str]] = []
    with (
        Progress("slides", len(slides), unit="slides", brief=True) if progress else nullcontext() as bar,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="slides") as pool,
    ):
        try:
            for listed, outcome in zip(slides, pool.map(lambda one: _monitored(one, settings), slides), strict=True):
                if isinstance(outcome, Problem):
                    problems.append(outcome)
                    said.append((listed.path, outcome.error))
                else:
                    found.append(outcome.source)
                    noted += [(listed.path, note) for note in outcome.notes]
                if bar is not None:
                    bar.advance(note=listed.slide_id)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        left_out, notes = counted(said), counted(noted)
        if bar is not None and found:
            for line in (*(f"left out: {line}" for line in left_out), *notes):
                bar.log(line)
    if not found:
        of_many = f" (none of {len(problems)} slides is usable)" if len(problems) > 1 else ""
        raise InputError(f"{left_out[0]}{of_many}" if left_out else "no slides given")
    return Regions(settings, seed, tuple(found), tuple(problems), notes)


def counted(lines: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """Lines about files, `path: text`; where more than a few say the same, one that counts them."""
    same: dict[str, list[str]] = {}
    for path, line in lines:
        same.setdefault(line.removeprefix(f"{path}: "), []).append(line)
    out: list[str] = []
    for text, full in same.items():
        first = full[0].removesuffix(f": {text}")
        out += full if len(full) <= _LINES else [f"{len(full):,} slides, the first {first}: {text}"]
    return tuple(out)


@dataclass(frozen=True)
class _Found:
    source: RegionSource
    notes: tuple[str, ...]


def _monitored(listed: ListedSlide, settings: RegionSettings) -> _Found | Problem:
    """One slide of the list. Decoders raise whatever they like; each error costs this slide."""
    from longvit.slides.reader import open_slide

    stage = "open"
    try:
        if listed.fault is not None:
            raise InputError(listed.fault)
        given = settings.mpp if listed.mpp is None else listed.mpp
        with open_slide(listed.path, mpp=given, reader=settings.reader) as slide:
            identity = slide.identity()
            stage = "region"
            mpp = _mpp(slide, settings)
            source, notes = _placed(listed, slide, identity, mpp, settings)
            stage = "read"
            return _on_tissue(source, notes, slide, mpp, settings)
    except InputError as error:
        return Problem(listed.slide_id, stage, str(error))
    except Exception as error:
        text = " ".join(str(error).split()) or "no further word"
        return Problem(listed.slide_id, stage, f"{listed.path}: {type(error).__name__}: {text}")


def _mpp(slide: Slide, settings: RegionSettings) -> Mpp:
    from longvit.slides.mpp import Mpp

    if slide.mpp is not None:
        return slide.mpp
    if settings.ignore_mpp:
        return Mpp(settings.region_mpp, settings.region_mpp, "ignored")
    places = "; ".join(map(str, slide.mpp_search.looked_at)) or "the format has no place for it"
    raise InputError(
        f"{slide.path}: no resolution in the file (looked at {places}); pass --mpp 0.25 (µm per pixel of the "
        f"largest level), or add a column mpp to the CSV, or pass --ignore-mpp to take pixels as they are"
    )


def _placed(
    listed: ListedSlide, slide: Slide, identity: str, mpp: Mpp, settings: RegionSettings
) -> tuple[RegionSource, tuple[str, ...]]:
    """The level, and how large the regions are."""
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


def _on_tissue(
    source: RegionSource, notes: tuple[str, ...], slide: Slide, mpp: Mpp, settings: RegionSettings
) -> _Found:
    """With its mask where asked for; a blank slide is an error then, else a note where it can be told cheaply."""
    if settings.tissue:
        mask = _tissue(slide.canvas(_THUMBNAIL_PX, threads=1).pixels, slide, mpp)
        if not mask.any():
            raise InputError(f"{slide.path}: no tissue seen on it; leave it out, or take regions anywhere")
        cells = TissueCells(mask.shape[0], mask.shape[1], np.packbits(mask).tobytes())
        return _Found(replace(source, tissue=cells), notes)
    level, bounds = slide.levels[-1], slide.bounds
    if slide.reader != "image" and level.size_px[0] * level.size_px[1] <= _LOOK_PX:
        size_px = (max(1, int(side / level.downsample)) for side in (bounds.width, bounds.height))
        pixels = slide.read_region(int(bounds.x), int(bounds.y), level.index, *size_px)
        if not _tissue(pixels, slide, mpp).any():
            notes = (*notes, f"{slide.path}: no tissue seen on it, so its regions are empty")
    return _Found(source, notes)


def _tissue(pixels: NDArray[np.uint8], slide: Slide, mpp: Mpp) -> NDArray[np.bool_]:
    """A mask over what was scanned. On a field of a few cells every piece counts."""
    from longvit.slides.tissue import TissueSettings, find_tissue

    bounds, settings = slide.bounds, TissueSettings()
    least_um2 = min(settings.min_piece_um2, 0.01 * bounds.width * bounds.height * mpp.x * mpp.y)
    return find_tissue(pixels, bounds, mpp, slide.background, replace(settings, min_piece_um2=least_um2)).mask
