"""Options that several commands share: option groups over the settings dataclasses, and what commands do with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Group, Parameter

from longvit.data.qc_table import NamedSlide
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import RunSettings
from longvit.slides.tiles import TileSettings
from longvit.slides.tissue import TissueSettings

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.data.folds import Fold
    from longvit.data.qc_table import QualityCheck
    from longvit.data.slide_list import ListedSlide
    from longvit.model.longvit import LongViT
    from longvit.slide_jobs.run import SlideJobsResult
    from longvit.tasks.settings import TaskSettings

S = TypeVar("S", bound=NamedSlide)
SETTINGS = Group("Settings (also keys of a recipe)", sort_key=3)
_READING = Group("Reading slides", sort_key=2)
_RUNNING = Group("Workers", sort_key=3)
_TILING = Group("Tiles", sort_key=1)

Recipe = Annotated[
    str | None,
    Parameter(
        help="YAML file with settings, or the name of a built-in recipe (`longvit recipes` lists them).",
        show_default=False,
    ),
]
Model = Annotated[
    Path, Parameter(help="Model folder (config.json, model.safetensors), as `longvit train` and `convert` write it.")
]
Slides = Annotated[
    tuple[Path, ...],
    Parameter(
        help="Slide files, folders (searched to any depth), globs in quotes, or a CSV with a column slide_id, path or "
        "wsi, and optionally mpp."
    ),
]
SlidesDir = Annotated[
    Path | None,
    Parameter(
        help="Folder of the slides of a CSV (searched to any depth), if they are not beside it.", show_default=False
    ),
]
Out = Annotated[Path, Parameter(help="Folder for the results.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda (or cuda:1) or mps. auto uses a GPU if there is one.")]
ExcludeQc = Annotated[
    Path | None,
    Parameter(
        help="qc.csv of `longvit doctor SLIDES`: leave out slides that fail; `OUT/excluded.csv` lists them.",
        show_default=False,
    ),
]
HeatMaps = Annotated[
    tuple[str, ...],
    Parameter(
        negative="",
        show_default=False,
        help="Heat maps for other programs, separated by commas: geojson (QuPath), ome-tiff (scores, and a copy in "
        "colours), png (with a script that lays it over the slide in QuPath), patches (top and bottom ones as images), "
        "dicom (a parametric map beside a DICOM slide; longvit[dicom]).",
    ),
]
TopK = Annotated[
    int, Parameter(help="Number of patches at each end that are marked in the GeoJSON and written by patches.")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]


@dataclass(frozen=True)
class WorkerSettings(RunSettings):
    """Run settings of a command, which reads slides in a separate process."""

    reads_apart: bool = True


Reading = Annotated[ReadSettings, Parameter(name="*", group=_READING)]
WORKERS = Parameter(name="*", group=_RUNNING, parse="^(?!reads_apart$)")
Workers = Annotated[WorkerSettings, WORKERS]
CpuWorkers = Annotated[WorkerSettings, Parameter(name="*", group=_RUNNING, parse="^(?!(reads_apart|device)$)")]
"""Workers that run no model."""


@dataclass(frozen=True)
class TilingSettings(TileSettings):
    """Tile settings with the option name `--tile-mpp`, because `--mpp` is the slide's resolution."""

    mpp: Annotated[float, Parameter(name="--tile-mpp")] = 0.5
    """µm per pixel of the tiles, independent of the slide's own: 0.5 is what scanners call 20×, 0.25 is 40×."""


Tiling = Annotated[TilingSettings, Parameter(name="*", group=_TILING)]
TissueMask = Annotated[
    TissueSettings, Parameter(name="*", group=_TILING, parse="^(tissue|min_piece_um2|max_hole_um2)$")
]


@dataclass(frozen=True)
class CohortOptions:
    """Options of a cohort table: label column, classes, folder of the slides."""

    label_column: str = "label"
    """Column of the CSV with the class."""
    keep: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = ()
    """Use only these classes, in this order; rows of other classes are left out and counted."""
    slides_dir: SlidesDir = None
    """Folder of the slides of a CSV (searched to any depth), if they are not beside it."""
    clini: Annotated[Path | None, Parameter(show_default=False)] = None
    """Table with a row per patient (PATIENT or case_id, and labels), joined to the CSV by patient, as in STAMP."""

    def read(self, cohort: Path, task: str, *, need_files: bool, allow_leak: bool) -> Cohort:
        """Reads the cohort of a table for a task."""
        from longvit.data.cohort_table import read_cohort
        from longvit.errors import InputError
        from longvit.tasks.task import task_class

        has_classes = task_class(task).has_classes
        if not has_classes and self.label_column != "label":
            raise InputError(
                f"--label-column {self.label_column}: --task {task} reads no class; "
                + ("name --time-column and --event-column" if task == "survival" else "name it with --label-columns")
            )
        return read_cohort(
            cohort,
            label_column=self.label_column if has_classes else None,
            keep=self.keep or None,
            slides_dir=self.slides_dir,
            need_files=need_files,
            allow_leak=allow_leak,
            clini=self.clini,
        )


