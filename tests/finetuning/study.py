"""A cohort of small images that a model learns in seconds, and a process that can be killed.

python study.py COHORT.csv OUT: the fine-tuning of `SETTINGS`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.finetuning.run import FinetuneSettings, finetune

SETTINGS = FinetuneSettings(
    model="longvit_tiny_patch32",
    side_px=64,
    epochs=4,
    lr=1e-3,
    batch_size=4,
    forward_batch=2,
    bootstrap=50,
    device="cpu",
    threads=1,
    num_workers=1,
    checkpoint_minutes=0.0,
)


def write_study(folder: Path, classes: tuple[str, ...] = ("pale", "stained"), n: int = 20, split: bool = True) -> Path:
    """n noisy images of 80 × 64 px, darker with the class, two of each patient, and their cohort.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["case_id,slide_id,label" + (",split" if split else "")]
    for i in range(n):
        rng = np.random.default_rng(i)
        patient = i // 2
        level = 200 - 120 * (patient % len(classes)) / (len(classes) - 1)
        pixels = np.clip(rng.normal(level, 30, (64, 80, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"s{i:02d}.png")
        part = ("train", "train", "train", "val", "test")[patient // len(classes) % 5]
        lines.append(f"P{patient},s{i:02d},{classes[patient % len(classes)]}" + (f",{part}" if split else ""))
    path = folder / "cohort.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def study(folder: Path, **kind: object) -> Cohort:
    """Written and read."""
    return read_cohort(write_study(folder, **kind))  # type: ignore[arg-type]


if __name__ == "__main__":
    finetune(read_cohort(sys.argv[1]), sys.argv[2], replace(SETTINGS, num_workers=2))
