"""Deletion test of patch contributions on two trained models: do the patches that the map names move the score?

    python benchmarks/deletion.py [--save] [--models demo colon] [--slides 40] [--out FOLDER]

- demo: the model of `longvit demo` (a region rich in haematoxylin or not), on all test regions
- colon: the shipped weights `longvit-tiny-stem`, frozen, at 224 px, with a logistic head for adenocarcinoma or
  healthy that is fitted on folds 0 to 2 of the colon fields and tested on folds 3 and 4, whose sites neither the head
  nor the pretraining has seen (needs ../shared); `--slides` fields, evenly spaced

For each slide, patches are replaced by background: highest contributions first, lowest first, and in 5 random orders.
A row has the areas between curves (see `longvit.heatmaps.deletion`) with 95 % intervals by patient, and the mean
curves. Two further rows have other orders in place of the contributions. `darkness` is the distance of a patch from
the background colour. `shuffled` are the contributions shuffled over the patches (expected: 0).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from longvit.data.canvas_cache import CanvasSettings, cache_canvases
from longvit.data.cohort import SlideRow
from longvit.data.cohort_table import read_cohort
from longvit.errors import InputError
from longvit.heatmaps.deletion import FRACTIONS, DeletionCurves, deletion, deletion_of, scorer, summarise
from longvit.model.longvit import LongViT
from longvit.model.pretrained import load_model
from longvit.slides.canvas import read_canvas
from side_by_side import HERE, report

COLON = HERE.parents[1] / "shared" / "slides" / "colon"
ORDERS = 5
SIDE_PX = 224
TRAIN_FOLDS = ("0", "1", "2")


def test_rows(model: LongViT, rows: Sequence[SlideRow], cache: Path, name: str) -> list[dict[str, Any]]:
    """A row for each order of patches: the contributions, the darkness, the shuffled contributions."""
    config = model.config
    paths = cache_canvases(rows, CanvasSettings(config.image_px, config.fit), cache).paths
    curves: dict[str, list[DeletionCurves]] = {"contributions": [], "darkness": [], "shuffled": []}
    patients, blank = [], 0
    for i, row in enumerate(rows):
        canvas = read_canvas(paths[row.slide_id])
        pixels, background = np.asarray(canvas), canvas.source.background
        score_of, contributions, per_call = scorer(model, canvas)
        values = contributions.per_patch
        side, patch_px = len(values), config.patch_px
        distance = np.abs(pixels.astype(np.float32) - np.asarray(background)).mean(2)
        dark = distance.reshape(side, patch_px, side, patch_px).mean((1, 3))
        shuffled = np.random.default_rng(i).permutation(values.ravel()).reshape(values.shape)
        try:
            first = deletion(model, canvas, orders=ORDERS, seed=i)
        except InputError:
            blank += 1
            continue
        curves["contributions"].append(first)
        for other, scores in (("darkness", dark), ("shuffled", shuffled)):
            result = deletion_of(score_of, pixels, scores, background, orders=1, seed=i, per_call=per_call)
            curves[other].append(DeletionCurves(result.fractions, result.most, result.least, first.random, 0))
        patients.append(row.case_id)
    return [summary(name, order, found, patients, blank) for order, found in curves.items()]


def summary(
    name: str, order: str, curves: Sequence[DeletionCurves], patients: Sequence[str], blank: int
) -> dict[str, Any]:
    """Areas with intervals, and the mean fall of the score at each fraction."""
    row: dict[str, Any] = {"model": name, "order": order, "slides": len(curves), "patients": len(set(patients))}
    row["blank_slides"] = blank
    for area in ("most_fall", "least_fall"):
        found = summarise([getattr(curve, area) for curve in curves], patients)
        row[area] = [round(value, 4) for value in (found.mean, found.low, found.high) if value is not None]
    start = np.array([curve.most[0] for curve in curves])[:, None]
    row["score_before"] = round(float(start.mean()), 3)
    row["fractions"] = list(FRACTIONS)
    for part, scores in (
        ("highest_first", [curve.most for curve in curves]),
        ("lowest_first", [curve.least for curve in curves]),
        ("random", [curve.random.mean(0) for curve in curves]),
    ):
        row[part] = (start - np.stack(scores)).mean(0).round(3).tolist()
    return row


def demo(out: Path) -> list[dict[str, Any]]:
    """Rows of the demo's model on its test regions."""
    from longvit.demo import run_demo

    result = run_demo(out / "demo", device="cpu").finetuned
    cohort = read_cohort(out / "demo" / "cohort.csv")
    model = load_model(result.model_dir)
    return test_rows(model, cohort.split("test"), out / "demo" / "run" / "canvases", "demo")


def colon(out: Path, slides: int) -> list[dict[str, Any]]:
    """Rows of a linear head on the shipped weights, on colon fields of sites that were not seen."""
    cohort = read_cohort(COLON / "cohort.csv")
    cache = out / "canvases"
    paths = cache_canvases(cohort.rows, CanvasSettings(SIDE_PX), cache).paths
    model = load_model("longvit-tiny-stem")
    model.config = replace(model.config, image_px=SIDE_PX)
    features = np.stack([model.embed(read_canvas(paths[row.slide_id])) for row in cohort.rows])
    labels = np.array([cohort.class_index(row) for row in cohort.rows])
    is_train = np.array([row.fold in TRAIN_FOLDS for row in cohort.rows])
    weight_D, bias = logistic_head(features[is_train], labels[is_train])
    model.reset_classifier(2, cohort.classes)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(np.stack([-weight_D, weight_D]) / 2))
        model.head.bias.copy_(torch.tensor([-bias, bias]) / 2)
    scores = features[~is_train] @ weight_D + bias
    tested = [row for row, train in zip(cohort.rows, is_train, strict=True) if not train]
    chosen = np.linspace(0, len(tested) - 1, min(slides, len(tested))).round().astype(int)
    rows = test_rows(model, [tested[i] for i in chosen], cache, "colon")
    return [{**row, "test_auc": round(float(roc_auc_score(labels[~is_train], scores)), 3)} for row in rows]


def logistic_head(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias of a balanced logistic regression on standardised features, for the raw features."""
    mean, sd = features.mean(0), features.std(0) + 1e-6
    fitted = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit((features - mean) / sd, labels)
    weight_D = fitted.coef_[0] / sd
    return weight_D.astype(np.float32), float(fitted.intercept_[0] - weight_D @ mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["demo", "colon"], choices=["demo", "colon"])
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--out", type=Path, help="folder of the runs, to be resumed; default: a temporary one")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if "colon" in args.models and not COLON.is_dir():
        raise SystemExit("needs the reference material: slides/colon is not at ../shared; --models demo runs without")
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        rows = demo(out) if "demo" in args.models else []
        rows += colon(out, args.slides) if "colon" in args.models else []
        report("deletion", rows, args.save)


if __name__ == "__main__":
    main()
