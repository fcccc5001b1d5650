"""Crops of regions as batches, as the training loop takes them (`longvit.training.batches.Batches`).

The order of an epoch is a permutation of all regions, a function of (seed, epoch); the crops of a region are one of
(seed, epoch, region). So any batch of any epoch can be had by itself, with the same bits whatever the number of
processes, and a resumed run sees what the interrupted one would have seen.

Every batch is dealt out over all processes, region by region, so that two batches are enough to keep them busy; what is
made ahead of the one in use never takes more than `ahead_mb` (but for the next one, whatever its size).

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
from longvit.pretraining.regions.region_crops import CropJob, CropMaker, Made, batch_bytes, views
from longvit.pretraining.regions.region_process import Part, RegionProcess, SharedMemory
from longvit.pretraining.regions.regions import Regions

# A stream of random numbers that is not that of the crops.
_ORDER = 0


@dataclass(frozen=True)
class CropBatch:
    """One batch."""

    crops: list[torch.Tensor]
    """C tensors, uint8 (B, 3, h, w), raw pixels 0 … 255, the global crops first."""
    names: tuple[str, ...]
    """The region of each, `slide#17`."""


@dataclass
class RegionBatches:
    """The batches of all regions."""

    regions: Regions
    crops: CropSettings = field(default_factory=CropSettings)
    batch_size: int = 1
    """Regions of a batch."""
    seed: int = 0
    workers: int = 1
    """Processes that read and cut; 0: the caller's own."""
    cache: Path | None = None
    """Folder that takes the pixels of every region when it is first read: 3 bytes a pixel."""
    ahead_mb: int = 1024
    """Memory of the batches that are made ahead."""
    timeout_s: float = 300
    """A region that takes longer ends the run, with the name of its slide; with processes only."""
    on_problem: Callable[[Problem], None] | None = None
    """Told of every region that cannot be read and was replaced, once."""
    problems: dict[str, Problem] = field(default_factory=dict)
    """All of them so far, by their text."""

    def __post_init__(self) -> None:
        # Without what else a run's settings hold: these travel to other processes.
        self.crops = CropSettings(**{name.name: getattr(self.crops, name.name) for name in fields(CropSettings)})

    @property
    def samples(self) -> int:
        """Regions of one epoch."""
        return self.regions.samples

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[CropBatch]:
        return self.epoch(0)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the regions in the order of an epoch."""
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(self.samples)

    def epoch(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[CropBatch]:
        """The batches of `epoch` (0 …) with these numbers (default: all); closing the iterator ends its processes.

        A batch is the caller's to keep. Raises `InputError` where a process dies or does not get on, naming the slide.
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
                    yield self._made_here(maker, chunk, epoch)
            finally:
                maker.close()
            return
        processes = list[RegionProcess]()
        begun: deque[_Begun] = deque()
        size = batch_bytes(self.crops, self.batch_size)
        ahead = max(1, min(2, self.ahead_mb * 2**20 // size))
        to_come = iter(chunks)
        try:
            for _ in range(min(self.workers, max(map(len, chunks), default=0))):
                processes.append(RegionProcess(job, self.timeout_s))
            while True:
                for chunk in islice(to_come, ahead - len(begun)):
                    begun.append(self._begin(processes, chunk, epoch))
                if not begun:
                    return
                batch = self._finished(processes, begun.popleft())
                for chunk in islice(to_come, ahead - len(begun)):
                    begun.append(self._begin(processes, chunk, epoch))
                yield batch
        finally:
            for process in processes:
                process.end()

    def _made_here(self, maker: CropMaker, indices: Sequence[int], epoch: int) -> CropBatch:
        crops = views(np.empty(batch_bytes(self.crops, len(indices)), np.uint8), self.crops, len(indices))
        made = [maker.make(index, epoch, [crop[i] for crop in crops]) for i, index in enumerate(indices)]
        return self._batch(crops, made)

    def _begin(self, processes: Sequence[RegionProcess], indices: Sequence[int], epoch: int) -> _Begun:
        """Deals the regions of a batch out over the processes."""
        memory = SharedMemory(batch_bytes(self.crops, len(indices)))
        parts = []
        for first in range(min(len(processes), len(indices))):
            places = tuple(range(first, len(indices), len(processes)))
            parts.append(Part(epoch, len(indices), places, tuple(indices[place] for place in places)))
            processes[first].begin(parts[-1], memory)
        memory.sent()
        return _Begun(views(memory.array, self.crops, len(indices)), parts)

    def _finished(self, processes: Sequence[RegionProcess], begun: _Begun) -> CropBatch:
        made: dict[int, Made] = {}
        for process, part in zip(processes, begun.parts, strict=False):
            made |= zip(part.places, process.finish(), strict=True)
        return self._batch(begun.crops, [made[place] for place in range(len(made))])

    def _batch(self, crops: Sequence[np.ndarray], made: Sequence[Made]) -> CropBatch:
        for problem in (problem for one in made for problem in one.problems):
            if self.problems.setdefault(problem.error, problem) is problem and self.on_problem is not None:
                self.on_problem(problem)
        return CropBatch([torch.from_numpy(crop) for crop in crops], tuple(one.name for one in made))


@dataclass(frozen=True)
class _Begun:
    """A batch that is being made: its memory, and which process makes what."""

    crops: list[np.ndarray]
    parts: list[Part]
