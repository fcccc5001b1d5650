"""A folder as a pretraining leaves it, with made-up numbers that look like those of a run.

python tests/report/run_folder.py OUT [healthy|collapsed|young]: the folder and its index.html.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from longvit.pretraining.token_images import nearest_neighbours, neighbours_sheet, write_titled

K = 4096
LOG_K = math.log(K)
PER_EPOCH = 30
SETTINGS = {
    "epochs": 20,
    "warmup_epochs": 2,
    "prototypes": K,
    "batch_size": 16,
    "model": "longvit_tiny_patch32",
    "global_px": 512,
    "weights": None,
    "region_px": [1024, 1536],
}


def write_folder(
    folder: Path, *, epochs: int = 20, collapsed: bool = False, probe: bool = True, pictures: bool = True
) -> Path:
    """All files that the report reads; `epochs` done of 20."""
    rng = np.random.default_rng(0)
    n = epochs * PER_EPOCH
    t = np.arange(n) / (20 * PER_EPOCH)
    kl = np.full(n, 0.003) if collapsed else 0.1 + 4.5 * t
    told = np.minimum(0.8 * kl, 0.8 * math.log(16))
    loss = np.full(n, LOG_K) if collapsed else LOG_K * (1 - 0.5 * t**0.5)
    steps = {
        "step": np.arange(1, n + 1),
        "epoch": np.arange(n) // PER_EPOCH + 1,
        "loss": loss * rng.normal(1, 0.02, n),
        "teacher_entropy": LOG_K - kl * rng.normal(1, 0.05, n),
        "kl_to_uniform": kl * rng.normal(1, 0.05, n),
        "mean_kl_to_uniform": (kl - told) * rng.normal(1, 0.05, n),
        "lr": 5e-4 * np.minimum(1, t / 0.1) * (1 + np.cos(np.pi * t)) / 2,
        "weight_decay": 0.4 - 0.36 * (1 + np.cos(np.pi * t)) / 2,
        "teacher_momentum": 1 - 0.004 * (1 + np.cos(np.pi * t)) / 2,
        "grad_norm": (1 + 2 * t) * rng.lognormal(0, 0.2, n),
    }
    u = (np.arange(epochs) + 1) / 20
    rows: dict[str, Any] = {
        "epoch": np.arange(epochs) + 1,
        "step": (np.arange(epochs) + 1) * PER_EPOCH,
        "train_loss": steps["loss"].reshape(epochs, PER_EPOCH).mean(1),
        "rankme": 6 + 40 * u,
        "feature_std": 0.15 + 0.3 * u,
    }
    start = {"rankme": 3.1, "feature_std": 0.12}
    controls: dict[str, Any] = {"random_start": start}
    if probe:
        for name, low, high in (("knn", 0.45, 0.74), ("linear", 0.5, 0.79)):
            curve = low + (high - low) * (0 if collapsed else 1) * u**0.5 + rng.normal(0, 0.01, epochs)
            rows |= {name: curve + 0.02, f"{name}_balanced": curve}
            start |= {name: low + 0.02, f"{name}_balanced": low}
        rows["linear_auc"], start["linear_auc"] = rows["linear_balanced"] + 0.1, 0.62
        controls["mean_colour"] = {"knn": 0.6, "knn_balanced": 0.57, "linear": 0.66, "linear_balanced": 0.64}
    metrics = {
        "finished": epochs == 20,
        "epochs": epochs,
        "steps": n,
        "regions": 480,
        "slides": 3,
        "parameters": 2_900_000,
        "device": "cpu",
        "starts_from": "random weights",
        "seconds": 1460.0,
        "skipped_steps": [],
        "left_out": ["broken"],
        "notes": ["2 slides are coarser than 0.5 µm per pixel and were enlarged."],
        "probe": {"source": "probe.csv", "regions": 120, "cases": 24, "classes": ["gland", "stroma", "tumour"]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "steps.csv", steps)
    _write(folder / "history.csv", rows)
    (folder / "metrics.json").write_text(json.dumps(metrics if probe else metrics | {"probe": None}))
    (folder / "controls.json").write_text(json.dumps(controls))
    (folder / "settings.yaml").write_text(json.dumps(SETTINGS))  # JSON is YAML
    (folder / "problems.csv").write_text("slide,stage,error\nbroken,open,broken.svs: no TIFF\n")
    if pictures:
        _pictures(folder / "pictures", probe)
    return folder


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(of.tolist() for of in columns.values()), strict=True))


def _pictures(folder: Path, probe: bool) -> None:
    """Blobs of colour in place of tissue."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:512, :512] / 512
    regions = []
    for _ in range(24):
        waves = [np.sin(rng.uniform(4, 30) * rows + rng.uniform(4, 30) * columns + rng.uniform(0, 6)) for _ in "rgb"]
        regions.append((140 + 80 * np.stack(waves, -1) * [0.5, 0.8, 0.4] + [60, 0, 40]).clip(0, 255).astype(np.uint8))
    names = [f"TCGA-A1-A0SB-01Z-00-DX{i // 8 + 1}#{i}" for i in range(24)]
    for i in range(6):
        blocks = regions[i][::32, ::32, ::-1].repeat(32, 0).repeat(32, 1)
        pair = np.concatenate([regions[i], np.full((512, 8, 3), 255, np.uint8), blocks], 1)
        write_titled(folder / f"tokens_{i + 1:02d}.png", pair, names[i])
    features = rng.normal(size=(24, 6)) + 1
    slides = [name.split("#")[0] for name in names]
    classes = [["gland", "stroma", "tumour"][i % 3] for i in range(24)]
    for kind, labels in (("neighbours", None), *((("labelled", classes),) if probe else ())):
        for i, found in enumerate(nearest_neighbours(features, slides)):
            sheet = neighbours_sheet(found, regions, names, labels)
            write_titled(folder / f"{kind}_{i + 1:02d}.png", sheet, names[found.query])


if __name__ == "__main__":
    from longvit.report.pretraining import pretrain_report

    kinds: dict[str, dict[str, Any]] = {
        "healthy": {},
        "collapsed": {"collapsed": True},
        "young": {"epochs": 2, "probe": False},
    }
    for kind in sys.argv[2:] or kinds:
        print(pretrain_report(write_folder(Path(sys.argv[1]) / kind, **kinds[kind])))
