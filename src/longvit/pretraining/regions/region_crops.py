"""Crops of one region in one epoch: a function of (seed, epoch, index) alone, in whichever process they are made.

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

# Number of the random stream of the crops; the order of an epoch is another (`region_batches`).
_CROPS = 1
# More unreadable regions in a row than this are not a fault of single slides.
_ATTEMPTS = 32


@dataclass(frozen=True)
class RegionCrops:
    """The region whose crops were made; the pixels are in the memory that the caller gave."""

    name: str
    """Name of the region, `slide#17`."""
    problems: tuple[Problem, ...] = ()
    """Regions that could not be read and that this one replaces."""


@dataclass(frozen=True)
class CropJob:
    """All settings that determine the crops of a run."""

    regions: Regions
    crops: CropSettings
    seed: int
    cache: Path | None = None
    """Folder of regions that were read earlier."""


class CropMaker:
    """Makes crops, one region at a time; the slides read last stay open until `close`."""

    def __init__(self, job: CropJob) -> None:
        self._job = job
        self._reader = RegionReader(job.regions.settings, job.cache)
        self._blas = ThreadpoolController()

    def make(
        self,
        index: int,
        epoch: int,
        outs: Sequence[NDArray[np.uint8]],
        before_read: Callable[[int], None] = lambda _: None,
    ) -> RegionCrops:
        """Fills `outs`, one uint8 (3, side, side) per crop, from region `index`.

        A region that cannot be read is replaced by another one (`Regions.instead`). The replacement is a function of
        the index too, so a resumed run takes the same. `before_read` is called with the index of each region that is
        read. Raises `InputError` after too many unreadable regions in a row.
        """
        regions, unreadable = self._job.regions, list[tuple[Region, str]]()
        attempts = min(_ATTEMPTS, regions.samples)
        for attempt in range(attempts):
            replacement = regions.instead(index, attempt)
            before_read(replacement)
            region = regions.region(replacement, epoch)
            try:
                planes = self._reader.planes(region)
                break
            except RegionUnreadableError as error:
                unreadable.append((region, str(error)))
        else:
            raise InputError(f"{attempts} regions in a row cannot be read, the first: {unreadable[0][1]}")
        rng = np.random.default_rng([self._job.seed, epoch, _CROPS, index])
        # BLAS multiplies with other kernels on two threads than on one, with other last bits.
        with self._blas.limit(limits=1, user_api="blas"):
            for look, out in zip(draw_looks(self._job.crops, rng), outs, strict=True):
                make_crop(planes, look, out)
        problems = (
            Problem(bad.source.slide_id, "read", f"{text}; region {bad.name} is replaced") for bad, text in unreadable
        )
        return RegionCrops(region.name, tuple(problems))

    def close(self) -> None:
        """Closes the slides."""
        self._reader.close()


def crop_shapes(crops: CropSettings, samples: int) -> list[tuple[int, int, int, int]]:
    """Shape of every crop of a batch: (samples, 3, side, side)."""
    return [(samples, 3, side, side) for side in crops.sides_px]


def batch_bytes(crops: CropSettings, samples: int) -> int:
    """Size of a batch in bytes."""
    return sum(n * channels * height * width for n, channels, height, width in crop_shapes(crops, samples))


def crop_views(memory: NDArray[np.uint8], crops: CropSettings, samples: int) -> list[NDArray[np.uint8]]:
    """Crops of a batch as views of one piece of memory, one after another."""
    views, start = [], 0
    for shape in crop_shapes(crops, samples):
        end = start + int(np.prod(shape))
        views.append(memory[start:end].reshape(shape))
        start = end
    return views
