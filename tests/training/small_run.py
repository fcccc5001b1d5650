"""A short run of a small network, for the tests and as a process that can be killed.

python small_run.py FOLDER OUT [seconds per batch]: trains, then writes the parameters and the history to OUT.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from longvit.training.loop import TrainResult, TrainSettings, train

SETTINGS = TrainSettings(epochs=3, accumulation=2, lr=1e-2, clip_norm=1.0, checkpoint_minutes=0.0)


@dataclass(frozen=True)
class Points:
    """One batch."""

    x: torch.Tensor
    y: torch.Tensor
    names: tuple[str, ...]


class PointBatches:
    """21 noisy points in batches of 4, so that an epoch ends with a batch of 1 and a window of 2 batches."""

    samples, batch_size = 21, 4

    def __init__(self, seconds: float = 0.0, poison: int | None = None, batch_size: int = 4) -> None:
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(self.samples, 6, generator=generator)
        self.y = (self.x[:, 0] > 0).long()
        self.seconds = seconds
        if poison is not None:
            self.x[poison, 3] = float("nan")

    def epoch(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Points]:
        """The order and the noise are functions of (epoch, index)."""
        order = np.random.default_rng([7, epoch]).permutation(self.samples)
        for i in range(-(-self.samples // self.batch_size)) if numbers is None else numbers:
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            time.sleep(self.seconds)
            yield Points(self.x[index], self.y[index], tuple(f"slide_{k}" for k in index))


def network() -> nn.Module:
    """Dropout makes it depend on the random state."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def step(model: nn.Module, batch: Points) -> dict[str, torch.Tensor]:
    """Cross-entropy, and the accuracy as a further figure."""
    logits = model(batch.x)
    accuracy = (logits.argmax(1) == batch.y).float().mean()
    return {"loss": nn.functional.cross_entropy(logits, batch.y), "accuracy": accuracy}


def run(folder: Path, *, seconds: float = 0.0, settings: TrainSettings = SETTINGS) -> tuple[nn.Module, TrainResult]:
    """The whole run."""
    model = network()
    batches = PointBatches(seconds)

    def evaluate(model: nn.Module, epoch: int) -> dict[str, float]:
        return {"val_loss": nn.functional.cross_entropy(model(batches.x), batches.y).item()}

    result = train(model, batches, step, settings, folder=folder, evaluate=evaluate, progress=False)
    return model, result


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained, outcome = run(Path(sys.argv[1]), seconds=float(sys.argv[3]) if sys.argv[3:] else 0.0)
    tensors = {**trained.state_dict(), **{f"history.{k}": torch.tensor(v) for k, v in outcome.history.items()}}
    tensors["val_loss"] = torch.tensor([e["val_loss"] for e in outcome.epochs], dtype=torch.float64)
    save_file(tensors, sys.argv[2])
