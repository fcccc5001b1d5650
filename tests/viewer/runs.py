"""Folders of runs for the viewer: stored ones of an older version, and one with a model."""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

from tests.conftest import ROOT
from tests.small_slides import write_model, write_slide


def stored(folder: Path, *names: str) -> Path:
    """Unpacks stored runs and the inputs (slides, cohort.csv, model) into a folder."""
    for name in ("inputs", *names):
        with tarfile.open(ROOT / "tests" / "old_runs" / f"{name}.tar.xz") as archive:
            archive.extractall(folder / name, filter="data")
    return folder


def finetuned(folder: Path, n: int = 4) -> Path:
    """A finished fine-tuning with its model and the slides in `slides/`; slide 2 has the largest error."""
    run = folder / "run"
    write_model(run / "model")
    for i in range(n):
        write_slide(folder / "slides" / f"s{i}.tif", seed=i, size_px=(1400, 900))
    rows = [(f"P{i}", f"s{i}", "test", "tumour", 0.1 + 0.2 * abs(i - 2)) for i in range(n)]
    with (run / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "slide_id", "split", "label", "prob_benign", "prob_tumour", "prediction"])
        for case, slide, split, label, p in rows:
            writer.writerow([case, slide, split, label, 1 - p, p, "tumour" if p > 0.5 else "benign"])
    (run / "metrics.json").write_text("{}")
    (run / "settings.yaml").write_text("side_px: 64\nfit: stretch\n")
    return run
