"""Systems of `evidence.py` on fields of real tissue: LongViT and its controls, each by the package's own function.

    longvit_random      `longvit.finetune` from random weights
    longvit_pretrained  the same from the shipped weights (`--weights`)
    mean_pooling        `longvit.compare` on frozen features of the same network, tiles of 64 px; logistic regression
    attention_mil       likewise: ABMIL (Ilse, Tomczak and Welling 2018)
    mean_colour         logistic regression on red, green and blue
    colour_histogram    logistic regression on 8 × 8 × 8 cells of RGB
    stain_texture       logistic regression on 137 numbers of stain, colour and local binary patterns (`stain-texture`)

A trial trains on a share of the other sources' fields and scores all fields of the held-out source. Shares are nested:
the cases of a smaller share are among those of a larger one.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longvit.comparison.compare import compare, trial_folder
from longvit.comparison.settings import ComparisonSettings
from longvit.data.canvas_cache import CanvasSettings, cache_canvases
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.data.datasets import CanvasDataset
from longvit.data.folds import Fold
from longvit.data.slide_list import find_slides
from longvit.files import write_text
from longvit.finetuning.controls import colour_histogram, pixel_features
from longvit.finetuning.results import read_logits
from longvit.finetuning.run import FinetuneSettings, finetune
from longvit.model.longvit import SIZES, LongViT
from longvit.slide_jobs.features import feature_folder, feature_slides
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.stain_texture import describe_tile
from longvit.slides.tiles import TileSettings
from longvit.slides.tissue import TissueSettings
from longvit.tasks.subtyping import logistic_probabilities
from paired import scored
from trainability_tasks import REAL, SLIDES, table_of

TILE_PX, COMPARED_EPOCHS = 64, 20
FINETUNED = ("longvit_random", "longvit_pretrained")
POOLED = ("mean_pooling", "attention_mil")
PIXELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_colour": lambda pixels: pixels.mean((0, 1)),
    "colour_histogram": colour_histogram,
    "stain_texture": describe_tile,
}
SYSTEMS = (*FINETUNED, *POOLED, *PIXELS)


@dataclass(frozen=True)
class Trial:
    """A system, trained on a share of the fields of the other sources and tested on one source."""

    fields: str
    """oral_scc, osteosarcoma or colon (`trainability_tasks.REAL`)."""
    system: str
    fold: str
    """The held-out source."""
    seed: int
    share: float
    """Share of the training cases of each class."""
    side_px: int
    epochs: int | None
    """None where the system has no such setting."""
    width: int | None
    model: str | None
    weights: str | None


@dataclass(frozen=True)
class Places:
    """Folder for canvases, features and runs, which trials share, and threads of a process."""

    work: Path
    threads: int = 1


def cohort_of(name: str, work: Path) -> tuple[Path, Cohort]:
    """Cohort table and cohort of a set of fields: two classes, `fold` is the source, `unit` is what a share counts."""
    fields, text = REAL[name], io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["case_id", "slide_id", "label", "fold", "unit", "mpp", "path"])
    for row in table_of(fields):
        path = SLIDES / fields.folder / row["path"]
        label = "positive" if row["label"] in fields.positive else "negative"
        # The files state no resolution: their pixels count as 1 µm, so that tiles can be asked for by size.
        writer.writerow([row["case_id"], path.stem, label, row[fields.source], row[fields.case], 1, path])
    work.mkdir(parents=True, exist_ok=True)
    write_text(work / f"{name}.csv", text.getvalue())
    return work / f"{name}.csv", read_cohort(work / f"{name}.csv")


def training_rows(cohort: Cohort, fold: str, share: float, seed: int) -> list[SlideRow]:
    """Rows of a share of the units of each class outside the held-out source; at least one unit."""
    rows = [row for row in cohort.rows if row.fold != fold]
    chosen: set[tuple[str, str]] = set()
    for label in cohort.classes:
        units = sorted({row.extra_columns["unit"] for row in rows if row.label == label})
        order = np.random.default_rng(seed).permutation(len(units))
        chosen |= {(label, units[i]) for i in order[: ceil(share * len(units))]}
    return [row for row in rows if (row.label, row.extra_columns["unit"]) in chosen]


def run_trial(trial: Trial, places: Places) -> dict[str, Any]:
    """Columns of a trial's row: training slides, parameters, AUC and ranks."""
    table, cohort = cohort_of(trial.fields, places.work)
    train = training_rows(cohort, trial.fold, trial.share, trial.seed)
    test = [row for row in cohort.rows if row.fold == trial.fold]
    with tempfile.TemporaryDirectory(dir=places.work) as out:
        if trial.system in FINETUNED:
            scores, parameters = _finetuned(trial, cohort, train, Path(out), places)
        elif trial.system in POOLED:
            scores, parameters = _pooled(trial, table, cohort, train, Path(out), places)
        else:
            scores, parameters = _on_pixels(trial, cohort, train, places)
    units = [row.extra_columns["unit"] for row in test]
    labels = [cohort.class_index(row) for row in test]
    return {
        "slides": len(train),
        "parameters": parameters,
        **scored(f"{trial.fields} {trial.fold}", labels, [scores[row.slide_id] for row in test], units),
    }


