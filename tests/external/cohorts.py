"""Cohorts A and B of small images that share no patient and no file, and runs on A."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from longvit.cli import main

SITES = ("north", "south")
TRAIN = (
    *("--model", "longvit_tiny_patch32", "--side-px", "64", "--epochs", "2", "--lr", "1e-3", "--batch-size", "4"),
    *("--device", "cpu", "--threads", "1", "--num-workers", "1", "--bootstrap", "20", "--deletion-slides", "0"),
)


def write_cohort(
    folder: Path,
    name: str,
    *,
    seed: int,
    n: int = 24,
    classes: tuple[str, ...] = ("pale", "stained"),
    noise: float = 60,
) -> Path:
    """n images of 80 × 64 px, two per patient, darker with the class, and a table with label, outcome, site and sex."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["case_id,slide_id,label,survival_months,event,site,sex,split"]
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        patient = i // 2
        k = patient % len(classes)
        level = 200 - 70 * k / (len(classes) - 1) + np.random.default_rng([seed, patient, 1]).normal(0, 60)
        pixels = np.clip(rng.normal(level, 30, (64, 80, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{i:02d}.png")
        months = 4 + 5 * (patient % 7) + patient / 8 + (15 if k == 0 else 0)
        split = ("train", "train", "train", "val", "test")[patient // len(classes) % 5]
        cells = (f"{name}P{patient}", f"{name}{i:02d}", classes[k], f"{months:g}", int(patient % 3 != 0))
        lines.append(",".join(map(str, (*cells, SITES[patient // 2 % 2], "fm"[patient % 3 % 2], split))))
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def longvit(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and errors of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()
