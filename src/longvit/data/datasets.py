"""Cached canvases as batches, in an order that is a function of (seed, epoch, index).

So any epoch can be started at any batch, whatever the number of loader threads, and a resumed run sees what the
interrupted one would have seen. Batches are read ahead in threads: TIFF decoding lets go of the GIL, and an
image is handed over without a copy between processes (3 GB each at 32,768²).

B images per batch, S side in px.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from longvit.data.augmentation import Augmentation, augment, draw_orientation
from longvit.data.canvas_cache import read_pixels
from longvit.data.cohort import SlideRow

# Streams of random numbers that must not meet.
_ORDER, _AUGMENT = 0, 1
# Batches held ready never take more than this (but for the next one, whatever its size: 3 GB at 32,768²).
_AHEAD_BYTES = 2**29


@dataclass(frozen=True)
class CanvasBatch:
    """One batch."""

    images: torch.Tensor
    """uint8 (B, 3, S, S), raw pixels 0 … 255; (B, 3, rows of the strip, S) where the batches are of strips."""
    targets: dict[str, torch.Tensor]
    """Name -> (B,): what the task wants to know of each slide."""
    names: tuple[str, ...]
    """slide_id of each."""


@dataclass
class CanvasDataset(Dataset[tuple[torch.Tensor, dict[str, np.generic], str]]):
    """Slides whose canvases are cached; item i: uint8 (3, S, S) tensor (raw pixels), its targets, slide_id.

    Canvases stay in memory while they fit into `memory_mb`; the rest is read anew each time.
    """

    rows: Sequence[SlideRow]
    targets: Mapping[str, np.ndarray]
    """Name -> (slides,): the answers, e.g. `label`."""
    paths: dict[str, Path]
    """slide_id -> canvas TIFF (`CachedCanvases.paths`); every row has one."""
    strata: Sequence[str] = ()
    """The group of every slide, for balanced sampling; may be left out elsewhere."""
    memory_mb: int = 512
    """Canvases kept in memory, in MB."""
    _kept: dict[tuple[int, tuple[int, int, int, int] | None], np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        missing = [row.slide_id for row in self.rows if row.slide_id not in self.paths]
        assert not missing, f"no canvas for {missing}"
        assert all(len(of) == len(self.rows) for of in self.targets.values())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, np.generic], str]:
        targets = {name: of[index] for name, of in self.targets.items()}
        return torch.from_numpy(self.pixels(index)).permute(2, 0, 1), targets, self.rows[index].slide_id

    def pixels(self, index: int, part: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The canvas as uint8 (S, S, 3), or the part [first row, end row, first column, end column) of it; do not
        write into it."""
        if (kept := self._kept.get((index, part))) is not None:
            return kept
        pixels = read_pixels(self.paths[self.rows[index].slide_id], part)
        if (len(self._kept) + 1) * pixels.nbytes <= self.memory_mb * 2**20:
            self._kept[index, part] = pixels
        return pixels


@dataclass(frozen=True)
class CanvasBatches:
    """The batches of a dataset, as the training loop takes them (`longvit.training.batches.Batches`)."""

    dataset: CanvasDataset
    batch_size: int = 1
    shuffle: bool = True
    """False: in the order of the rows, for evaluation."""
    balanced: bool = False
    """True: every slide is drawn with replacement, each stratum equally often on average (as in the HIPT protocol)."""
    augmentation: Augmentation = "none"
    seed: int = 0
    workers: int = 1
    """Threads that read ahead; 0 reads in the caller's."""
    ahead: int = 2
    """Batches held ready beyond the one in use, for each worker; one in all where they are large."""
    strip_px: tuple[int, int, int] | None = None
    """(first row, end row, S): only this strip of every canvas (after its flips and turns) is read and given."""

    @property
    def samples(self) -> int:
        """Slides of one epoch."""
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
            return rng.permutation(self.samples)
        _, stratum, count = np.unique(np.asarray(self.dataset.strata, str), return_inverse=True, return_counts=True)
        weight = 1 / count[stratum]
        return rng.choice(self.samples, self.samples, p=weight / weight.sum())

    def epoch(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[CanvasBatch]:
        """The batches of `epoch` (0 …) with these numbers (default: all); closing the iterator ends its threads."""
        order = self.order(epoch)
        numbers = range(len(self)) if numbers is None else numbers
        chunks = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in numbers]
        if self.workers < 1:
            for chunk in chunks:
                yield self.batch(chunk, epoch)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="canvases")
        waiting: deque[Future[CanvasBatch]] = deque()
        ahead, to_come = 1, iter(chunks)  # how large a batch is, the first one tells
        try:
            while True:
                for chunk in islice(to_come, ahead - len(waiting)):
                    waiting.append(pool.submit(self.batch, chunk, epoch))
                if not waiting:
                    return
                batch = waiting.popleft().result()
                ahead = max(1, min(self.ahead * self.workers, _AHEAD_BYTES // batch.images.nbytes))
                for chunk in islice(to_come, ahead - len(waiting)):
                    waiting.append(pool.submit(self.batch, chunk, epoch))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, indices: Sequence[int] | np.ndarray, epoch: int) -> CanvasBatch:
        """The batch of these slides, changed as `epoch` has it; a slide's change does not depend on its place."""
        images = []
        for index in map(int, indices):
            rng = np.random.default_rng([self.seed, epoch, _AUGMENT, index])
            if self.strip_px is None:
                images.append(augment(self.dataset.pixels(index), self.augmentation, rng))
            else:
                first, end, side = self.strip_px
                orientation = draw_orientation(self.augmentation, rng)
                part = self.dataset.pixels(index, orientation.source(side, first, end))
                images.append(augment(part, self.augmentation, rng, orientation=orientation))
        # (B, S, S, 3) seen as (B, 3, S, S): the one copy is the one that makes it contiguous.
        stacked = np.ascontiguousarray(images[0])[None] if len(images) == 1 else np.stack(images)
        return CanvasBatch(
            images=torch.from_numpy(stacked).permute(0, 3, 1, 2),
            targets={name: torch.from_numpy(of[np.asarray(indices)]) for name, of in self.dataset.targets.items()},
            names=tuple(self.dataset.rows[int(i)].slide_id for i in indices),
        )
