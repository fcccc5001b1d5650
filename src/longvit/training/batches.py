"""What the loop takes: batches in an order that is a function of (seed, epoch, number)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from longvit.training.settings import TrainSettings


class Batch(Protocol):
    """What the loop must know of a batch: the names of its samples, for error messages, and their number."""

    @property
    def names(self) -> Sequence[str]: ...


class Batches(Protocol):
    """Batches whose order is a function of (seed, epoch, number): any of them can be had by itself."""

    @property
    def samples(self) -> int:
        """Samples of one epoch."""

    @property
    def batch_size(self) -> int:
        """Samples of every batch but the last of an epoch, which holds the rest."""

    def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterable[Any]:
        """The batches of an epoch (0 …) with these numbers (0 …), in this order; each has `names`."""


def steps_per_epoch(batches: Batches, settings: TrainSettings) -> int:
    """Optimiser steps of an epoch; the last one takes the rest of the samples."""
    return math.ceil(batches.samples / (batches.batch_size * settings.accumulation))
