"""The crops of one region in one epoch, a function of (seed, epoch, index) alone, whoever makes them.

Imports no torch: it runs in processes that start in half a second and take little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from longvit.data.problems import Problem
from longvit.errors import InputError
from longvit.pretraining.regions.crops import CropSettings, draw_looks, make_crop
from longvit.pretraining.regions.region_reader import RegionReader, RegionUnreadableError
from longvit.pretraining.regions.regions import Region, Regions

# A stream of random numbers of its own; the order of an epoch is another (`region_batches`).
_CROPS = 1
# So many regions in a row that cannot be read are no fault of single slides.
_ATTEMPTS = 32


@dataclass(frozen=True)
class Made:
    """What came of a region."""

    name: str
    """Of the region that the crops are of."""
    problems: tuple[Problem, ...] = ()
    """Those that could not be read before it."""


@dataclass(frozen=True)
class CropJob:
    """All that decides the crops of a run."""

    regions: Regions
    crops: CropSettings
    seed: int
    cache: Path | None = None
    """Folder of regions that were read before."""


class CropMaker:
    """Makes crops, one region at a time; keeps the slides that it read last open until it is closed."""

    def __init__(self, job: CropJob) -> None:
        self._job = job
        self._reader = RegionReader(job.regions.settings, job.cache)
        self._blas = ThreadpoolController()

    def make(
        self,
        index: int,
        epoch: int,
        outs: Sequence[NDArray[np.uint8]],
        about_to_read: Callable[[int], None] = lambda _: None,
    ) -> Made:
        """Fills `outs`, one uint8 (3, side, side) per crop, from region `index`.

        A region that cannot be read is replaced by another one (`Regions.instead`), which is a function of the index
        too, so a resumed run replaces it by the same. `about_to_read` is told which one, before it is read. Raises
        `InputError` where so many cannot be read that it is no fault of theirs.
        """
        regions, failed = self._job.regions, list[tuple[Region, str]]()
        attempts = min(_ATTEMPTS, regions.samples)
        for attempt in range(attempts):
            taken = regions.instead(index, attempt)
            about_to_read(taken)
            region = regions.region(taken, epoch)
            try:
                planes = self._reader.planes(region)
                break
            except RegionUnreadableError as error:
                failed.append((region, str(error)))
        else:
            raise InputError(f"{attempts} regions in a row cannot be read, the first: {failed[0][1]}")
        rng = np.random.default_rng([self._job.seed, epoch, _CROPS, index])
        # Two threads share a product out by other kernels than one, with other last bits.
        with self._blas.limit(limits=1, user_api="blas"):
            for look, out in zip(draw_looks(self._job.crops, rng), outs, strict=True):
                make_crop(planes, look, out)
        problems = (Problem(r.source.slide_id, "read", f"{text}; region {r.name} is replaced") for r, text in failed)
        return Made(region.name, tuple(problems))

    def close(self) -> None:
        """Closes the slides."""
        self._reader.close()


def shapes(crops: CropSettings, samples: int) -> list[tuple[int, int, int, int]]:
    """The shape of every crop of a batch."""
    return [(samples, 3, side, side) for side in crops.sides_px]


def batch_bytes(crops: CropSettings, samples: int) -> int:
    """The size of a batch."""
    return sum(n * channels * height * width for n, channels, height, width in shapes(crops, samples))


def views(memory: NDArray[np.uint8], crops: CropSettings, samples: int) -> list[NDArray[np.uint8]]:
    """The crops of a batch, behind each other in one piece of memory."""
    out, start = [], 0
    for shape in shapes(crops, samples):
        end = start + int(np.prod(shape))
        out.append(memory[start:end].reshape(shape))
        start = end
    return out
