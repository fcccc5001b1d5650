"""A run of a small LongViT in float64, on any mesh: what one process and several must agree on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longvit.model.longvit import LongViT, LongViTConfig
from longvit.parallel import ALONE, Ranks, shard
from longvit.training.loop import TrainResult, TrainSettings, train

CONFIG = LongViTConfig(
    embed_dim=16,
    depth=2,
    num_heads=4,
    ffn_dim=32,
    patch_px=4,
    num_classes=2,
    segment_lengths=(5, 12, 35),
    dilated_ratios=(1, 2, 4),
    drop_path=0.3,
    grid_patches=3,
)
# 7 slides in batches of 1 or 2: an epoch's last step is smaller, and on 4 data ranks one has no share of it.
SETTINGS = TrainSettings(epochs=2, accumulation=3, lr=1e-2, clip_norm=0.5, ema=0.9, checkpoint_minutes=0.0)
SLIDES, HEIGHT_PX, WIDTH_PX = 7, 28, 20


@dataclass(frozen=True)
class Strips:
    """One batch."""

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]


class StripBatches:
    """Noise with labels; only the rows of a strip are given."""

    samples = SLIDES

    def __init__(
        self, rows: tuple[int, int] = (0, HEIGHT_PX), *, batch_size: int = 1, poison: int = -1, seconds: float = 0.0
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (SLIDES, 3, HEIGHT_PX, WIDTH_PX), generator=generator)
        self.images = images.double() / 128 - 1
        if poison >= 0:
            self.images[poison] = torch.nan
        self.images = self.images[:, :, slice(*rows)]
        self.labels = torch.arange(SLIDES) % 2
        self.batch_size, self.seconds = batch_size, seconds

    def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterator[Strips]:
        order = np.random.default_rng([7, epoch]).permutation(SLIDES)
        for i in numbers:
            time.sleep(self.seconds)
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield Strips(self.images[index], self.labels[index], tuple(f"slide_{k}" for k in index))


def step(model: torch.nn.Module, batch: Strips) -> dict[str, torch.Tensor]:
    losses = torch.nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="none")
    return {"loss": losses.mean(), "losses": losses}


def run(
    ranks: Ranks = ALONE,
    folder: Path = Path(),
    *,
    batch_size: int = 1,
    settings: TrainSettings = SETTINGS,
    poison: int = -1,
    recompute: bool = False,
    progress: bool = False,
    wait: object = None,
    seconds: float = 0.0,
) -> tuple[dict[str, torch.Tensor], TrainResult]:
    """→ parameters, and what `train` returned."""
    torch.manual_seed(3 + ranks.rank)  # the first rank's weights count
    model = LongViT(CONFIG).double()
    model.set_recompute(recompute)
    strips, rows = model, (0, HEIGHT_PX)
    if ranks.sequence_ranks > 1:
        strips = shard(model, ranks.mesh)
        rows = strips.rows_px(HEIGHT_PX)
    batches = StripBatches(rows, batch_size=batch_size, poison=poison, seconds=seconds)
    every = StripBatches(rows)

    def evaluate(model: torch.nn.Module, epoch: int) -> dict[str, float]:
        if callable(wait):
            wait(ranks, epoch)
        return {"val_loss": step(model, next(iter(every.epoch(0, [0]))))["loss"].item()}

    result = train(strips, batches, step, settings, folder=folder, evaluate=evaluate, ranks=ranks, progress=progress)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, result
