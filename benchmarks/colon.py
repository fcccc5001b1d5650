"""Fine-tuning on real labels: 338 H&E fields of colon, adenocarcinoma or healthy, five folds disjoint by site.

    python benchmarks/colon.py [--save] [--quick] [--folds 0 1 2 3 4] [--out FOLDER]

LongViT-tiny at 448 px **from random weights**, trained on four folds and tested on the fifth after the last epoch.
Beside it, on the same split: logistic regression on mean colour, on a colour histogram (8 × 8 × 8 cells of RGB), and on
the embedding of a random, frozen LongViT-tiny. Colour is a strong shortcut in these fields (every site has one
label), and it can point the wrong way at a new site: read balanced accuracy beside the AUC.

The settings are the same for all folds and were chosen before any test: colour is augmented because it is the
shortcut. Needs ../shared/slides/colon beside the project.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longvit.data.canvas_cache import cache_canvases
from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.datasets import CanvasDataset
from longvit.finetuning.controls import colour_histogram, pixel_features
from longvit.finetuning.run import FinetuneSettings, finetune
from longvit.metrics.classification import classification_metrics
from longvit.tasks.subtyping import logistic_probabilities
from side_by_side import HERE, report

COLON = HERE.parents[1] / "shared" / "slides" / "colon"
SETTINGS = FinetuneSettings(
    model="longvit_tiny_patch32",
    side_px=448,
    epochs=12,
    warmup_epochs=2,
    lr=3e-4,
    clip_norm=1.0,
    balanced=True,
    augmentation="flips+colour",
    bootstrap=0,
)
METRICS = ("auc", "balanced_accuracy")


def histogram_control(cohort: Cohort, settings: FinetuneSettings) -> dict[str, float]:
    """Metrics of logistic regression on the colour histogram of the same canvases."""
    assert settings.cache_dir is not None
    paths = cache_canvases(cohort.rows, settings.canvas(), settings.cache_dir).paths
    rows = {split: cohort.split(split) for split in ("train", "test")}
    labels = {split: np.array([cohort.class_index(row) for row in chosen]) for split, chosen in rows.items()}
    features = {s: pixel_features(CanvasDataset(chosen, {}, paths), colour_histogram) for s, chosen in rows.items()}
    p = logistic_probabilities(features["train"], labels["train"], {"test": features["test"]}, 2)
    return classification_metrics(labels["test"], p["test"])


def run_fold(cohort: Cohort, fold: str, settings: FinetuneSettings, out: Path) -> dict[str, Any]:
    """Trains on the other folds, tests on this one."""
    split = cohort.with_splits(["test" if row.fold == fold else "train" for row in cohort.rows])
    metrics = finetune(split, out / f"fold{fold}", settings).metrics
    systems = {
        "longvit_tiny": metrics["splits"]["test"],
        **{name: splits["test"] for name, splits in metrics["controls"].items()},
        "colour_histogram": histogram_control(split, settings),
    }
    counts = [sum(row.label == name for row in split.split("test")) for name in cohort.classes]
    return {
        "fold": fold,
        "test": dict(zip(cohort.classes, counts, strict=True)),
        **{name: {metric: round(values[metric], 3) for metric in METRICS} for name, values in systems.items()},
    }


def mean_and_sd(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation (ddof 1) over the folds."""
    summary: dict[str, Any] = {"fold": "mean ± SD"}
    for name in ("longvit_tiny", "random_encoder", "mean_colour", "colour_histogram"):
        for metric in METRICS:
            values = [row[name][metric] for row in rows]
            sd = statistics.stdev(values) if len(values) > 1 else float("nan")
            summary.setdefault(name, {})[metric] = f"{statistics.mean(values):.3f} ± {sd:.3f}"
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", nargs="*", default=list("01234"))
    parser.add_argument("--out", type=Path, help="folder of the runs, to be resumed; default: a temporary one")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="64 px, one epoch, one fold: does it run")
    args = parser.parse_args()
    if not COLON.is_dir():
        raise SystemExit("needs the reference material: slides/colon is not at ../shared")
    cohort = read_cohort(COLON / "cohort.csv")
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        settings = replace(SETTINGS, cache_dir=out / "canvases")
        if args.quick:
            settings = replace(settings, side_px=64, epochs=1, warmup_epochs=0.5)
        rows = [run_fold(cohort, fold, settings, out) for fold in (args.folds[:1] if args.quick else args.folds)]
        report("colon", [*rows, mean_and_sd(rows)], args.save and not args.quick)


if __name__ == "__main__":
    main()
