"""Every system on every fold: the cells one after another or side by side, each resumable, then one table.

OUT/folds/splits_<name>.csv      the folds, as every tool reads them
OUT/settings.yaml                all settings: `longvit benchmark --recipe OUT/settings.yaml`
OUT/<system>/fold_<name>/        a cell (cell.py)
OUT/problems.csv                 slides that are left out (stage open, read), and cells that failed (stage cell)
OUT/benchmark.csv                a row per system
OUT/benchmark.json               `summarise` of summary.py; written last

A cell that fails costs itself: its reason stands in the table, the others go on, and the same command tries it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvit.baselines.system import settings_of
from longvit.comparison.bag_cohort import Study, make_study
from longvit.comparison.longvit_run import read_longvit_run
from longvit.comparison.omics import OmicTable
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.summary import published_column, summarise, write_summary
from longvit.comparison.system_spec import Entrant, all_entrants
from longvit.comparison.trial import FoldBags, bags_of_fold, facts_of, finished, load_what_all_need, one_line, run_cell
from longvit.comparison.trial_process import Cell, Heard, job_of, run_side_by_side
from longvit.config import settings_yaml
from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, write_folds
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.device import Device, pick_device, set_threads
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.progress import Progress, clock_text
from longvit.tasks.task import task_class
from longvit.training.run_folder import alone_in


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to."""

    folder: Path
    summary: dict[str, Any]
    """What benchmark.json holds, see `summary.summarise`."""
    study: Study
    failed: tuple[Problem, ...]
    """Cells that have no figure; `slide` is `mcat, fold 3`."""


def compare(
    cohort: Cohort,
    folds: Sequence[Fold],
    settings: ComparisonSettings,
    out_dir: str | Path,
    *,
    features: str | Path | None = None,
    omics: OmicTable | None = None,
    only: Sequence[str] = (),
    longvit_run: str | Path | None = None,
    jobs: int = 1,
) -> Comparison:
    """Trains and evaluates whoever takes part on `folds` (or on those called `only`), then sums up what is there.

    `features`: folder of bags (`data.bags.find_bags`). `longvit_run`: a cross-validation of LongViT on the same folds.
    `jobs` > 1 runs that many cells at once, each in a process of its own.

    Raises `InputError` before anything is trained: a system, setting of one, fold or cell of the tables that is not
    there, other settings than a finished cell had, LongViT on other folds, nobody left to train on; what a single cell
    raises is a row of the table.
    """
    folder = make_folder(out_dir)
    set_threads(settings.threads)
    device = pick_device(settings.device)
    if unknown := [name for name in only if name not in {fold.name for fold in folds}]:
        raise InputError(f"--fold {unknown[0]}: choose {', '.join(fold.name for fold in folds)}")
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: at least 1")
    for system, given in settings.of_systems.items():
        settings_of(system, given)
    wanted = [fold for fold in folds if not only or fold.name in only]
    published_column(settings.cell, task_class(settings.task).figure)
    with alone_in(folder):
        # Before any later error, whose reason they may be.
        study = make_study(
            cohort,
            settings.task,
            features,
            omics,
            0 if jobs > 1 else settings.memory_mb,
            left_out=lambda problems: write_problems(folder / PROBLEMS_CSV, problems),
        )
        who = settings.entrants() or all_entrants(
            tiles=features is not None, omics=omics is not None, signatures=bool(omics and omics.signatures)
        )
        if without := [each.name for each in who if each.reads_tiles and features is None]:
            raise InputError(f"{without[0]} reads tiles; give --features FOLDER, or leave it out of --systems")
        try:
            ready = [bags_of_fold(study, fold, settings) for fold in wanted]
        except InputError as error:
            if not study.problems:
                raise
            n, first = len(study.problems), study.problems[0]
            raise InputError(
                f"{error}; {n} of {len(cohort.rows)} slides are left out, see {folder / PROBLEMS_CSV}; the first: "
                f"{first.error}"
            ) from error
        longvit = None
        if longvit_run is not None:
            longvit = read_longvit_run(longvit_run, cohort, wanted, settings)
        done = {
            (each.name, of.fold.name): found
            for of in ready
            for each in who
            if (found := _finished(study, of, each, settings, folder)) is not None
        }
        write_folds(folder / "folds", folds)
        write_text(folder / "settings.yaml", settings_yaml(settings))
        cells = [Cell(of, each, cell_folder(folder, each, of.fold)) for of in ready for each in who]
        left = [cell for cell in cells if cell.key not in done]
        failed = _run_cells(study, left, len(cells), settings, device, jobs, done)
        write_problems(folder / PROBLEMS_CSV, [*study.problems, *failed.values()])
        reasons = {key: problem.error for key, problem in failed.items()}
        summary = summarise(study, ready, who, settings, folder, done, reasons, longvit)
        write_summary(folder, summary)
        return Comparison(folder, summary, study, tuple(failed.values()))


