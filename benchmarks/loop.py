"""Benchmark of the training loop: its overhead beside the model, and its memory against the size of the cohort.

    python benchmarks/loop.py [--save] [--rounds 5]

`overhead`: `train` (reading, checks, history, a checkpoint per epoch) against forward + backward + optimiser step over
the same tensors, in turn. It uses LongViT-tiny, 256 px, 8 slides per step, and cached canvases. `step` compares one
step, `whole` the whole run with its checkpoints.
`memory`: peak of a process that trains on N cached canvases of 4,096². The model has a few kB, so that the peak is that
of the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line has it; before torch is loaded

import numpy as np
import torch
from torch import nn

from longvit.data.cohort import SlideRow
from longvit.data.datasets import CanvasBatch, CanvasBatches, CanvasDataset
from longvit.training.loop import train
from longvit.training.optim import adamw
from longvit.training.settings import TrainSettings
from side_by_side import measure, report
from worker import memory_mib, reset_peak

BATCH, EPOCHS = 8, 2


def cohort(folder: Path, slides: int, side_px: int) -> CanvasDataset:
    """Cohort of smooth synthetic canvases in the cache's format; memory holds at most the usual 512 MB."""
    from longvit.slides.canvas import Canvas, CanvasSource, write_canvas
    from longvit.slides.placement import Box, Placement

    folder.mkdir(exist_ok=True)
    ramp = np.linspace(0, 255, side_px, dtype=np.uint8)
    rows, paths = [], {}
    for i in range(slides):
        name = f"s{i}"
        pixels = np.stack(
            [np.add.outer(ramp, ramp), np.add.outer(ramp, ramp // (i % 100 + 2)), np.tile(ramp, (side_px, 1))], 2
        )
        source = CanvasSource(name, name, (side_px, side_px), "", None, "none", "", (255, 255, 255))
        placement = Placement(Box(0, 0, side_px, side_px), side_px, "stretch")
        paths[name] = folder / f"{name}.tif"
        if not paths[name].exists():
            write_canvas(Canvas(pixels, placement, 0, 1, (), source), paths[name])
        rows.append(SlideRow(name, name, "ab"[i % 2], paths[name]))
    return CanvasDataset(rows, {"label": np.arange(slides) % 2}, paths)


def loss_of(model: nn.Module, batch: CanvasBatch) -> dict[str, torch.Tensor]:
    losses = nn.functional.cross_entropy(model(batch.images), batch.targets["label"], reduction="none")
    return {"loss": losses.mean(), "losses": losses}


def ours(model: nn.Module, batches: CanvasBatches, folder: Path) -> dict[str, float]:
    """Seconds per step of our loop: of a step (from one forward pass to the next) and of the whole run."""
    marks: list[float] = []

    def step(model: nn.Module, batch: CanvasBatch) -> dict[str, torch.Tensor]:
        out = loss_of(model, batch)
        marks.append(time.perf_counter())
        return out

    begin = time.perf_counter()
    train(model, batches, step, TrainSettings(epochs=EPOCHS), folder=folder, progress=False)
    whole = (time.perf_counter() - begin) / len(marks)
    steps = len(marks) // EPOCHS
    inner = [b - a for e in range(EPOCHS) for a, b in pairwise(marks[e * steps : (e + 1) * steps])]
    return {"step": statistics.median(inner), "whole": whole}


def bare(model: nn.Module, ready: list[CanvasBatch]) -> dict[str, float]:
    """Seconds per step of forward, backward and optimiser step alone, over tensors in memory."""
    optimizer = adamw(model, lr=5e-5, weight_decay=0.05, betas=(0.9, 0.999))
    model.train()
    marks = []
    begin = time.perf_counter()
    for _ in range(EPOCHS):
        for batch in ready:
            loss = loss_of(model, batch)["loss"]
            marks.append(time.perf_counter())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    whole = (time.perf_counter() - begin) / len(marks)
    return {"step": statistics.median(b - a for a, b in pairwise(marks)), "whole": whole}


def overhead(folder: Path, slides: int, rounds: int) -> dict[str, Any]:
    """Overhead, measured in turn with a new model in each round: medians of times and ratios."""
    import longvit

    batches = CanvasBatches(cohort(folder / "small", slides, 256), BATCH, workers=1)
    ready = list(batches.epoch(0))
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for i in range(rounds + 1):
        for name in ("ours", "bare") if i % 2 else ("bare", "ours"):
            torch.manual_seed(0)
            model = longvit.create_model("longvit_tiny_patch32", num_classes=2)
            seconds = ours(model, batches, folder / f"run{i}") if name == "ours" else bare(model, ready)
            runs[name] += [seconds] if i else []  # the first round warms up
    row: dict[str, Any] = {"what": "overhead", "slides": slides, "steps": EPOCHS * len(ready), "rounds": rounds}
    for kind in ("step", "whole"):
        a, b = ([run[kind] for run in runs[name]] for name in ("ours", "bare"))
        row |= {
            f"{kind}_s": round(statistics.median(a), 4),
            f"{kind}_bare_s": round(statistics.median(b), 4),
            f"{kind}_ratio": round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3),
        }
    return row


class Thumbnail(nn.Module):
    """Tiny model: a linear layer on every 64th pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images[..., ::64, ::64].flatten(1).float() / 255)


def memory(folder: Path, slides: int) -> dict[str, float]:
    """Peak memory in MiB of a run over `slides` canvases of 4,096², above that at its start; in this process."""
    batches = CanvasBatches(cohort(folder / "large", slides, 4096), 1, augmentation="flips", workers=2)
    model = Thumbnail()
    model(torch.zeros(1, 3, 4096, 4096, dtype=torch.uint8))
    before = memory_mib("VmRSS")
    reset_peak()
    settings = TrainSettings(epochs=EPOCHS, accumulation=BATCH)
    train(model, batches, loss_of, settings, folder=folder / f"memory{slides}", progress=False)
    return {"slides": slides, "before_mib": before, "above_mib": memory_mib("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=64, help="cohort of the overhead's run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--memory", type=int, nargs=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory(args.folder, *args.memory)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [overhead(folder, args.slides, args.rounds)]
        cohort(folder / "large", 64, 4096)
        for slides in (8, 64):
            command = [sys.executable, __file__, "--memory", str(slides), "--folder", str(folder)]
            rows.append({"what": "memory", "side_px": 4096} | {k: round(v) for k, v in measure(command).items()})
        report("loop", rows, args.save)


if __name__ == "__main__":
    main()
