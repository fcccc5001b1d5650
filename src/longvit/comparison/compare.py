"""Every system on every fold: the cells one after another, each resumable, then one table.

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

import torch

from longvit.baselines.system import settings_of
from longvit.comparison.cell import FoldBags, bags_of_fold, facts_of, finished, run_cell
from longvit.comparison.entrants import Entrant, all_entrants
from longvit.comparison.longvit_run import read_longvit_run
from longvit.comparison.omics import OmicTable
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.study import Study, make_study
from longvit.comparison.summary import published_column, summarise, write_summary
from longvit.config import settings_yaml
from longvit.data.cohort import Cohort
from longvit.data.folds import Fold, write_folds
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.device import Device, pick_device, set_threads
from longvit.errors import InputError
from longvit.files import make_folder, write_text
from longvit.progress import Progress, clock_text
from longvit.tasks.run_folder import alone_in
from longvit.tasks.task import task_class


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
) -> Comparison:
    """Trains and evaluates whoever takes part on `folds` (or on those called `only`), then sums up what is there.

    `features`: folder of bags (`data.bags.find_bags`). `longvit_run`: a cross-validation of LongViT on the same folds.

    Raises `InputError` before anything is trained: a system, setting of one, fold or cell of the tables that is not
    there, other settings than a finished cell had, LongViT on other folds, nobody left to train on; what a single cell
    raises is a row of the table.
    """
    folder = make_folder(out_dir)
    set_threads(settings.threads)
    device = pick_device(settings.device)
    if unknown := [name for name in only if name not in {fold.name for fold in folds}]:
        raise InputError(f"--fold {unknown[0]}: choose {', '.join(fold.name for fold in folds)}")
    for system, given in settings.of_systems.items():
        settings_of(system, given)
    wanted = [fold for fold in folds if not only or fold.name in only]
    published_column(settings.cell, task_class(settings.task).figure)
    with alone_in(folder):
        study = make_study(cohort, settings.task, features, omics, settings.memory_mb)
        who = settings.entrants() or all_entrants(
            tiles=features is not None, omics=omics is not None, signatures=bool(omics and omics.signatures)
        )
        if without := [each.name for each in who if each.reads_tiles and features is None]:
            raise InputError(f"{without[0]} reads tiles; give --features FOLDER, or leave it out of --systems")
        ready = [bags_of_fold(study, fold, settings) for fold in wanted]
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
        failed = _run_cells(study, ready, who, settings, folder, device, done)
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
    ready: Sequence[FoldBags],
    who: Sequence[Entrant],
    settings: ComparisonSettings,
    folder: Path,
    device: Device,
    done: dict[tuple[str, str], dict[str, Any]],
) -> dict[tuple[str, str], Problem]:
    """Fills `done`; → the cells that failed."""
    failed: dict[tuple[str, str], Problem] = {}
    left = [(of, each) for of in ready for each in who if (each.name, of.fold.name) not in done]
    if left:
        _load_what_all_need(device.device)
    total = len(ready) * len(who) * settings.epochs
    with Progress("cells × epochs", total, done=total - len(left) * settings.epochs, brief=not left) as progress:
        for of, each in left:
            key, at = (each.name, of.fold.name), progress.done
            note = f"{each.name}, fold {of.fold.name}"
            try:
                metrics = run_cell(
                    study,
                    of,
                    each,
                    settings,
                    cell_folder(folder, each, of.fold),
                    device,
                    epoch_done=lambda note=note: progress.advance(note=note),  # type: ignore[misc]
                )
            except Exception as error:  # whatever it is: the other cells go on
                reason = _one_line(error)
                failed[key] = Problem(note, "cell", reason)
                progress.say(f"{note}: failed: {reason}")
            else:
                done[key] = metrics
                progress.say(_finished_words(note, metrics))
            progress.advance(at + settings.epochs - progress.done)  # a cell that went on or failed has done fewer
    return failed


def _load_what_all_need(device: torch.device) -> None:
    """Libraries that load at their first use; else the first cell would be charged for them."""
    import scipy.special  # noqa: F401
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401

    layer = torch.nn.Linear(2, 2, device=device)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2, device=device)).sum().backward()
    optimizer.step()


def _finished_words(note: str, metrics: dict[str, Any]) -> str:
    value = metrics["splits"][metrics["evaluated"]][metrics["figure"]]
    text = "not defined" if value is None else f"{value:.3f}"
    seconds = metrics["training"]["seconds"]
    after = "" if seconds is None else f", {clock_text(seconds)}"
    return f"{note}: {metrics['figure']} {text} on {metrics['evaluated']}{after}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:300]}"


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
