"""Batches of the training loop, in an order that is a function of (seed, epoch, number)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from longvit.training.settings import TrainSettings


class Batch(Protocol):
    """Batch of samples; the loop reads their names (for error messages) and their number."""

    @property
    def names(self) -> Sequence[str]: ...


class Batches(Protocol):
    """Batches in an order that is a function of (seed, epoch, number): each can be computed by itself."""

    @property
    def samples(self) -> int:
        """Samples of one epoch."""

    @property
    def batch_size(self) -> int:
        """Samples of every batch but the last of an epoch, which holds the remaining ones."""

    def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterable[Any]:
        """Batches of an epoch (0 …) with these numbers (0 …), in this order; each has `names`."""


def steps_per_epoch(batches: Batches, settings: TrainSettings) -> int:
    """Optimiser steps of an epoch; the last one takes the remaining samples."""
    return math.ceil(batches.samples / (batches.batch_size * settings.accumulation))
