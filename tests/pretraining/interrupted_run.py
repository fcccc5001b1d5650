"""A whole pretraining of a small network as a process that can be stopped at any instant."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first optimiser of a process loads it, which takes longer than the run
from PIL import Image

from longvit.data.slide_list import find_slides
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.pretraining.run import pretrain
from longvit.pretraining.settings import PretrainSettings
from longvit.training.loop import Interrupted


def write_inputs(folder: Path) -> None:
    """Two images with something on them, and the weights of a small network."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        coarse = Image.fromarray(rng.integers(60, 240, (20, 24, 3), dtype=np.uint8))
        (folder / "slides").mkdir(exist_ok=True)
        coarse.resize((240, 200), Image.Resampling.BICUBIC).save(folder / "slides" / f"{name}.png")
    torch.manual_seed(0)
    config = LongViTConfig(embed_dim=16, depth=2, num_heads=4, ffn_dim=24, patch_px=8, grid_patches=4, image_px=32)
    LongViT(config).save_pretrained(folder / "weights")


def settings_of(inputs: Path, **changes: object) -> PretrainSettings:
    """Eight optimiser steps in two epochs, a checkpoint after each."""
    small = {
        "weights": inputs / "weights",
        "region_px": (40, 60),
        "per_slide": 8,
        "ignore_mpp": True,
        "global_px": 32,
        "local_px": 16,
        "local_crops": 3,
        "epochs": 2,
        "warmup_epochs": 1,
        "batch_size": 4,
        "forward_batch": 2,
        "lr": 1e-2,
        "lr_batch": 4,
        "prototypes": 24,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "probe_regions": 8,
        "num_workers": 0,
        "checkpoint_minutes": 0.0,
        "threads": 1,
        "device": "cpu",
    }
    return PretrainSettings(**{**small, **changes})  # type: ignore[arg-type]


def whole_run(inputs: Path, out: Path, workers: int = 0) -> None:
    """From where it is to its end."""
    try:
        pretrain(find_slides([inputs / "slides"]), out, settings_of(inputs, num_workers=workers))
    except Interrupted as error:
        sys.exit(error.exit_code)
