"""A cohort made ready for bags: whose tiles and omics are there, and each of them as a `Bag` whenever it is asked for.

A bag is a slide where the task has classes, else a patient: the tiles of all slides behind each other, and the cohort
keeps the patient's first row. Every bag is read once before anything is trained, so that a damaged one costs a row of
problems.csv and not a night; it stays in memory as far as `memory_mb` goes. All systems get the same bags: who lacks
tiles (or omics, where a table is given) is left out for all of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.comparison.omics import OmicTable
from longvit.comparison.system_spec import OF_SIGNATURES, SystemSpec
from longvit.data.bags import BagFiles, FeatureBag, find_bags, join_bags, read_bag
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.identity import first_places, refuse_other_spelling
from longvit.data.problems import Problem
from longvit.errors import InputError
from longvit.h5_file import one_line
from longvit.progress import Progress
from longvit.tasks.task import task_class

if TYPE_CHECKING:
    from longvit.baselines.bag import Bag


@dataclass(frozen=True)
class Tiles:
    """The tiles of a bag."""

    features: np.ndarray
    """(N, D) float32."""
    coords: np.ndarray | None
    """(N, 2) int64, each in level-0 px of its own slide."""
    slide_tiles: tuple[int, ...]
    """How many each slide has."""
    slides: tuple[str, ...]
    """slide_id of each."""
    tile_level0_px: float | None
    """Side of a tile at level 0, where the first slide's file says it."""


