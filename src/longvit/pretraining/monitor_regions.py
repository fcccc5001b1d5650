"""Regions, unchanged, whose embeddings are looked at while a pretraining goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.pretraining.regions.regions import Regions

# A stream of random numbers of its own; those of the batches' order and of the crops are others.
_MONITORED = 2


@dataclass(frozen=True)
class MonitorRegions:
    """Regions, unchanged, whose embeddings are looked at."""

    pixels: Sequence[NDArray[np.uint8]]
    """(S, S, 3) each."""
    names: tuple[str, ...]
    slides: tuple[str, ...]


def read_monitor_regions(regions: Regions, n: int, side_px: int) -> MonitorRegions:
    """`n` regions (all of them where there are fewer), the same ones at every call, spread over the slides; one that
    cannot be read gives its place to the next."""
    from PIL import Image

    from longvit.pretraining.regions.region_reader import RegionReader, RegionUnreadableError

    order = np.random.default_rng([regions.seed, _MONITORED]).permutation(regions.samples).tolist()
    pixels, names, slides = [], [], []
    with RegionReader(regions.settings) as reader:
        for index in order:
            region = regions.region(index)
            try:
                image = Image.fromarray(reader.pixels(region))
            except RegionUnreadableError:
                continue
            pixels.append(np.asarray(image.resize((side_px, side_px), Image.Resampling.BICUBIC)))
            names.append(region.name)
            slides.append(region.source.slide_id)
            if len(pixels) == n:
                break
    if len(pixels) < 2:
        raise InputError(f"{regions.sources[0].path}: fewer than 2 of {regions.samples} regions can be read")
    return MonitorRegions(pixels, tuple(names), tuple(slides))
