"""Slides and a model that a test makes in milliseconds; as a script, a run over slides that can be killed.

python small_slides.py MODEL SLIDES OUT: `longvit embed`, a little slowed down.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import tifffile

MPP = 0.5


def write_slide(path: Path, *, seed: int = 0, mpp: float | None = MPP, size_px: tuple[int, int] = (160, 96)) -> Path:
    """A tiled TIFF of `size_px` (width, height): pink noise with a dark square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width_px, height_px = size_px
    rng = np.random.default_rng(seed)
    pixels = rng.normal((230, 180, 210), 12, (height_px, width_px, 3))
    pixels[20:60, 30:90] -= 90
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        path, pixels.clip(0, 255).astype(np.uint8), photometric="rgb", tile=(64, 64), metadata=None, **resolution
    )
    return path


def write_model(folder: Path, *, num_classes: int = 2, seed: int = 0, **settings: object) -> Path:
    """A small LongViT with random weights, 64 px canvases, classes "benign" and "tumour"."""
    import torch

    from longvit.model.longvit import LongViT, LongViTConfig

    torch.manual_seed(seed)
    names = ("benign", "tumour", "other")[:num_classes]
    config = {"embed_dim": 32, "depth": 2, "num_heads": 4, "ffn_dim": 64, "image_px": 64, **settings}
    model = LongViT(LongViTConfig(num_classes=num_classes, class_names=names, **config))  # type: ignore[arg-type]
    if num_classes:
        torch.nn.init.normal_(model.head.weight, std=0.5)
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    from longvit.cli import main
    from longvit.slide_jobs.embed import EmbedJob

    compute = EmbedJob.compute

    def slow(*arguments: object) -> object:
        time.sleep(0.3)
        return compute(*arguments)  # type: ignore[arg-type]

    EmbedJob.compute = slow  # type: ignore[method-assign, assignment]
    model, slides, out = sys.argv[1:]
    sys.exit(main(["embed", model, slides, "--out", out, "--device", "cpu"]))