@dataclass(frozen=True)
class FoldOptions:
    """Options of a cross-validation: its folds, and the folds to run now."""

    folds: Annotated[str | None, Parameter(show_default=False)] = None
    """Cross-validation: a number (5: new folds, by patient and stratum), a folder of splits_0.csv … as published, or
    `column`. With `column`, each value of the CSV's column fold is the test set once."""
    fold: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """Run only this fold; may be repeated."""
    patient_disjoint: Annotated[bool, Parameter(negative="")] = False
    """Move patients who are in two splits of a fold to one split."""

    def make(self, cohort: Cohort, settings: TaskSettings, seed: int) -> tuple[Fold, ...]:
        """Folds of a cohort: new ones stratified by the task of `settings`, or those of a folder or column."""
        from longvit.data import new_folds
        from longvit.data.folds import folds_of_column, read_folds
        from longvit.tasks.task import task_class

        assert self.folds is not None
        if self.folds.isdecimal():
            strata = task_class(settings.task).strata(cohort, settings)
            return new_folds.make_folds(cohort, int(self.folds), seed=seed, strata=strata)
        published = folds_of_column(cohort) if self.folds == "column" else read_folds(self.folds)
        return new_folds.patient_disjoint(published, cohort) if self.patient_disjoint else published


def model_or_folder(folder: Path, run: RunSettings) -> LongViT | Path:
    """The model on its device, or its folder if worker processes load it; prints which."""
    from longvit.device import pick_device, set_threads
    from longvit.slide_jobs.job import config_of, load_longvit

    if not run.is_here:
        config_of(folder)
        nodes = "" if run.cluster is None else f" on each node of {run.cluster}"
        echo(f"model {folder} in {run.workers} process{'es' * (run.workers != 1)}{nodes}")
        return folder
    set_threads(run.threads)
    chosen = pick_device(run.device)
    model = load_longvit(folder)
    echo(f"model {folder} on {chosen.name}")
    return model.to(chosen.device)


def listed_slides(slides: Sequence[Path], slides_dir: Path | None, out: Path) -> tuple[ListedSlide, ...]:
    """Slides of a command; the first rank prints the files that a search skipped."""
    from longvit.data.slide_list import find_slides

    is_first = os.environ.get("RANK", "0") == "0"
    return find_slides(slides, slides_dir=slides_dir, leave_out=out, note=echo if is_first else lambda _: None)


def exclude_failed_rows(
    cohort: Cohort, exclude_qc: Path | None, out: Path, *, is_first: bool = True
) -> tuple[Cohort, QualityCheck | None]:
    """The cohort without the slides that fail in a qc.csv; None without such a file."""
    rows, check = _exclude_failed(cohort.rows, exclude_qc, out, is_first=is_first)
    return replace(cohort, rows=rows), check


def exclude_failed_slides(
    slides: tuple[ListedSlide, ...], exclude_qc: Path | None, out: Path
) -> tuple[ListedSlide, ...]:
    """Listed slides without those that fail in a qc.csv."""
    return _exclude_failed(slides, exclude_qc, out)[0]


def _exclude_failed(
    slides: tuple[S, ...], exclude_qc: Path | None, out: Path, *, is_first: bool = True
) -> tuple[tuple[S, ...], QualityCheck | None]:
    """Writes excluded.csv and prints one line, in the first rank. Raises `InputError` where no slide stays."""
    from longvit.data.qc_table import EXCLUDED_CSV, QualityCheck, read_qc, without_failed, write_excluded
    from longvit.errors import InputError
    from longvit.files import make_folder

    if exclude_qc is None:
        return slides, None
    qc = read_qc(exclude_qc)
    kept, excluded = without_failed(slides, qc)
    if not kept:
        raise InputError(f"{exclude_qc}: all {len(slides)} slides fail; edit its column qc, or leave out --exclude-qc")
    if is_first:
        write_excluded(make_folder(out) / EXCLUDED_CSV, excluded)
        unknown = sum(slide.slide_id not in qc for slide in slides)
        text = f"--exclude-qc: {len(excluded)} of {len(slides)} slides left out"
        text += f", see {out / EXCLUDED_CSV}" if excluded else ""
        echo(text + (f"; {unknown} are not in {exclude_qc} and stay" if unknown else ""))
    return kept, QualityCheck(qc, excluded)


def echo(text: Any) -> None:
    """Prints a message to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def print_outcome(result: SlideJobsResult, out: Path, results: str) -> int:
    """Prints the outcome of a run over many slides; returns 1 if a slide lacks its result, plot or heat map."""
    parts = [f"{len(result.done)} done"]
    if result.skipped:
        parts.append(f"{len(result.skipped)} finished before")
    if result.left_out:
        parts.append(f"{len(result.left_out)} without a result")
    if undrawn := sum(problem.stage == "picture" for problem in result.problems):
        parts.append(f"{undrawn} without a plot")
    if unwritten := sum(problem.stage == "heatmap" for problem in result.problems):
        parts.append(f"{unwritten} without a heat map")
    if filled := len(result.problems) - len(result.left_out) - undrawn - unwritten:
        parts.append(f"{filled} with unreadable tiles filled")
    if result.problems:
        parts[-1] += f", see {out / 'problems.csv'}"
    echo(f"{', '.join(parts)}. {results}")
    return 1 if result.left_out or undrawn or unwritten else 0
