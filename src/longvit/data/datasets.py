"""Cached canvases as batches, in an order that is a function of (seed, epoch, index).

So any epoch can start at any batch, whatever the number of loader threads, and a resumed run sees the same batches as
an uninterrupted one. Batches are read ahead in threads: TIFF decoding releases the GIL, and between processes an image
would be copied (3 GB each at 32,768²).

B images per batch, S side in px.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from longvit.data.augmentation import Augmentation, augment, draw_orientation
from longvit.data.canvas_cache import read_pixels
from longvit.data.cohort import SlideRow

# Independent streams of random numbers.
_ORDER, _AUGMENT = 0, 1
# Limit of the batches held ready (except for the next one of any size: 3 GB at 32,768²).
_AHEAD_BYTES = 2**29


@dataclass(frozen=True)
class CanvasBatch:
    """One batch."""

    images: torch.Tensor
    """uint8 (B, 3, S, S), raw pixels 0 … 255; (B, 3, rows of the range, S) for a row range."""
    targets: dict[str, torch.Tensor]
    """Name -> (B,): targets of the task for each slide."""
    names: tuple[str, ...]
    """slide_id of each."""


@dataclass
class CanvasDataset(Dataset[tuple[torch.Tensor, dict[str, np.generic], str]]):
    """Slides with cached canvases; item i: uint8 (3, S, S) tensor (raw pixels), its targets, slide_id.

    Canvases stay in memory while they fit into `memory_mb`; the others are read again each time.
    """

    rows: Sequence[SlideRow]
    targets: Mapping[str, np.ndarray]
    """Name -> (slides,): the labels, e.g. `label`."""
    paths: dict[str, Path]
    """slide_id -> canvas TIFF (`CachedCanvases.paths`); every row has one."""
    strata: Sequence[str] = ()
    """Group of every slide, for balanced sampling; otherwise it may be empty."""
    matches: Sequence[str] = ()
    """Set of matched slides that each slide belongs to, "" for none; empty: no slides are matched."""
    memory_mb: int = 512
    """Canvases kept in memory, in MB."""
    _kept: dict[tuple[int, tuple[int, int, int, int] | None], np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        missing = [row.slide_id for row in self.rows if row.slide_id not in self.paths]
        assert not missing, f"no canvas for {missing}"
        assert all(len(values) == len(self.rows) for values in self.targets.values())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, np.generic], str]:
        targets = {name: values[index] for name, values in self.targets.items()}
        return torch.from_numpy(self.pixels(index)).permute(2, 0, 1), targets, self.rows[index].slide_id

    def pixels(self, index: int, part: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The canvas as uint8 (S, S, 3), or its part [first row, end row, first column, end column); read-only."""
        if (kept := self._kept.get((index, part))) is not None:
            return kept
        pixels = read_pixels(self.paths[self.rows[index].slide_id], part)
        if (len(self._kept) + 1) * pixels.nbytes <= self.memory_mb * 2**20:
            self._kept[index, part] = pixels
        return pixels


class RowRange(NamedTuple):
    """Rows [first, end) of a canvas of `side_px`."""

    first: int
    end: int
    side_px: int


@dataclass(frozen=True)
class CanvasBatches:
    """Batches of a dataset for the training loop (`longvit.training.batches.Batches`)."""

    dataset: CanvasDataset
    batch_size: int = 1
    shuffle: bool = True
    """False: in the order of the rows, for evaluation."""
    balanced: bool = False
    """True: every slide is drawn with replacement, each stratum equally often on average (as in the HIPT protocol)."""
    augmentation: Augmentation = "none"
    seed: int = 0
    workers: int = 1
    """Threads that read ahead; 0 reads in the caller's thread."""
    ahead: int = 2
    """Batches held ready beyond the current one, per worker; one in total where they are large."""
    row_range: RowRange | None = None
    """Rows of every canvas (after its flips and turns) that are read and returned; None: all."""

    @property
    def samples(self) -> int:
        """Number of slides of one epoch."""
        return len(self.dataset)

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[CanvasBatch]:
        return self.epoch(0)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the slides in the order of an epoch."""
        if not self.shuffle:
            return np.arange(self.samples)
        rng = np.random.default_rng([self.seed, epoch, _ORDER])
        if not self.balanced:
            order = rng.permutation(self.samples)
            return self._matched(order) if self.dataset.matches else order
        _, stratum, count = np.unique(np.asarray(self.dataset.strata, str), return_inverse=True, return_counts=True)
        weight = 1 / count[stratum]
        return rng.choice(self.samples, self.samples, p=weight / weight.sum())

    def _matched(self, order: np.ndarray) -> np.ndarray:
        """The order with the slides of a matched set together, at the place of the first of them."""
        sets: dict[str, list[int]] = {}
        for index in order.tolist():
            sets.setdefault(self.dataset.matches[index] or f"\0{index}", []).append(index)
        return np.array([index for matched in sets.values() for index in matched])

    def epoch(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[CanvasBatch]:
        """Batches of `epoch` (0 …) with these numbers (default: all); closing the iterator ends its threads."""
        order = self.order(epoch)
        numbers = range(len(self)) if numbers is None else numbers
        chunks = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in numbers]
        if self.workers < 1:
            for chunk in chunks:
                yield self.batch(chunk, epoch)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="canvases")
        waiting: deque[Future[CanvasBatch]] = deque()
        ahead, remaining = 1, iter(chunks)  # the size of a batch is known after the first
        try:
            while True:
                for chunk in islice(remaining, ahead - len(waiting)):
                    waiting.append(pool.submit(self.batch, chunk, epoch))
                if not waiting:
                    return
                batch = waiting.popleft().result()
                ahead = max(1, min(self.ahead * self.workers, _AHEAD_BYTES // batch.images.nbytes))
                for chunk in islice(remaining, ahead - len(waiting)):
                    waiting.append(pool.submit(self.batch, chunk, epoch))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, indices: Sequence[int] | np.ndarray, epoch: int) -> CanvasBatch:
        """The batch of these slides, augmented for `epoch`; a slide's augmentation does not depend on its position."""
        images = []
        for index in map(int, indices):
            rng = np.random.default_rng([self.seed, epoch, _AUGMENT, index])
            if self.row_range is None:
                images.append(augment(self.dataset.pixels(index), self.augmentation, rng))
            else:
                first, end, side = self.row_range
                orientation = draw_orientation(self.augmentation, rng)
                part = self.dataset.pixels(index, orientation.source(side, first, end))
                images.append(augment(part, self.augmentation, rng, orientation=orientation))
        # (B, S, S, 3) viewed as (B, 3, S, S); the only copy makes it contiguous.
        stacked = np.ascontiguousarray(images[0])[None] if len(images) == 1 else np.stack(images)
        return CanvasBatch(
            images=torch.from_numpy(stacked).permute(0, 3, 1, 2),
            targets={
                name: torch.from_numpy(values[np.asarray(indices)]) for name, values in self.dataset.targets.items()
            },
            names=tuple(self.dataset.rows[int(i)].slide_id for i in indices),
        )
