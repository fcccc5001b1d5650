"""Benchmark of the shipped pretrained weights against random weights and mean colour, on unseen labels.

    python benchmarks/pretrained.py [--save] [--quick] [--data squares colon] [--weights NAME] [--out FOLDER]

Two sets of labelled fields, none of which the weights were pretrained on:

- squares: 576 squares of 64 px (32 µm) of the example slide, five folds by block, with a proxy label that colour does
  not predict (see `benchmarks/folds.py`)
- colon: 338 H&E fields of colon, adenocarcinoma or healthy; trained on the sites of folds 0 to 2 (used by pretraining
  without labels), tested on the sites of folds 3 and 4 (needs ../shared)

Each has five systems under one protocol. Three are linear heads: on mean colour, on a random frozen encoder and on the
frozen pretrained one. Two are whole networks, from random and from pretrained weights, with the same settings. A gap is
the mean over the folds of the difference of AUCs on the test fields. Its 95 % bootstrap interval resamples cases
(squares: the squares), the same ones for both systems.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from folds import FOLDS, QUICK_STEP, SETTINGS, write_cohort
from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import Fold, assign
from longvit.data.new_folds import make_folds
from longvit.finetuning.crossval import cross_validate, replace_splits
from longvit.finetuning.fold_metrics import Round, gaps
from longvit.finetuning.prepare_cohort import prepare_cohort
from longvit.finetuning.settings import FinetuneSettings
from longvit.tasks.task import task_class
from side_by_side import HERE, report

COLON = HERE.parents[1] / "shared" / "slides" / "colon"
PAIRS = (
    ("frozen_weights", "random_encoder"),
    ("frozen_weights", "mean_colour"),
    ("trained_from_weights", "trained_from_random"),
    ("trained_from_weights", "mean_colour"),
    ("trained_from_weights", "frozen_weights"),
)


def squares(out: Path, quick: bool) -> tuple[Cohort, tuple[Fold, ...], FinetuneSettings]:
    """Cohort, folds and settings of the squares; fewer epochs than `folds.py`, as pretrained weights need fewer."""
    cohort = read_cohort(write_cohort(out / "squares", QUICK_STEP if quick else 1))
    settings = FinetuneSettings(epochs=6, **SETTINGS)
    strata = task_class("subtyping").strata(cohort, settings)
    return cohort, make_folds(cohort, 2 if quick else FOLDS, strata=strata, by_site=True), settings


def colon(out: Path, quick: bool) -> tuple[Cohort, tuple[Fold, ...], FinetuneSettings]:
    """Cohort, one fold with sites unseen by pretraining, and settings (of `colon.py`) of the colon fields."""
    from colon import SETTINGS as COLON_SETTINGS

    cohort = read_cohort(COLON / "cohort.csv")
    ids = {unseen: tuple(r.slide_id for r in cohort.rows if (r.fold in ("3", "4")) == unseen) for unseen in (0, 1)}
    return (
        cohort,
        (Fold("unseen_sites", train=ids[0], test=ids[1]),),
        replace(COLON_SETTINGS, epochs=4, warmup_epochs=1, bootstrap=500),
    )


DATA = {"squares": squares, "colon": colon}


def rounds_of(cohort: Cohort, folds: tuple[Fold, ...], settings: FinetuneSettings, folder: Path) -> list[Round]:
    """Trains on every fold; returns the predictions of each."""
    cross_validate(cohort, folder, folds, settings)
    rounds = []
    for fold in folds:
        prepared = prepare_cohort(assign(replace_splits(cohort), fold, allow_leak=settings.allow_leak), settings)
        rounds.append(Round(prepared, folder / f"fold_{fold.name}", "test"))
    return rounds


def compare(name: str, weights: str, out: Path, quick: bool) -> dict[str, Any]:
    """Results of one set of fields."""
    cohort, folds, settings = DATA[name](out, quick)
    if quick:
        settings = replace(settings, side_px=64, epochs=1, warmup_epochs=0.5)
    settings = replace(settings, cache_dir=out / f"{name}_canvases")
    scratch = rounds_of(cohort, folds, settings, out / f"{name}_random")
    pretrained = rounds_of(cohort, folds, replace(settings, weights=Path(weights)), out / f"{name}_pretrained")
    systems = [
        {**b.controls, "trained_from_random": a.model, "trained_from_weights": b.model}
        for a, b in zip(scratch, pretrained, strict=True)
    ]
    metric = pretrained[0].task.main_metric
    values = {system: [metric(fold[system]) for fold in systems] for system in systems[0]}
    ahead: dict[str, dict[str, float]] = {}
    for ours, other in PAIRS:
        for r, fold in zip(pretrained, systems, strict=True):
            r.model, r.controls = fold[ours], {other: fold[other]}
        gap = gaps(pretrained, 1000, 0)[other]
        ahead[f"{ours} - {other}"] = {key: round(value, 3) for key, value in gap.items()}
    return {
        "fields": name,
        "trained_on": [len(fold.train) for fold in folds],
        "tested_on": [len(fold.test) for fold in folds],
        "auc": {
            system: {
                "mean": round(statistics.mean(aucs), 3),
                "sd": round(statistics.stdev(aucs), 3) if len(aucs) > 1 else None,
            }
            for system, aucs in values.items()
        },
        "gaps": ahead,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--weights", default="longvit-tiny-dino")
    parser.add_argument("--out", type=Path, help="folder of the runs, to be resumed; default: a temporary one")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="64 px, one epoch, fewer squares and folds: does it run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        rows = []
        for name in args.data:
            if name == "colon" and not COLON.is_dir():
                print("colon: left out, the reference material is not at ../shared")
                continue
            rows.append(compare(name, args.weights, out, args.quick))
        report("pretrained", rows, args.save and not args.quick)


if __name__ == "__main__":
    main()