def cell_folder(folder: Path, who: Entrant, fold: Fold) -> Path:
    """OUT/<system>/fold_<name>."""
    return folder / who.name / f"fold_{fold.name}"


def _finished(
    study: Study, of_fold: FoldBags, who: Entrant, settings: ComparisonSettings, folder: Path
) -> dict[str, Any] | None:
    """Metrics of a cell that needs no work."""
    place = cell_folder(folder, who, of_fold.fold)
    if not (place / "metrics.json").exists():
        return None
    return finished(place, facts_of(study, of_fold, who, settings))


def _run_cells(
    study: Study,
    cells: Sequence[Cell],
    total: int,
    settings: ComparisonSettings,
    device: Device,
    jobs: int,
    done: dict[tuple[str, str], dict[str, Any]],
) -> dict[tuple[str, str], Problem]:
    """Fills `done`; → the cells that failed. `total`: cells in all, with those that were finished before."""
    failed: dict[tuple[str, str], Problem] = {}
    epochs = dict.fromkeys((cell.key for cell in cells), settings.epochs)  # that are left of each
    started = (total - len(cells)) * settings.epochs
    with Progress("cells × epochs", total * settings.epochs, done=started, brief=not cells) as progress:

        def heard(cell: Cell, kind: str, content: Any) -> None:
            if kind == "epoch":
                epochs[cell.key] -= 1
                progress.advance(note=cell.note)
                return
            if kind == "failed":
                failed[cell.key] = Problem(cell.note, "cell", content)
                progress.say(f"{cell.note}: failed: {content}")
            else:
                done[cell.key] = content
                progress.say(_finished_words(cell.note, content))
            progress.advance(epochs[cell.key])  # a cell that went on or failed has done fewer

        if jobs > 1:
            run_side_by_side(cells, job_of(study, settings, jobs), jobs, heard)
        else:
            _one_by_one(cells, study, settings, device, heard)
    for cell in cells:  # judged by the list, not by what was heard
        if cell.key not in done and cell.key not in failed:
            failed[cell.key] = Problem(cell.note, "cell", "ended without a word; give the same command again")
    return failed


def _one_by_one(
    cells: Sequence[Cell], study: Study, settings: ComparisonSettings, device: Device, heard: Heard
) -> None:
    if cells:
        load_what_all_need(device.device)
    for cell in cells:
        try:
            metrics = run_cell(
                study,
                cell.of_fold,
                cell.who,
                settings,
                cell.folder,
                device,
                epoch_done=lambda cell=cell: heard(cell, "epoch", None),  # type: ignore[misc]
            )
        except Exception as error:  # whatever it is: the other cells go on
            heard(cell, "failed", one_line(error))
        else:
            heard(cell, "done", metrics)


def _finished_words(note: str, metrics: dict[str, Any]) -> str:
    value = metrics["splits"][metrics["evaluated"]][metrics["figure"]]
    text = "not defined" if value is None else f"{value:.3f}"
    seconds = metrics["training"]["seconds"]
    after = "" if seconds is None else f", {clock_text(seconds)}"
    return f"{note}: {metrics['figure']} {text} on {metrics['evaluated']}{after}"


def print_table(summary: dict[str, Any]) -> None:
    """The table on stdout."""
    from rich.console import Console
    from rich.table import Table

    from longvit.comparison.summary import table

    console = Console()
    if not console.is_terminal:
        console = Console(width=180, file=sys.stdout)
    header, rows = table(summary)
    drawn = Table()
    for i, name in enumerate(header):
        drawn.add_column(name, justify="left" if i < 2 else "right")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
