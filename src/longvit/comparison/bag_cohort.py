"""Bag cohort: the slides or patients of a cohort that have features and omics, and their bags.

A bag is a slide, or where the task has one label per patient (survival) a patient: the tiles of all slides
concatenated, under the patient's first row. Every bag is read once before training, so that damaged files become rows
of problems.csv instead of failed trials. Bags stay in memory up to `memory_mb`. All systems get the same bags: a slide
without tiles (or without omics, where a table is given) is left out for all of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from longvit.comparison.omics import OmicTable
from longvit.comparison.system_spec import OF_SIGNATURES, SystemSpec
from longvit.data.bags import BagFiles, FeatureBag, find_bags, join_bags, read_bag
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.identity import first_places, refuse_other_spelling
from longvit.data.problems import Problem
from longvit.data.tile_pixels import SlideTiles, TilePixelSource
from longvit.errors import InputError, one_line
from longvit.progress import Progress
from longvit.tasks.task import task_class

if TYPE_CHECKING:
    from longvit.baselines.bag import Bag


@dataclass(frozen=True)
class Tiles:
    """Tiles of a bag."""

    features: np.ndarray
    """(N, D) float32."""
    coords: np.ndarray | None
    """(N, 2) int64, in level-0 px of the slide."""
    slide_tiles: tuple[int, ...]
    """Number of tiles of each slide."""
    slides: tuple[str, ...]
    """slide_id of each slide."""
    sides_level0_px: tuple[float | None, ...]
    """Side of a tile of each slide in level-0 px, where its file states it."""

    @property
    def tile_level0_px(self) -> float | None:
        """Side of a tile of the first slide."""
        return self.sides_level0_px[0]


@dataclass(frozen=True)
class BagCohort:
    """Cohort of bags, the same for all systems."""

    cohort: Cohort
    """All usable rows; `unit_rows` selects one per bag."""
    per_patient: bool
    slides_of: Mapping[str, tuple[str, ...]]
    """slide_id of a bag's row -> slides of the bag."""
    paths: Mapping[str, Path]
    """slide_id -> feature file; empty without features."""
    tiles_of: Mapping[str, int]
    """slide_id -> number of tiles in its file."""
    omics: OmicTable | None
    width: int
    """D; 0 without features."""
    tile_level0_px: float | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    kept: Mapping[str, Tiles] = field(repr=False)
    """Bags kept in memory, by slide_id of the row."""

    def unit_rows(self, rows: Sequence[SlideRow]) -> tuple[SlideRow, ...]:
        """Rows that represent a bag."""
        return tuple(row for row in rows if row.slide_id in self.slides_of)

    def tile_count(self, rows: Sequence[SlideRow]) -> int:
        """Total number of tiles of the bags."""
        return sum(self.tiles_of.get(slide, 0) for row in rows for slide in self.slides_of[row.slide_id])

    def tiles(self, row: SlideRow) -> Tiles:
        """Tiles of a bag, from memory or from its files."""
        if (tiles := self.kept.get(row.slide_id)) is not None:
            return tiles
        slides = self.slides_of[row.slide_id]
        return _tiles([self._read(slide) for slide in slides], slides)

    def _read(self, slide: str) -> FeatureBag:
        return read_bag(self.paths[slide], mpp=self._mpp_of[slide])

    @cached_property
    def _mpp_of(self) -> dict[str, float | None]:
        return {row.slide_id: row.mpp for row in self.cohort.rows}

    def bag(self, row: SlideRow, spec: SystemSpec) -> Bag:
        """Bag of a row with the inputs of a system; on the CPU."""
        import torch

        from longvit.baselines.bag import Bag

        features, coords, pixels = torch.zeros(0, 0), None, None
        slide_tiles: tuple[int, ...] = ()
        if spec.reads_tiles:
            tiles = self.tiles(row)
            features, slide_tiles = torch.from_numpy(tiles.features), tiles.slide_tiles
            coords = None if tiles.coords is None else torch.from_numpy(tiles.coords)
            pixels = self._pixel_source(tiles, spec) if spec.reads_pixels else None
        omics: torch.Tensor | tuple[torch.Tensor, ...] | None = None
        if spec.reads_omics and self.omics is not None:
            if spec.system in OF_SIGNATURES:
                omics = tuple(torch.from_numpy(v) for v in self.omics.by_signature(row.case_id))
            else:
                omics = torch.from_numpy(self.omics.vector(row.case_id))
        name = f"patient {row.case_id}" if self.per_patient else f"slide {row.slide_id}"
        return Bag(features, coords, omics, slide_tiles=slide_tiles, pixels=pixels, name=name)

    def _pixel_source(self, tiles: Tiles, spec: SystemSpec) -> TilePixelSource:
        """Source of the pixels of a bag; `InputError` for a slide without file, coordinates or size of its tiles."""
        path_of = {row.slide_id: row.path for row in self.cohort.rows}
        parts, first = [], 0
        for slide, n, side in zip(tiles.slides, tiles.slide_tiles, tiles.sides_level0_px, strict=True):
            if (path := path_of[slide]) is None:
                raise InputError(f"slide {slide}: no file of it, which {spec.name} reads; give --slides-dir")
            if tiles.coords is None or side is None:
                raise InputError(
                    f"{self.paths[slide]}: no coordinates or no size of the tiles, which {spec.name} needs; extract "
                    f"this slide with `longvit features`"
                )
            parts.append(SlideTiles(path, tiles.coords[first : first + n], side))
            first += n
        return TilePixelSource(tuple(parts))

    def omic_shape(self, spec: SystemSpec) -> int | tuple[int, ...] | None:
        """Number of omic values of a system, or of each signature; `InputError` where omics are missing."""
        if not spec.reads_omics:
            return None
        if self.omics is None:
            raise InputError(f"{spec.name}: needs omics; give --omics TABLE")
        if spec.system not in OF_SIGNATURES:
            return len(self.omics.columns)
        if not self.omics.signatures:
            raise InputError(f"{spec.name}: needs signatures; give --signatures TABLE, a column of genes for each")
        return tuple(len(places) for places in self.omics.signatures.values())

    def keeping(self, memory_mb: int) -> BagCohort:
        """Copy with as many bags in memory as `memory_mb` allows."""
        kept: dict[str, Tiles] = {}
        free_bytes = memory_mb * 2**20
        for slide, slides in self.slides_of.items():
            if not self.paths or free_bytes <= 0:
                break
            try:
                tiles = _tiles([self._read(s) for s in slides], slides)
            except InputError:  # it was readable before; the trial that needs it reports the error
                continue
            free_bytes -= tiles.features.nbytes
            if free_bytes >= 0:
                kept[slide] = tiles
        return replace(self, kept=kept)

    def digest(self) -> str:
        """Hash of the feature files (names and sizes) and of the omics."""
        try:
            lines = [f"{slide}\t{path.name}\t{path.stat().st_size}" for slide, path in sorted(self.paths.items())]
        except OSError as error:
            raise InputError(f"{error.filename}: removed since the comparison started: {error.strerror}") from error
        if self.omics is not None:
            lines.append(",".join(self.omics.columns))
            lines += [hashlib.sha256(v.tobytes()).hexdigest() for _, v in sorted(self.omics.of_case.items())]
            lines += [f"{name}: {places.tolist()}" for name, places in self.omics.signatures.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def slides_digest(self) -> str:
        """Hash of the slide files: names and sizes."""
        lines = [
            f"{row.slide_id}\t{row.path.name}\t{row.path.stat().st_size}"
            for row in sorted(self.cohort.rows, key=lambda row: row.slide_id)
            if row.path is not None and row.path.exists()
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def make_bag_cohort(
    cohort: Cohort,
    task: str,
    features: str | Path | None,
    omics: OmicTable | None,
    memory_mb: int,
    *,
    bags: Literal["slide", "patient"] | None = None,
    left_out: Callable[[Sequence[Problem]], object] = lambda _: None,
) -> BagCohort:
    """Reads the features and omics of a cohort. `bags`: None for those of the task (see the top). `left_out` receives
    the slides that are left out, also on error.

    Raises `InputError`: neither features nor omics, no slide with all inputs, a patient whose spelling differs from the
    omics table, features of different widths without a dominant one.
    """
    if features is None and omics is None:
        raise InputError("nothing to compare on: give --features FOLDER, or --omics TABLE")
    problems: list[Problem] = []
    try:
        per_patient = task_class(task).per_patient if bags is None else bags == "patient"
        return _make_bag_cohort(cohort, per_patient, features, omics, memory_mb, problems)
    finally:
        left_out(problems)


def _make_bag_cohort(
    cohort: Cohort,
    per_patient: bool,
    features: str | Path | None,
    omics: OmicTable | None,
    memory_mb: int,
    problems: list[Problem],
) -> BagCohort:
    rows = list(cohort.rows)
    if omics is not None:
        patients = first_places((row.case_id, row.where()) for row in rows)
        measured = {case: f"line {omics.line_of[case]}" if case in omics.line_of else "" for case in omics.of_case}
        refuse_other_spelling("patient", patients, cohort.source, "patient", measured, omics.source)
        without = [row for row in rows if row.case_id not in omics.of_case]
        problems += [
            Problem(row.slide_id, "open", f"{omics.source}: no row of patient {row.case_id}") for row in without
        ]
        rows = [row for row in rows if row.case_id in omics.of_case]
    paths: Mapping[str, Path] = {}
    if features is not None:
        files = find_bags(features, [row.slide_id for row in rows])
        problems += [Problem(slide, "open", f"{features}: {_no_features(slide, files)}") for slide in files.missing]
        paths = files.paths
        rows = [row for row in rows if row.slide_id in paths]
    read = _Read(tuple(rows), {}, {}, None)
    if features is not None:
        read = _read_all(rows, paths, memory_mb, problems)
    if not read.rows:
        first = f"; the first of {len(problems)} problems: {problems[0].error}" if problems else ""
        raise InputError(f"{cohort.source}: no slide has all inputs{first}")
    slides_of = _units(read.rows, per_patient)
    notes = () if omics is None else omics.notes
    if problems:
        notes += (f"{len(problems)} of {len(cohort.rows)} slides are left out for all systems, see problems.csv",)
    return BagCohort(
        replace(cohort, rows=read.rows),
        per_patient,
        slides_of,
        {row.slide_id: paths[row.slide_id] for row in read.rows} if paths else {},
        read.tiles_of,
        omics,
        0 if read.first is None else read.first.features.shape[1],
        None if read.first is None else read.first.tile_level0_px,
        tuple(problems),
        notes,
        {
            slide: _tiles([read.kept[s] for s in slides], slides)
            for slide, slides in slides_of.items()
            if all(s in read.kept for s in slides)
        },
    )


def _no_features(slide_id: str, files: BagFiles) -> str:
    near = files.near.get(slide_id)
    hint = "" if near is None else f"; there is {near}, which differs in spelling only: correct the slide_id"
    return f"no features of this slide{hint}"


def _units(rows: Sequence[SlideRow], per_patient: bool) -> dict[str, tuple[str, ...]]:
    """First slide_id of a bag (of a patient) -> all slides of the bag."""
    units: dict[str, list[str]] = {}
    for row in rows:
        units.setdefault(row.case_id if per_patient else row.slide_id, []).append(row.slide_id)
    return {slides[0]: tuple(slides) for slides in units.values()}


@dataclass(frozen=True)
class _Read:
    rows: tuple[SlideRow, ...]
    tiles_of: Mapping[str, int]
    kept: Mapping[str, FeatureBag]
    first: FeatureBag | None


def _read_all(rows: Sequence[SlideRow], paths: Mapping[str, Path], memory_mb: int, problems: list[Problem]) -> _Read:
    """Reads all bags: readable rows, and as many bags as memory allows; unreadable ones are added to `problems`."""
    good, kept, tiles_of, used = [], {}, {}, 0
    first_of: dict[int, FeatureBag] = {}
    width_of: dict[str, int] = {}
    with Progress("features", len(rows), unit="slides", brief=True) as progress:
        for row in rows:
            progress.advance()
            try:
                bag = read_bag(paths[row.slide_id], mpp=row.mpp)
            except Exception as error:  # any failure: the other bags are still read
                text = str(error) if isinstance(error, InputError) else f"{paths[row.slide_id]}: {one_line(error, 300)}"
                problems.append(Problem(row.slide_id, "read", text))
                continue
            first_of.setdefault(bag.features.shape[1], bag)
            width_of[row.slide_id] = bag.features.shape[1]
            used += bag.features.nbytes
            if used <= memory_mb * 2**20:
                kept[row.slide_id] = bag
            tiles_of[row.slide_id] = len(bag)
            good.append(row)
    if len(first_of) > 1:
        width = _usual_width(list(width_of.values()), first_of)
        for row in [row for row in good if width_of[row.slide_id] != width]:
            reason = f"features of width {width_of[row.slide_id]}, those of most slides have {width}"
            problems.append(Problem(row.slide_id, "read", f"{paths[row.slide_id]}: {reason}; another encoder's?"))
            kept.pop(row.slide_id, None)
            del tiles_of[row.slide_id]
            good.remove(row)
        first_of = {width: first_of[width]}
    return _Read(tuple(good), tiles_of, kept, next(iter(first_of.values()), None))


def _usual_width(widths: Sequence[int], first_of: Mapping[int, FeatureBag]) -> int:
    """Feature width of at least nine bags in ten; `InputError` where no width is that frequent."""
    width, count = Counter(widths).most_common(1)[0]
    if count < 0.9 * len(widths):
        join_bags([first_of[w] for w in dict.fromkeys(widths)])  # raises; names two files and their widths
    return width


def _tiles(bags: Sequence[FeatureBag], slides: Sequence[str]) -> Tiles:
    sizes, sides = tuple(len(bag) for bag in bags), tuple(bag.tile_level0_px for bag in bags)
    joined = bags[0] if len(bags) == 1 else join_bags(bags)
    return Tiles(joined.features, joined.coords, sizes, tuple(slides), sides)
