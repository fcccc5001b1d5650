"""Benchmark of frozen weights: linear probe and k-NN on fields that no pretraining has seen, and their pretraining.

    python benchmarks/pretraining.py [--save] [--quick] [--weights longvit-tiny-stem runs/other/teacher …]
    python benchmarks/pretraining.py --train FOLDER      # pretrains the shipped weights, with one command

Fields, all unseen by the shipped weights:

- colon: 338 fields reduced to 224 px, adenocarcinoma or healthy; four of five folds by source have both classes
- oral_scc: fields at 400×, carcinoma or normal; the stainings of fold 3, which `--train` leaves out, are tested
- squares: 576 squares of the example slide with a proxy label of grain (`folds.py`), enlarged to 128 px, five folds

A probe is trained on the other folds and tested on one: logistic regression on standardised embeddings, C = 0.01, and
k-NN, k = 20, by cosine. Nothing is tuned. Each gap is to random weights of the same size, three seeds, with the same
folds: its 95 % interval resamples the test cases, then folds and seeds (`paired.py`). Controls: mean colour, a colour
histogram (8 × 8 × 8 cells), and the targets of the objective texture themselves.

`--train` needs ../shared: fields of oral mucosa (folds 0 and 2; CC BY 4.0) and of osteosarcoma (CC BY 3.0).
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import folds
from longvit.config import load_settings
from longvit.data.cohort_table import read_cohort
from longvit.data.new_folds import make_folds
from longvit.data.slide_list import find_slides
from longvit.finetuning.controls import colour_histogram
from longvit.model.longvit import LongViT, create_model
from longvit.model.pretrained import load_model
from longvit.pretraining.patch_descriptors import describe
from longvit.pretraining.probes import embed_regions
from longvit.pretraining.run import PretrainSettings, pretrain
from longvit.report.pretraining import pretrain_report
from paired import Round, gap, weighted_aucs
from side_by_side import report
from trainability_tasks import REAL, SLIDES, table_of, why_absent

MODEL, SEEDS = "longvit_tiny_stem_patch32", (0, 1, 2)
UNSEEN_FOLD = "3"
TESTED = {"colon": ("1", "2", "3", "4"), "oral_scc": (UNSEEN_FOLD,)}
"""Folds of real fields with both classes, of sources that the shipped weights have not seen."""
K, C = 20, 0.01
Features = NDArray[np.floating]
Scores = list[tuple[str, NDArray[np.int64], list[str], NDArray[np.float64]]]
"""Per tested fold: name, labels, cases, scores."""


@dataclass(frozen=True)
class Fields:
    """Labelled fields with their folds."""

    name: str
    pixels: NDArray[np.uint8]
    """(n, S, S, 3)."""
    labels: NDArray[np.int64]
    folds: NDArray[np.str_]
    cases: list[str]
    tested: Sequence[str]


def read_fields(paths: Sequence[Path], side_px: int) -> NDArray[np.uint8]:
    """Images reduced or enlarged to a square, uint8 (n, S, S, 3)."""
    images = (Image.open(path).convert("RGB") for path in paths)
    return np.stack([np.asarray(image.resize((side_px, side_px), Image.Resampling.LANCZOS)) for image in images])


def real(name: str, tested: Sequence[str]) -> Fields:
    """Fields of ../shared; `tested`: values of the column fold."""
    kind = REAL[name]
    rows = table_of(kind)
    pixels = read_fields([SLIDES / kind.folder / row["path"] for row in rows], kind.side_px)
    labels = np.array([int(row["label"] in kind.positive) for row in rows])
    return Fields(name, pixels, labels, np.array([r["fold"] for r in rows]), [r["case_id"] for r in rows], tested)


def squares(folder: Path, side_px: int = 128) -> Fields:
    """Squares of the example slide, with folds by block."""
    cohort = read_cohort(folds.write_cohort(folder))
    made = make_folds(cohort, folds.FOLDS, strata=[str(row.label) for row in cohort.rows], by_site=True)
    fold_of = {slide_id: fold.name for fold in made for slide_id in fold.test}
    names = np.array([fold_of[row.slide_id] for row in cohort.rows])
    labels = np.array([cohort.class_index(row) for row in cohort.rows]) ^ 1  # grainy, the first class, is positive
    cases = [str(row.site) for row in cohort.rows]
    pixels = read_fields([Path(row.path) for row in cohort.rows if row.path is not None], side_px)
    return Fields("squares", pixels, labels, names, cases, sorted(set(fold_of.values())))


def probe(fields: Fields, features: Features) -> dict[str, Scores]:
    """Scores of both probes on every tested fold."""
    scores: dict[str, Scores] = {"linear": [], "knn": []}
    for fold in fields.tested:
        test = fields.folds == fold
        scaler = StandardScaler().fit(features[~test])
        train_x, test_x = scaler.transform(features[~test]), scaler.transform(features[test])
        y = fields.labels[~test]
        model = LogisticRegression(C=C, class_weight="balanced", max_iter=2000).fit(train_x, y)
        cosine = _unit(test_x) @ _unit(train_x).T
        nearest = np.argsort(-cosine, 1)[:, :K]
        votes = (np.take_along_axis(cosine, nearest, 1) * (2 * y[nearest] - 1)).sum(1)
        where = f"{fields.name} {fold}", fields.labels[test], [c for c, t in zip(fields.cases, test, strict=True) if t]
        scores["linear"].append((*where, model.decision_function(test_x)))
        scores["knn"].append((*where, votes))
    return scores


def _unit(x: Features) -> Features:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def embedded(model: LongViT, pixels: NDArray[np.uint8]) -> Features:
    with torch.autocast("cpu", torch.bfloat16):
        return embed_regions(model, pixels, 32)


def random_model(seed: int) -> LongViT:
    torch.manual_seed(seed)
    return create_model(MODEL)


def targets(pixels: NDArray[np.uint8]) -> Features:
    """Mean and spread over the patches of the descriptors that the objective texture predicts."""
    parts = []
    for start in range(0, len(pixels), 32):
        crops = torch.from_numpy(pixels[start : start + 32]).permute(0, 3, 1, 2).float() / 255
        described = describe(crops, 32)
        parts.append(torch.cat([described.mean(1), described.std(1)], 1).numpy())
    return np.concatenate(parts)


def mean_colour(pixels: NDArray[np.uint8]) -> Features:
    return pixels.mean((1, 2)) / 255


def histogram(pixels: NDArray[np.uint8]) -> Features:
    return np.stack([colour_histogram(image) for image in pixels])


def compare(fields: Fields, systems: dict[str, Callable[[NDArray[np.uint8]], Features]]) -> list[dict[str, Any]]:
    """Rows of all systems on one set of fields: AUC of both probes and its gap to random weights."""
    randoms = [probe(fields, embedded(random_model(seed), fields.pixels)) for seed in SEEDS]
    rows = [_row(fields, f"random weights {seed}", scores, []) for seed, scores in zip(SEEDS, randoms, strict=True)]
    for name, system in systems.items():
        rows.append(_row(fields, name, probe(fields, system(fields.pixels)), randoms))
    return rows


def _row(fields: Fields, name: str, scores: dict[str, Scores], others: list[dict[str, Scores]]) -> dict[str, Any]:
    row: dict[str, Any] = {"fields": fields.name, "system": name}
    for kind, ours in scores.items():
        aucs = [weighted_aucs(y, s, np.ones((1, len(y))))[0] for _, y, _, s in ours]
        row[kind] = round(float(np.mean(aucs)), 3)
        if others:
            rounds = [Round(*a, b[3]) for other in others for a, b in zip(ours, other[kind], strict=True)]
            row[f"{kind}_gap"] = gap(rounds).text()
    return row


def train(folder: Path) -> None:
    """Pretrains the shipped weights: recipe texture-tiny on the fields whose licences allow it."""
    missing = [reason for name in ("oral_scc", "osteosarcoma") if (reason := why_absent(name))]
    if missing:
        raise SystemExit("; ".join(missing))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, keep in (("oral-scc", lambda row: row["fold"] != UNSEEN_FOLD), ("osteosarcoma", lambda row: True)):
        with (SLIDES / name / "cohort.csv").open(newline="") as file:
            paths += [SLIDES / name / row["path"] for row in csv.DictReader(file) if keep(row)]
    with (folder / "fields.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["slide_id", "path"], *([path.stem, path] for path in paths)])
    settings = load_settings(PretrainSettings, "texture-tiny", ignore_mpp=True, device="cpu", num_workers=1)
    result = pretrain(find_slides([folder / "fields.csv"]), folder / "run", settings, show=pretrain_report)
    print(result.summary())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=["longvit-tiny-stem"])
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="pretrain here instead; the same command resumes")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the squares alone, without controls: does it run")
    args = parser.parse_args()
    if args.train is not None:
        train(args.train)
        return
    systems: dict[str, Callable[[NDArray[np.uint8]], Features]] = {
        name: partial(embedded, load_model(name)) for name in args.weights
    }
    with tempfile.TemporaryDirectory() as temporary:
        sets = [squares(Path(temporary))]
    if not args.quick:
        systems |= {"mean colour": mean_colour, "colour histogram": histogram, "targets of texture": targets}
        for name, tested in TESTED.items():
            if reason := why_absent(name):
                print(reason)
            else:
                sets.append(real(name, tested))
    rows = [row for fields in sets for row in compare(fields, systems)]
    report("pretraining", rows, args.save and not args.quick)


if __name__ == "__main__":
    main()
