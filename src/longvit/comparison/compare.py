"""Comparison of every system on every fold: trials one after another or in parallel, each resumable, then one table.

OUT/folds/splits_<name>.csv      the folds, as every tool reads them
OUT/slides.csv                   slides with patients, labels and the content hash of their features
OUT/settings.yaml                all settings: `longvit benchmark --recipe OUT/settings.yaml`
OUT/<system>/fold_<name>/        a trial (trial.py)
OUT/problems.csv                 slides that are left out (stage open, read), and failed trials (stage cell)
OUT/benchmark.csv                a row per system
OUT/benchmark.json               `summary.ComparisonSummary`; written last

A failed trial does not stop the others; its error is listed in the table, and the same command tries it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvit.baselines.system import settings_of
from longvit.comparison.bag_cohort import BagCohort, make_bag_cohort
from longvit.comparison.bag_slides import write_bag_slides
from longvit.comparison.longvit_run import read_longvit_run
from longvit.comparison.omics import OmicTable
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.summary import published_column, summarise
from longvit.comparison.summary_table import write_summary
from longvit.comparison.system_spec import SystemSpec, all_system_specs
from longvit.comparison.trial import (
    FoldSplit,
    bags_of_fold,
    load_what_all_need,
    read_trial,
    resume_key,
    run_trial,
)
from longvit.comparison.trial_process import OnEvent, Trial, run_in_parallel, trial_job
from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, write_folds
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.device import Device, pick_device, set_threads
from longvit.errors import InputError, describe_error
from longvit.progress import Progress, clock_text
from longvit.tasks.task import task_class
from longvit.training.run_folder import METRICS_JSON, RunFolder


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.ComparisonSettings(systems=("mean_pooling",), epochs=1, device="cpu")
    >>> folds = longvit.make_folds(cohort, 2)
    >>> result = longvit.compare(cohort, "comparison_of_one", folds, settings, features="features")
    >>> [system["system"] for system in result.summary["systems"]]
    ['mean_pooling']
    """

    folder: Path
    """Output folder."""
    summary: dict[str, Any]
    """Content of benchmark.json, see `summary.ComparisonSummary`."""
    bag_cohort: BagCohort
    """Bags that all systems share."""
    fold_splits: tuple[FoldSplit, ...]
    """Folds of the comparison, with their bags."""
    settings: ComparisonSettings
    """Settings of the comparison."""
    failed: tuple[Problem, ...]
    """Failed trials, without metrics; `slide` is `mcat, fold 3`."""


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
    """Trains and evaluates the systems on `folds` (or on those named in `only`), then summarises the finished trials.

    `features`: folder of bags (`data.bags.find_bags`). `longvit_run`: a cross-validation of LongViT on the same folds.
    `jobs` > 1 runs that many trials at once, each in a process.

    Raises `InputError` before training: an unknown system, setting of a system, fold or cell of the tables; settings
    other than those of a finished trial; LongViT on other folds; no bags to train on. An error of a single trial is a
    row of the table.

    >>> import longvit
    >>> cohort = longvit.read_cohort("cohort.csv", slides_dir="slides")
    >>> settings = longvit.ComparisonSettings(systems=("mean_pooling",), epochs=1, device="cpu")
    >>> folds = longvit.make_folds(cohort, 2)
    >>> result = longvit.compare(cohort, "comparison", folds, settings, features="features")
    >>> result.failed
    ()
    """
    run_folder = RunFolder(out_dir)
    folder = run_folder.path
    set_threads(settings.threads)
    device = pick_device(settings.device)
    if unknown := [name for name in only if name not in {fold.name for fold in folds}]:
        raise InputError(f"--fold {unknown[0]}: choose {', '.join(fold.name for fold in folds)}")
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: at least 1")
    for system, given in settings.system_settings.items():
        settings_of(system, given)
    wanted = [fold for fold in folds if not only or fold.name in only]
    published_column(settings.cell, task_class(settings.task).metric)
    with run_folder.locked():
        # Problems are written before any later error, which they may explain.
        bag_cohort = make_bag_cohort(
            cohort,
            settings.task,
            features,
            omics,
            0 if jobs > 1 else settings.memory_mb,
            bags=settings.bags,
            left_out=lambda problems: write_problems(folder / PROBLEMS_CSV, problems),
        )
        specs = settings.system_specs() or all_system_specs(
            tiles=features is not None, omics=omics is not None, signatures=bool(omics and omics.signatures)
        )
        if without := [spec.name for spec in specs if spec.reads_tiles and features is None]:
            raise InputError(f"{without[0]} reads tiles; give --features FOLDER, or leave it out of --systems")
        try:
            fold_splits = [bags_of_fold(bag_cohort, fold, settings) for fold in wanted]
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
        trials = [Trial(split, spec, trial_folder(folder, spec, split.fold)) for split in fold_splits for spec in specs]
        done = {
            trial.key: metrics
            for trial in trials
            if (trial.folder / METRICS_JSON).exists()
            and (metrics := read_trial(trial.folder, resume_key(bag_cohort, trial.fold_split, trial.spec, settings)))
        }
        write_folds(folder / "folds", folds)
        write_bag_slides(folder, bag_cohort, settings)
        run_folder.write_settings(settings)
        pending = [trial for trial in trials if trial.key not in done]
        failed = _run_trials(bag_cohort, pending, len(trials), settings, device, jobs, done)
        write_problems(folder / PROBLEMS_CSV, [*bag_cohort.problems, *failed.values()])
        reasons = {key: problem.error for key, problem in failed.items()}
        summary = summarise(bag_cohort, fold_splits, specs, settings, folder, done, reasons, longvit).to_json()
        write_summary(folder, summary)
        return Comparison(folder, summary, bag_cohort, tuple(fold_splits), settings, tuple(failed.values()))


