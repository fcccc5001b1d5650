"""Folders of cross-validations as the command writes them, with made-up but realistic numbers; one command a folder.

python tests/report/report_folders.py OUT: OUT/subtyping, OUT/kidney, OUT/survival, each with its index.html.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.metrics.classification import bootstrap, classification_metrics
from longvit.metrics.survival import bootstrap_c_index, c_index

SETTINGS = {"model": "longvit_small_patch32", "side_px": 1024, "epochs": 10, "lr": 5e-5, "batch_size": 8, "seed": 0}
REST = {
    "settings": SETTINGS,
    "longvit": "0.2.0",
    "torch": "2.13.0",
    "python": "3.11.7",
    "notes": ["26 slides of the folds have no label and were left out."],
    "commit": "0123456789abcdef",
}


def write_folder(folder: Path, summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """crossval.json and predictions.csv; returns the former as read back."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "crossval.json").write_text(json.dumps(summary, allow_nan=False))
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return json.loads((folder / "crossval.json").read_text())


def subtyping_folder(
    folder: Path, *, classes: Sequence[str] = ("IDC", "ILC"), n_folds: int = 10, skill: float = 1.6, slides: int = 80
) -> dict[str, Any]:
    """Repeated splits of one cohort, as HIPT's: test sets overlap, patients leak, two slides of some patients."""
    rng = np.random.default_rng(7)
    n = slides * 8
    share = np.array([0.8, 0.2] if len(classes) == 2 else [0.55, 0.32, 0.13])
    label = rng.choice(len(classes), size=n, p=share)
    hard = rng.normal(size=(n, len(classes)))  # a slide that is hard is hard in every fold
    folds, lines, pool = [], [], []
    for k in range(n_folds):
        test = rng.choice(n, slides, replace=False)
        y = label[test]

        def probabilities(gain: float, y: np.ndarray = y, test: np.ndarray = test) -> np.ndarray:
            z = gain * np.eye(len(classes))[y] + 0.7 * hard[test] + rng.normal(size=(slides, len(classes))) * 0.6
            e = np.exp(1.3 * z + np.log(share))
            return e / e.sum(1, keepdims=True)

        p = probabilities(skill * rng.uniform(0.7, 1.2))
        folds.append(
            {
                "fold": str(k),
                "last": classification_metrics(y, p),
                "best_val": {"epoch": 7, **classification_metrics(y, probabilities(skill))},
                "controls": {
                    "mean_colour": classification_metrics(y, probabilities(0.35)),
                    "random_encoder": classification_metrics(y, probabilities(0.55)),
                },
                "leaks": {"train_test": 4 + k % 3, "train_val": 3, "val_test": 1},
                "slides": {"train": slides * 7 - 9, "val": slides - 3, "test": slides},
            }
        )
        pool += [(test[i] // 2, y[i], p[i]) for i in range(slides)]
        for i, of in zip(test, p, strict=True):
            lines.append(
                {"fold": k, "case_id": f"TCGA-A{i // 2:03d}", "slide_id": f"TCGA-A{i // 2:03d}-DX{i % 2 + 1}"}
                | {"split": "test", "label": classes[label[i]]}
                | {f"prob_{name}": f"{of[c]:.9g}" for c, name in enumerate(classes)}
                | {"prediction": classes[int(of.argmax())]}
            )
    labels, p = np.array([y for _, y, _ in pool]), np.stack([of for _, _, of in pool])
    intervals = bootstrap(labels, p, [str(patient) for patient, _, _ in pool], resamples=200)
    summary = {
        "task": "subtyping",
        "classes": list(classes),
        "cell": "TCGA-BRCA, 1,024²" if len(classes) == 2 else "TCGA-RCC, 1,024²",
        "figure": "auc",
        "mean": float(np.mean([f["last"]["auc"] for f in folds])),
        "sd": float(np.std([f["last"]["auc"] for f in folds], ddof=1)),
        "ddof": 1,
        "folds": folds,
        "pooled": {
            name: {"value": value, "low": intervals[name].low, "high": intervals[name].high}
            for name, value in classification_metrics(labels, p).items()
        },
        "published": {"row": "HIPT", "mean": 0.874, "sd": 0.060} if len(classes) == 2 else None,
        "evaluated": "test",
        "optimistic_best_val": False,
        "gap": {"mean_colour": {"value": 0.2, "low": 0.12, "high": 0.29}},
        **REST,
    }
    return write_folder(folder, summary, lines)


def survival_folder(folder: Path, *, n_folds: int = 5, patients: int = 400, skill: float = 0.8) -> dict[str, Any]:
    """A partition as MCAT's: val is the evaluation set; every tenth patient has two slides."""
    rng = np.random.default_rng(5)
    hazard = rng.normal(size=patients)
    time, end = rng.exponential(60 * np.exp(-hazard)), rng.uniform(5, 120, patients)
    months, event = np.minimum(time, end).round(2), (time <= end).astype(int)
    fold_of = rng.permutation(patients) % n_folds
    risk = skill * hazard + rng.normal(size=patients)
    folds, lines = [], []
    for k in range(n_folds):
        here = np.flatnonzero(fold_of == k)
        metrics = {"c_index": c_index(months[here], event[here], risk[here])}
        noise = {"c_index": c_index(months[here], event[here], rng.normal(size=len(here)) + 0.2 * hazard[here])}
        folds.append(
            {
                "fold": str(k),
                "last": metrics,
                "best_val": {"epoch": 4, "c_index": metrics["c_index"] + 0.03},
                "controls": {"mean_colour": noise, "random_encoder": noise},
                "leaks": {"train_test": 0, "train_val": 0, "val_test": 0},
                "slides": {"train": patients - len(here), "val": len(here)},
            }
        )
        for i in here:
            for slide in range(2 if i % 10 == 0 else 1):
                lines.append(
                    {"fold": k, "case_id": f"TCGA-B{i:03d}", "slide_id": f"TCGA-B{i:03d}-DX{slide + 1}", "split": "val"}
                    | {"survival_months": months[i], "event": event[i]}
                    | {"risk": f"{10 * k + risk[i]:.9g}", "hazard_0": 0.1}
                )
    values = [f["last"]["c_index"] for f in folds]
    interval = bootstrap_c_index(months, event, risk, [str(i) for i in range(patients)], resamples=200)
    summary = {
        "task": "survival",
        "classes": ["0-12 months", "12-end months"],
        "cell": "TCGA-UCEC, 1,024²",
        "figure": "c_index",
        "mean": float(np.mean(values)),
        "sd": float(np.std(values)),
        "ddof": 0,
        "folds": folds,
        "pooled": {"c_index": {"value": c_index(months, event, risk), "low": interval.low, "high": interval.high}},
        "published": {"row": "MCAT", "mean": 0.622, "sd": 0.019},
        "evaluated": "val",
        "optimistic_best_val": True,
        **REST,
    }
    return write_folder(folder, summary, lines)


if __name__ == "__main__":
    from longvit.report import crossval_report

    out = Path(sys.argv[1])
    shown = {path.stem: path for path in map(Path, sys.argv[2:])}
    for name, summary in (
        ("subtyping", subtyping_folder(out / "subtyping")),
        ("kidney", subtyping_folder(out / "kidney", classes=("CCRCC", "PRCC", "CHRCC"), n_folds=3, skill=0.5)),
        ("survival", survival_folder(out / "survival")),
    ):
        print(crossval_report(summary, out / name, images=shown))
