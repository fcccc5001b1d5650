"""Comparison of all systems on real labels, and on omics of real patients without slides.

    python benchmarks/comparison.py [--save] [--quick] [--systems clam_sb …] [--folds 0 …] [--epochs 4] [--out DIR]
                                    [--encoder longvit:longvit-tiny-stem]
    python benchmarks/comparison.py --omics [--save] [--quick] [--epochs 20] [--out FOLDER]

**Fields**: 338 H&E fields of colon (448 px), adenocarcinoma or healthy, five folds disjoint by site. Features of all 16
tiles of 112 px at the files' resolution, by `--encoder`: `stain-texture` needs no download, others are those of
`longvit features`. Every system is as published, except for 4 epochs instead of 20 and 16 landmarks for TransMIL. A bag
has no more tiles; the published 256 would be padding, at 0.8 s a step instead of a hundredth. Colour is a strong
shortcut in these fields, since every site has one label (benchmarks/colon.py). The table shows that all systems train
under one protocol, not which of them is best on slides.

A LongViT takes multiples of 32 px. For `longvit:` the same 16 tiles are enlarged from 112 to 128 px, bicubic as in the
tile reader: 16 patches of 32 px, each of 28 px of the file. All fields are new to the weights
longvit-tiny-stem.

**Omics**, on the published folds and tables of UCEC (123 copy numbers) and LUAD (3,096 features):

- SNN as published, and with its L1 term once per step instead of 32 times (`baselines/snn.py`)
- the omic branch of the fusions alone (two blocks, no L1)
- ridge Cox on the same inputs (benchmarks/omics.py)

And balanced logistic regression (standardised, C = 0.01, not tuned) on mutations, on the ten published subtyping folds
of BRCA and NSCLC.

Needs ../shared beside the project.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from longvit.comparison.compare import compare, print_table
from longvit.comparison.longvit_run import NAME as LONGVIT
from longvit.comparison.omics import read_omics
from longvit.comparison.settings import ComparisonSettings
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import assign, folds_of_column, read_folds
from longvit.data.slide_list import find_slides
from longvit.finetuning.evaluate import spread
from longvit.metrics.survival import c_index
from longvit.report.comparison import comparison_report
from longvit.slide_jobs.features import feature_folder, feature_slides
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import RunSettings
from longvit.slide_jobs.tile_encoders import encoder_name
from longvit.slides.tiles import TileSettings
from longvit.slides.tissue import TissueSettings
from omics import MCAT, folds_of, ridge_cox
from side_by_side import HERE, report

SHARED = HERE.parents[1] / "shared"
COLON, HIPT = SHARED / "slides" / "colon", SHARED / "data" / "hipt"
ENCODER, TILES = "stain-texture", TileSettings(tile_px=112, mpp=0.5, min_tissue=0)
FOR_LONGVIT = replace(TILES, tile_px=128, mpp=TILES.mpp * TILES.tile_px / 128)  # the same tiles, enlarged
MUTATIONS = {"brca": ("tcga_brca", ("IDC", "ILC"), 0.881), "nsclc": ("tcga_lung", ("LUAD", "LUSC"), 0.846)}
BRANCH = ("snn.blocks=2", "snn.l1=0", "snn.init=pytorch")


def rows_of(summary: Mapping[str, Any], **more: Any) -> Iterator[dict[str, Any]]:
    """Result rows of a comparison, one per system."""
    for row in summary["systems"]:
        result = {**more, "system": row["system"], "inputs": row["inputs"]}
        if row["system"] == LONGVIT:  # it reads slides
            result |= dict.fromkeys({"tiles", "tile_px", "encoder"} & set(result))
        for name in ("mean", "sd", "low", "high", "seconds", "cpu_seconds", "peak_memory_mib"):
            result[name] = None if row[name] is None else round(row[name], 3)
        result |= {"parameters": row["parameters"], "gap": row["gap"]}
        result["folds"] = [None if c["value"] is None else round(c["value"], 3) for c in row["cells"]]
        if errors := [f"fold {c['fold']}: {c['error']}" for c in row["cells"] if c["error"]]:
            result["errors"] = errors
        yield result


def result_name(name: str, encoder: str) -> str:
    """Name of results: with the name of the encoder appended, unless it is the default one."""
    return name if encoder == ENCODER else f"{name}_{encoder_name(encoder)}"


def fields(
    out: Path, settings: ComparisonSettings, only: list[str], longvit_run: Path | None, encoder: str
) -> list[dict[str, Any]]:
    """Compares all systems on the fields of colon."""
    cohort = read_cohort(COLON / "cohort.csv")
    tiles, folder = FOR_LONGVIT if encoder.startswith("longvit:") else TILES, out / "tiles"
    feature_slides(
        find_slides([COLON / "cohort.csv"]),
        folder,
        encoder,
        tiles,
        TissueSettings(),
        ReadSettings(mpp=TILES.mpp),  # the files state no resolution; tiles keep their pixels
        RunSettings(device=settings.device, threads=settings.threads),
    )
    result = compare(
        cohort,
        out / result_name("colon", encoder),
        folds_of_column(cohort),
        settings,
        features=feature_folder(folder, tiles, encoder),
        only=only,
        longvit_run=longvit_run,
    )
    print_table(result.summary)
    print(comparison_report(result.summary, result.folder))
    of_tiles = {"encoder": encoder, "tile_px": tiles.tile_px, "tiles": result.summary["tiles"]}
    return list(rows_of(result.summary, cohort="colon", figure="auc", **of_tiles))


def survival_of_omics(out: Path, settings: ComparisonSettings, quick: bool) -> Iterator[dict[str, Any]]:
    """Results on omics: SNN, SNN with less L1, its two-block form, and ridge Cox."""
    for name in ("ucec",) if quick else ("ucec", "luad"):
        table = MCAT / "clinical" / f"tcga_{name}_all_clean.csv.zip"
        cohort = read_cohort(table, label_column=None, need_files=False)
        for what, given in (("snn", ()), ("snn, L1 once", ("snn.l1=1e-4",)), ("omic branch", BRANCH)):
            result = compare(
                cohort,
                out / f"{name}_{what.replace(',', '').replace(' ', '_')}",
                read_folds(MCAT / "splits" / f"tcga_{name}"),
                replace(settings, task="survival", systems=("snn",), set=given, bins="cohort"),
                omics=read_omics(table),
                only=("0",) if quick else (),
            )
            yield from rows_of(result.summary, cohort=name, what=what, figure="c_index")
        values = [
            c_index(fold.months_val, fold.event_val, ridge_cox(fold))
            for fold in islice(folds_of(name), 1 if quick else None)
        ]
        mean, sd = spread(values, 0)
        yield {"cohort": name, "what": "ridge Cox", "mean": round(mean, 3), "sd": round(sd, 3)}


def subtyping_of_mutations(quick: bool) -> Iterator[dict[str, Any]]:
    """Results of logistic regression on the published folds (which leak patients, as published)."""
    for name, (files, classes, expected) in MUTATIONS.items():
        label = HIPT / "labels" / f"{files}_subset.csv.zip"
        cohort = read_cohort(label, label_column="oncotree_code", keep=classes, need_files=False)
        columns = [column for column in cohort.rows[0].extra_columns if column.endswith("_mut")]
        values = []
        for fold in read_folds(HIPT / "splits" / files)[: 1 if quick else None]:
            assigned = assign(cohort, fold, allow_leak=True)
            x, y = {}, {}
            for split in ("train", "test"):
                rows = assigned.split(split)
                x[split] = np.array([[float(row.extra_columns[c] or 0) for c in columns] for row in rows])
                y[split] = np.array([assigned.class_index(row) for row in rows])
            x = {split: np.nan_to_num(features) for split, features in x.items()}
            model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
            fitted = make_pipeline(StandardScaler(), model).fit(x["train"], y["train"])
            values.append(roc_auc_score(y["test"], fitted.decision_function(x["test"])))
        mean, sd = spread(values, 1)
        yield {
            "cohort": name,
            "what": f"{len(columns)} mutations, logistic regression",
            "figure": "auc",
            "mean": round(mean, 3),
            "sd": round(sd, 3),
            "protocol": expected,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omics", action="store_true")
    parser.add_argument("--systems", nargs="*", default=[])
    parser.add_argument("--folds", nargs="*", default=[], help="default: all five")
    parser.add_argument("--epochs", type=int, help="default: 4, with --omics 20 as published")
    parser.add_argument("--encoder", default=ENCODER, help=f"of the fields; default: {ENCODER}")
    parser.add_argument("--set", nargs="*", default=["transmil.landmarks=16"], help="settings of systems")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="folder of the runs, to be resumed; default: a temporary one")
    parser.add_argument("--longvit-run", type=Path, help="of `longvit train --folds column` on the same fields")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one system, one epoch, one fold: does it run")
    args = parser.parse_args()
    if args.quick:
        args.systems, args.folds, args.epochs, args.save = ["clam_sb"], ["0"], 1, False
    if not (COLON.is_dir() and MCAT.is_dir() and HIPT.is_dir()):
        raise SystemExit("needs the reference material: slides/colon, data/mcat and data/hipt are not at ../shared")
    settings = ComparisonSettings(
        systems=tuple(args.systems),
        set=tuple(args.set),
        epochs=args.epochs or (20 if args.omics else 4),
        threads=args.threads,
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        if args.omics:
            rows = [*subtyping_of_mutations(args.quick), *survival_of_omics(out, settings, args.quick)]
            report("comparison_omics", rows, args.save)
        else:
            rows = fields(out, settings, args.folds, args.longvit_run, args.encoder)
            report(result_name("comparison", args.encoder), rows, args.save)


if __name__ == "__main__":
    main()