@dataclass(frozen=True)
class BagCohort:
    """Bags of a cohort."""

    cohort: Cohort
    """All rows that can take part; `unit_rows` makes bags of them."""
    per_patient: bool
    slides_of: Mapping[str, tuple[str, ...]]
    """slide_id of a bag's row -> slides in it."""
    paths: Mapping[str, Path]
    """slide_id -> its file of features; empty without features."""
    tiles_of: Mapping[str, int]
    """slide_id -> how many tiles its file has."""
    omics: OmicTable | None
    width: int
    """D; 0 without features."""
    tile_level0_px: float | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    kept: Mapping[str, Tiles] = field(repr=False)
    """The bags that memory holds, by slide_id of the row."""

    def unit_rows(self, rows: Sequence[SlideRow]) -> tuple[SlideRow, ...]:
        """Of rows, those that stand for a bag."""
        return tuple(row for row in rows if row.slide_id in self.slides_of)

    def tile_count(self, rows: Sequence[SlideRow]) -> int:
        """Tiles of all these bags together."""
        return sum(self.tiles_of.get(slide, 0) for row in rows for slide in self.slides_of[row.slide_id])

    def tiles(self, row: SlideRow) -> Tiles:
        """From memory, or read anew."""
        if (found := self.kept.get(row.slide_id)) is not None:
            return found
        slides = self.slides_of[row.slide_id]
        return _tiles([read_bag(self.paths[slide]) for slide in slides], slides)

    def bag(self, row: SlideRow, who: SystemSpec) -> Bag:
        """What a system gets of a row; on the CPU."""
        import torch

        from longvit.baselines.bag import Bag

        features, coords = torch.zeros(0, 0), None
        slide_tiles: tuple[int, ...] = ()
        if who.reads_tiles:
            tiles = self.tiles(row)
            features, slide_tiles = torch.from_numpy(tiles.features), tiles.slide_tiles
            coords = None if tiles.coords is None else torch.from_numpy(tiles.coords)
        omics: torch.Tensor | tuple[torch.Tensor, ...] | None = None
        if who.reads_omics and self.omics is not None:
            if who.system in OF_SIGNATURES:
                omics = tuple(torch.from_numpy(v) for v in self.omics.by_signature(row.case_id))
            else:
                omics = torch.from_numpy(self.omics.vector(row.case_id))
        name = f"patient {row.case_id}" if self.per_patient else f"slide {row.slide_id}"
        return Bag(features, coords, omics, slide_tiles=slide_tiles, name=name)

    def omic_shape(self, who: SystemSpec) -> int | tuple[int, ...] | None:
        """How many genes the entrant gets; `InputError` where they are not there."""
        if not who.reads_omics:
            return None
        if self.omics is None:
            raise InputError(f"{who.name}: needs omics; give --omics TABLE")
        if who.system not in OF_SIGNATURES:
            return len(self.omics.columns)
        if not self.omics.signatures:
            raise InputError(f"{who.name}: needs signatures; give --signatures TABLE, a column of genes for each")
        return tuple(len(places) for places in self.omics.signatures.values())

    def keeping(self, memory_mb: int) -> BagCohort:
        """The same with as many bags in memory as that holds."""
        kept: dict[str, Tiles] = {}
        room = memory_mb * 2**20
        for slide, slides in self.slides_of.items():
            if not self.paths or room <= 0:
                break
            try:
                tiles = _tiles([read_bag(self.paths[s]) for s in slides], slides)
            except InputError:  # it was whole a moment ago; whoever needs it says what is wrong now
                continue
            room -= tiles.features.nbytes
            if room >= 0:
                kept[slide] = tiles
        return replace(self, kept=kept)

    def digest(self) -> str:
        """A hash of which files of features (names and sizes) and which omics take part."""
        try:
            lines = [f"{slide}\t{path.name}\t{path.stat().st_size}" for slide, path in sorted(self.paths.items())]
        except OSError as error:
            raise InputError(f"{error.filename}: gone since the comparison began: {error.strerror}") from error
        if self.omics is not None:
            lines.append(",".join(self.omics.columns))
            lines += [hashlib.sha256(v.tobytes()).hexdigest() for _, v in sorted(self.omics.of_case.items())]
            lines += [f"{name}: {places.tolist()}" for name, places in self.omics.signatures.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def make_bag_cohort(
    cohort: Cohort,
    task: str,
    features: str | Path | None,
    omics: OmicTable | None,
    memory_mb: int,
    *,
    left_out: Callable[[Sequence[Problem]], object] = lambda _: None,
) -> BagCohort:
    """Finds and reads what there is. `left_out` is told of the slides that cannot take part, also where it raises.

    Raises `InputError`: neither features nor omics, nobody who has all that is given, a patient whose spelling alone
    tells it from one of the omics, features of different widths of which none is the rule.
    """
    if features is None and omics is None:
        raise InputError("nothing to compare on: give --features FOLDER, or --omics TABLE")
    problems: list[Problem] = []
    try:
        return _make_bag_cohort(cohort, task, features, omics, memory_mb, problems)
    finally:
        left_out(problems)


def _make_bag_cohort(
    cohort: Cohort,
    task: str,
    features: str | Path | None,
    omics: OmicTable | None,
    memory_mb: int,
    problems: list[Problem],
) -> BagCohort:
    per_patient = not task_class(task).has_classes
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
        found = find_bags(features, [row.slide_id for row in rows])
        problems += [Problem(slide, "open", f"{features}: {_no_features(slide, found)}") for slide in found.missing]
        paths = found.paths
        rows = [row for row in rows if row.slide_id in paths]
    read = _Read(tuple(rows), {}, {}, None)
    if features is not None:
        read = _read_all(rows, paths, memory_mb, problems)
    if not read.rows:
        first = f"; the first of {len(problems)} problems: {problems[0].error}" if problems else ""
        raise InputError(f"{cohort.source}: no slide has all that is given{first}")
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


def _no_features(slide_id: str, found: BagFiles) -> str:
    near = found.near.get(slide_id)
    hint = "" if near is None else f"; there is {near}, which differs in spelling only: correct the slide_id"
    return f"no features of this slide{hint}"


def _units(rows: Sequence[SlideRow], per_patient: bool) -> dict[str, tuple[str, ...]]:
    """The slide_id that stands for a bag (the first of its patient) -> all slides in it."""
    of: dict[str, list[str]] = {}
    for row in rows:
        of.setdefault(row.case_id if per_patient else row.slide_id, []).append(row.slide_id)
    return {slides[0]: tuple(slides) for slides in of.values()}


@dataclass(frozen=True)
class _Read:
    rows: tuple[SlideRow, ...]
    tiles_of: Mapping[str, int]
    kept: Mapping[str, FeatureBag]
    first: FeatureBag | None


def _read_all(rows: Sequence[SlideRow], paths: Mapping[str, Path], memory_mb: int, problems: list[Problem]) -> _Read:
    """The rows whose bag can be read, and as many bags as memory may hold; the others are added to `problems`."""
    good, kept, tiles_of, used = [], {}, {}, 0
    first_of: dict[int, FeatureBag] = {}
    width_of: dict[str, int] = {}
    with Progress("features", len(rows), unit="slides", brief=True) as progress:
        for row in rows:
            progress.advance()
            try:
                bag = read_bag(paths[row.slide_id])
            except Exception as error:  # whatever it is: the other bags are read
                text = str(error) if isinstance(error, InputError) else f"{paths[row.slide_id]}: {one_line(error)}"
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
            words = f"features of width {width_of[row.slide_id]}, those of most slides have {width}"
            problems.append(Problem(row.slide_id, "read", f"{paths[row.slide_id]}: {words}; another encoder's?"))
            kept.pop(row.slide_id, None)
            del tiles_of[row.slide_id]
            good.remove(row)
        first_of = {width: first_of[width]}
    return _Read(tuple(good), tiles_of, kept, next(iter(first_of.values()), None))


def _usual_width(widths: Sequence[int], first_of: Mapping[int, FeatureBag]) -> int:
    """The width of at least nine bags in ten; `InputError`: none is the rule, so nobody knows which ones are meant."""
    width, count = Counter(widths).most_common(1)[0]
    if count < 0.9 * len(widths):
        join_bags([first_of[w] for w in dict.fromkeys(widths)])  # raises; names two files and their widths
    return width


def _tiles(bags: Sequence[FeatureBag], slides: Sequence[str]) -> Tiles:
    sizes, side = tuple(len(bag) for bag in bags), bags[0].tile_level0_px
    joined = bags[0] if len(bags) == 1 else join_bags(bags)
    return Tiles(joined.features, joined.coords, sizes, tuple(slides), side)