def _finetuned(
    trial: Trial, cohort: Cohort, train: list[SlideRow], out: Path, places: Places
) -> tuple[dict[str, float], int]:
    assert trial.epochs is not None
    assert trial.model is not None
    weights: Path | None = None if trial.weights is None else Path(trial.weights)
    size = SIZES[trial.model]
    if weights is None and trial.width not in (None, size.embed_dim):  # a narrower network with random weights
        import torch

        torch.manual_seed(trial.seed)
        weights = LongViT(replace(size, embed_dim=trial.width, ffn_dim=4 * trial.width)).save_pretrained(out / "start")
    names = {row.slide_id for row in train}
    splits = ["test" if row.fold == trial.fold else "train" if row.slide_id in names else None for row in cohort.rows]
    settings = FinetuneSettings(
        model=trial.model,
        weights=weights,
        side_px=trial.side_px,
        epochs=trial.epochs,
        warmup_epochs=trial.epochs / 6,
        lr=3e-4,
        batch_size=16,
        clip_norm=1.0,
        balanced=True,
        augmentation="flips+colour",
        seed=trial.seed,
        controls=False,
        bootstrap=0,
        device="cpu",
        threads=places.threads,
        num_workers=1,
        cache_dir=places.work / "canvases",
    )
    result = finetune(cohort.with_splits(splits), out / "run", settings)
    predictions = read_logits(out / "run" / "outputs.csv", cohort)["model"]["test"]
    return _by_slide(predictions.rows, predictions.logits), result.metrics["training"]["parameters"]


def _pooled(
    trial: Trial, table: Path, cohort: Cohort, train: list[SlideRow], out: Path, places: Places
) -> tuple[dict[str, float], int]:
    encoder, folder = f"longvit:{trial.weights}", places.work / f"features_{trial.fields}_{trial.side_px}"
    with Image.open(cohort.rows[0].path) as image:
        tiles = TileSettings(TILE_PX, mpp=image.width / trial.side_px, min_tissue=0)
    feature_slides(
        find_slides([table]),
        folder,
        encoder,
        tiles,
        TissueSettings(),
        run_settings=RunSettings(device="cpu", threads=places.threads),
    )
    settings = ComparisonSettings(
        systems=(trial.system,), epochs=COMPARED_EPOCHS, seed=trial.seed, device="cpu", threads=places.threads
    )
    test = tuple(row.slide_id for row in cohort.rows if row.fold == trial.fold)
    fold = Fold(trial.fold, train=tuple(row.slide_id for row in train), test=test)
    result = compare(cohort, out / "run", (fold,), settings, features=feature_folder(folder, tiles, encoder))
    if result.failed:
        raise RuntimeError(result.failed[0].error)
    done = trial_folder(out / "run", settings.system_specs()[0], fold)
    predictions = read_logits(done / "outputs.csv", cohort)["model"]["test"]
    return _by_slide(predictions.rows, predictions.logits), result.summary["systems"][0]["parameters"]


@lru_cache(maxsize=8)
def _features(name: str, side_px: int, system: str, work: Path) -> dict[str, np.ndarray]:
    """Slide -> features of its canvas."""
    _, cohort = cohort_of(name, work)
    paths = cache_canvases(cohort.rows, CanvasSettings(side_px, "stretch"), work / "canvases").paths
    features = pixel_features(CanvasDataset(cohort.rows, {}, paths), PIXELS[system])
    return dict(zip((row.slide_id for row in cohort.rows), features, strict=True))


def _on_pixels(trial: Trial, cohort: Cohort, train: list[SlideRow], places: Places) -> tuple[dict[str, float], int]:
    features = _features(trial.fields, trial.side_px, trial.system, places.work)
    test = tuple(row for row in cohort.rows if row.fold == trial.fold)
    x, others = (np.stack([features[row.slide_id] for row in rows]) for rows in (train, test))
    labels = np.array([cohort.class_index(row) for row in train])
    p = logistic_probabilities(x, labels, {"test": others}, 2)["test"]
    return _by_slide(test, np.log(np.maximum(p, 1e-300))), x.shape[1] + 1


def _by_slide(rows: tuple[SlideRow, ...], logits: np.ndarray) -> dict[str, float]:
    """Slide -> difference of its two logits."""
    return {row.slide_id: float(z[1] - z[0]) for row, z in zip(rows, logits, strict=True)}