def trial_folder(folder: Path, spec: SystemSpec, fold: Fold) -> Path:
    """OUT/<system>/fold_<name>."""
    return folder / spec.name / f"fold_{fold.name}"


def _run_trials(
    bag_cohort: BagCohort,
    trials: Sequence[Trial],
    total: int,
    settings: ComparisonSettings,
    device: Device,
    jobs: int,
    done: dict[tuple[str, str], dict[str, Any]],
) -> dict[tuple[str, str], Problem]:
    """Runs `trials`, adds their metrics to `done` and returns the failed ones.

    `total`: number of trials, with those finished before.
    """
    failed: dict[tuple[str, str], Problem] = {}
    epochs = dict.fromkeys((trial.key for trial in trials), settings.epochs)  # remaining epochs of each trial
    started = (total - len(trials)) * settings.epochs
    with Progress("trials × epochs", total * settings.epochs, done=started, brief=not trials) as progress:

        def on_event(trial: Trial, kind: str, content: Any) -> None:
            if kind == "epoch":
                epochs[trial.key] -= 1
                progress.advance(note=trial.note)
                return
            if kind == "failed":
                failed[trial.key] = Problem(trial.note, "cell", content)
                progress.log(f"{trial.note}: failed: {content}")
            else:
                done[trial.key] = content
                progress.log(_finished_line(trial.note, content))
            progress.advance(epochs[trial.key])  # a trial that resumed or failed has run fewer

        if jobs > 1:
            run_in_parallel(trials, trial_job(bag_cohort, settings, jobs), jobs, on_event)
        else:
            _one_by_one(trials, bag_cohort, settings, device, on_event)
    for trial in trials:  # decided by the list of trials, not by their events
        if trial.key not in done and trial.key not in failed:
            failed[trial.key] = Problem(trial.note, "cell", "ended without a result; give the same command again")
    return failed


def _one_by_one(
    trials: Sequence[Trial], bag_cohort: BagCohort, settings: ComparisonSettings, device: Device, on_event: OnEvent
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
                epoch_done=lambda trial=trial: on_event(trial, "epoch", None),  # type: ignore[misc]
            )
        except Exception as error:  # a failed trial does not stop the others
            on_event(trial, "failed", describe_error(error, 300))
        else:
            on_event(trial, "done", metrics)


def _finished_line(note: str, metrics: dict[str, Any]) -> str:
    value = metrics["splits"][metrics["evaluated"]][metrics["figure"]]
    text = "not defined" if value is None else f"{value:.3f}"
    seconds = metrics["training"]["seconds"]
    after = "" if seconds is None else f", {clock_text(seconds)}"
    return f"{note}: {metrics['figure']} {text} on {metrics['evaluated']}{after}"


def print_table(summary: dict[str, Any]) -> None:
    """Prints the table of a comparison."""
    from rich.console import Console
    from rich.table import Table

    from longvit.comparison.summary_table import table

    console = Console()
    if not console.is_terminal:
        console = Console(width=180, file=sys.stdout)
    header, rows = table(summary)
    printed = Table()
    for i, name in enumerate(header):
        printed.add_column(name, justify="left" if i < 2 else "right")
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
