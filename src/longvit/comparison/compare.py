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
from longvit.comparison.bag_cohort import BagCohort, make_bag_cohort
from longvit.comparison.longvit_run import read_longvit_run
from longvit.comparison.omics import OmicTable
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.summary import published_column, summarise, write_summary
from longvit.comparison.system_spec import SystemSpec, all_system_specs
from longvit.comparison.trial import (
    FoldSplit,
    bags_of_fold,
    facts_of,
    finished,
    load_what_all_need,
    one_line,
    run_trial,
)
from longvit.comparison.trial_process import Heard, Trial, job_of, run_side_by_side
from longvit.config import settings_yaml
from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, write_folds
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.device import Device, pick_device, set_threads
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.progress import Progress, clock_text
from longvit.tasks.task import task_class
from longvit.training.run_folder import exclusive_lock


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to."""

    folder: Path
    summary: dict[str, Any]
    """What benchmark.json holds, see `summary.summarise`."""
    bag_cohort: BagCohort
    failed: tuple[Problem, ...]
    """Cells that have no figure; `slide` is `mcat, fold 3`."""


def compare(
    cohort: Cohort,
    out_dir: str | Path,
    folds: Sequence[Fold],
    settings: ComparisonSettings,
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

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.ComparisonSettings(systems=("mean_pooling",), epochs=1, device="cpu")
    >>> folds = longvit.make_folds(cohort, 2)
    >>> result = longvit.compare(cohort, "comparison", folds, settings, features="features")
    >>> result.failed
    ()
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
    published_column(settings.cell, task_class(settings.task).metric)
    with exclusive_lock(folder):
        # Before any later error, whose reason they may be.
        bag_cohort = make_bag_cohort(
            cohort,
            settings.task,
            features,
            omics,
            0 if jobs > 1 else settings.memory_mb,
            left_out=lambda problems: write_problems(folder / PROBLEMS_CSV, problems),
        )
        spec = settings.system_specs() or all_system_specs(
            tiles=features is not None, omics=omics is not None, signatures=bool(omics and omics.signatures)
        )
        if without := [each.name for each in spec if each.reads_tiles and features is None]:
            raise InputError(f"{without[0]} reads tiles; give --features FOLDER, or leave it out of --systems")
        try:
            ready = [bags_of_fold(bag_cohort, fold, settings) for fold in wanted]
        except InputError as error:
            if not bag_cohort.problems:
                raise
            n, first = len(bag_cohort.problems), bag_cohort.problems[0]
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
            for each in spec
            if (found := _finished(bag_cohort, of, each, settings, folder)) is not None
        }
        write_folds(folder / "folds", folds)
        write_text(folder / "settings.yaml", settings_yaml(settings))
        trials = [Trial(of, each, trial_folder(folder, each, of.fold)) for of in ready for each in spec]
        left = [trial for trial in trials if trial.key not in done]
        failed = _run_trials(bag_cohort, left, len(trials), settings, device, jobs, done)
        write_problems(folder / PROBLEMS_CSV, [*bag_cohort.problems, *failed.values()])
        reasons = {key: problem.error for key, problem in failed.items()}
        summary = summarise(bag_cohort, ready, spec, settings, folder, done, reasons, longvit)
        write_summary(folder, summary)
        return Comparison(folder, summary, bag_cohort, tuple(failed.values()))


def trial_folder(folder: Path, spec: SystemSpec, fold: Fold) -> Path:
    """OUT/<system>/fold_<name>."""
    return folder / spec.name / f"fold_{fold.name}"


def _finished(
    bag_cohort: BagCohort, fold_split: FoldSplit, spec: SystemSpec, settings: ComparisonSettings, folder: Path
) -> dict[str, Any] | None:
    """Metrics of a cell that needs no work."""
    place = trial_folder(folder, spec, fold_split.fold)
    if not (place / "metrics.json").exists():
        return None
    return finished(place, facts_of(bag_cohort, fold_split, spec, settings))


def _run_trials(
    bag_cohort: BagCohort,
    trials: Sequence[Trial],
    total: int,
    settings: ComparisonSettings,
    device: Device,
    jobs: int,
    done: dict[tuple[str, str], dict[str, Any]],
) -> dict[tuple[str, str], Problem]:
    """Fills `done`; → the cells that failed. `total`: cells in all, with those that were finished before."""
    failed: dict[tuple[str, str], Problem] = {}
    epochs = dict.fromkeys((trial.key for trial in trials), settings.epochs)  # that are left of each
    started = (total - len(trials)) * settings.epochs
    with Progress("cells × epochs", total * settings.epochs, done=started, brief=not trials) as progress:

        def heard(trial: Trial, kind: str, content: Any) -> None:
            if kind == "epoch":
                epochs[trial.key] -= 1
                progress.advance(note=trial.note)
                return
            if kind == "failed":
                failed[trial.key] = Problem(trial.note, "cell", content)
                progress.log(f"{trial.note}: failed: {content}")
            else:
                done[trial.key] = content
                progress.log(_finished_words(trial.note, content))
            progress.advance(epochs[trial.key])  # a cell that went on or failed has done fewer

        if jobs > 1:
            run_side_by_side(trials, job_of(bag_cohort, settings, jobs), jobs, heard)
        else:
            _one_by_one(trials, bag_cohort, settings, device, heard)
    for trial in trials:  # judged by the list, not by what was heard
        if trial.key not in done and trial.key not in failed:
            failed[trial.key] = Problem(trial.note, "cell", "ended without a word; give the same command again")
    return failed


def _one_by_one(
    trials: Sequence[Trial], bag_cohort: BagCohort, settings: ComparisonSettings, device: Device, heard: Heard
) -> None:
    if trials:
        load_what_all_need(device.device)
    for trial in trials:
        try:
            metrics = run_trial(
                bag_cohort,
                trial.fold_split,
                trial.spec,
                settings,
                trial.folder,
                device,
                epoch_done=lambda trial=trial: heard(trial, "epoch", None),  # type: ignore[misc]
            )
        except Exception as error:  # whatever it is: the other cells go on
            heard(trial, "failed", one_line(error))
        else:
            heard(trial, "done", metrics)


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
