"""Batches of region crops for the training loop (`longvit.training.batches.Batches`).

The order of an epoch is a permutation of all regions, a function of (seed, epoch). The crops of a region are a function
of (seed, epoch, region). So any batch of any epoch can be made alone, with the same bits for any number of processes.
A resumed run gets the batches that the interrupted run would have had.

Every batch is divided over all processes, region by region, so that two batches keep them busy. Batches made ahead take
at most `ahead_mb`, except that one batch is always made ahead, whatever its size.

B regions, C crops, h, w their sides in px.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from longvit.data.problems import Problem
from longvit.files import make_folder
from longvit.pretraining.regions.crops import CropSettings
from longvit.pretraining.regions.region_crops import CropJob, CropMaker, RegionCrops, batch_bytes, crop_views
from longvit.pretraining.regions.region_process import Part, RegionProcess, SharedMemory
from longvit.pretraining.regions.regions import Regions

# Number of the random stream of the order; the crops have another.
_ORDER = 0


@dataclass(frozen=True)
class CropBatch:
    """Crops of one batch of regions."""

    crops: list[torch.Tensor]
    """C tensors, uint8 (B, 3, h, w), raw pixels 0 … 255, the global crops first."""
    names: tuple[str, ...]
    """Name of each region, `slide#17`."""


@dataclass
class RegionBatches:
    """Batches of the crops of all regions."""

    regions: Regions
    crops: CropSettings = field(default_factory=CropSettings)
    batch_size: int = 1
    """Regions per batch."""
    seed: int = 0
    workers: int = 1
    """Processes that read regions and cut crops; 0: the calling process does it."""
    cache: Path | None = None
    """Folder in which the pixels of every region are stored when first read: 3 bytes a pixel."""
    ahead_mb: int = 1024
    """Memory limit in MiB of the batches made ahead."""
    timeout_s: float = 300
    """Time limit of a region: one that takes longer ends the run with its slide's name. Needs `workers` >= 1."""
    on_problem: Callable[[Problem], None] | None = None
    """Called once for every region that cannot be read and was replaced."""
    problems: dict[str, Problem] = field(default_factory=dict)
    """Problems so far, by their text."""

    def __post_init__(self) -> None:
        # Without the further fields of a run's settings: these are sent to other processes.
        self.crops = CropSettings(**{field.name: getattr(self.crops, field.name) for field in fields(CropSettings)})

    @property
    def samples(self) -> int:
        """Regions per epoch."""
        return self.regions.samples

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[CropBatch]:
        return self.epoch(0)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the regions in the order of an epoch."""
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self.samples)

    def epoch(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[CropBatch]:
        """Batches of `epoch` (0 …) with these numbers (default: all); closing the iterator ends its processes.

        A batch stays valid when the next one is made. Raises `InputError` with the slide's name where a process dies or
        exceeds the time limit.
        """
        if self.cache is not None:
            make_folder(self.cache)
        order = self.order(epoch)
        numbers = range(len(self)) if numbers is None else numbers
        chunks = [order[i * self.batch_size : (i + 1) * self.batch_size].tolist() for i in numbers]
        job = CropJob(self.regions, self.crops, self.seed, self.cache)
        if self.workers < 1:
            maker = CropMaker(job)
            try:
                for chunk in chunks:
                    yield self._make(maker, chunk, epoch)
            finally:
                maker.close()
            return
        processes = list[RegionProcess]()
        pending: deque[_PendingBatch] = deque()
        size = batch_bytes(self.crops, self.batch_size)
        ahead = max(1, min(2, self.ahead_mb * 2**20 // size))
        waiting = iter(chunks)
        try:
            for _ in range(min(self.workers, max(map(len, chunks), default=0))):
                processes.append(RegionProcess(job, self.timeout_s))
            while True:
                for chunk in islice(waiting, ahead - len(pending)):
                    pending.append(self._begin(processes, chunk, epoch))
                if not pending:
                    return
                batch = self._finish(processes, pending.popleft())
                for chunk in islice(waiting, ahead - len(pending)):
                    pending.append(self._begin(processes, chunk, epoch))
                yield batch
        finally:
            for process in processes:
                process.end()

    def _make(self, maker: CropMaker, indices: Sequence[int], epoch: int) -> CropBatch:
        crops = crop_views(np.empty(batch_bytes(self.crops, len(indices)), np.uint8), self.crops, len(indices))
        regions = [maker.make(index, epoch, [crop[i] for crop in crops]) for i, index in enumerate(indices)]
        return self._batch(crops, regions)

    def _begin(self, processes: Sequence[RegionProcess], indices: Sequence[int], epoch: int) -> _PendingBatch:
        """Divides the regions of a batch over the processes."""
        memory = SharedMemory(batch_bytes(self.crops, len(indices)))
        parts = []
        for first in range(min(len(processes), len(indices))):
            places = tuple(range(first, len(indices), len(processes)))
            parts.append(Part(epoch, len(indices), places, tuple(indices[place] for place in places)))
            processes[first].begin(parts[-1], memory)
        memory.close_file()
        return _PendingBatch(crop_views(memory.array, self.crops, len(indices)), parts)

    def _finish(self, processes: Sequence[RegionProcess], pending: _PendingBatch) -> CropBatch:
        regions: dict[int, RegionCrops] = {}
        for process, part in zip(processes, pending.parts, strict=False):
            regions |= zip(part.places, process.finish(), strict=True)
        return self._batch(pending.crops, [regions[place] for place in range(len(regions))])

    def _batch(self, crops: Sequence[np.ndarray], regions: Sequence[RegionCrops]) -> CropBatch:
        for problem in (problem for region in regions for problem in region.problems):
            if self.problems.setdefault(problem.error, problem) is problem and self.on_problem is not None:
                self.on_problem(problem)
        return CropBatch([torch.from_numpy(crop) for crop in crops], tuple(region.name for region in regions))


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that is being made: its memory, and the part of each process."""

    crops: list[np.ndarray]
    parts: list[Part]
