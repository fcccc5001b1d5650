"""The pixels of regions, read from their slides or from a folder where they were put when they were read first.

A process keeps the slides that it read last open. The folder (an option) holds a file per region with its pixels as
they are, so that what comes from there has the same bits; its names are made of the slide's content and the place on
it, so that runs may share it, also at the same time. It pays where decoding is slow (PNG, JPEG 2000, a network).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvit.errors import InputError
from longvit.files import atomic_path
from longvit.pretraining.regions.regions import Region, RegionSettings, RegionSource

if TYPE_CHECKING:
    from longvit.slides.reader import Slide

# Slides kept open, and decoded images kept with them (a PNG or JPEG is decoded whole).
_OPEN = 16
_OPEN_BYTES = 2**28


class RegionUnreadableError(Exception):
    """A region cannot be read; the text is one line with the file. Another one takes its place."""


class RegionReader:
    """Reads regions, one at a time; a context manager closes its slides."""

    def __init__(self, settings: RegionSettings, cache: Path | None = None) -> None:
        self._settings, self._cache = settings, cache
        self._open: OrderedDict[Path, Slide] = OrderedDict()

    def planes(self, region: Region) -> NDArray[np.uint8]:
        """The region as the slide has it: uint8 (3, `region.height_px`, `region.width_px`).

        Raises `RegionUnreadableError` where the slide does not give it, `InputError` where the folder takes nothing.
        """
        if self._cache is None:
            return self._read(region)
        path = self._cache / cache_name(region)
        if (kept := _kept(path, region)) is not None:
            return kept
        planes = self._read(region)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, planes)
        return planes

    def pixels(self, region: Region) -> NDArray[np.uint8]:
        """The region at its resolution: uint8 (side, side, 3)."""
        image, side = Image.fromarray(np.moveaxis(self.planes(region), 0, -1)), region.side_px
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return np.array(image)

    def close(self) -> None:
        """Closes the slides; reading opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> RegionReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, region: Region) -> NDArray[np.uint8]:
        source, size = region.source, (region.width_px, region.height_px)
        block = np.empty((size[1], size[0], 4), np.uint8)
        try:
            bad = self._slide(source).read_block(source.level, region.x_px, region.y_px, block)
        except InputError as error:
            raise RegionUnreadableError(str(error)) from error
        except MemoryError:
            raise
        # Decoders raise whatever they like on damaged bytes.
        except Exception as error:
            text = " ".join(str(error).split()) or "no further word"
            raise RegionUnreadableError(f"{source.path}: {type(error).__name__}: {text}") from error
        if len(bad) > self._settings.max_bad_tiles:
            raise RegionUnreadableError(f"{source.path}: {len(bad)} tiles cannot be read, the first {bad[0]}")
        whole = Image.frombuffer("RGBX", size, block, "raw", "RGBX", 0, 1)
        return np.stack([np.asarray(channel) for channel in whole.split()[:3]])  # Pillow parts channels 4 times as fast

    def _slide(self, source: RegionSource) -> Slide:
        from longvit.slides.reader import open_slide

        slide = self._open.pop(source.path, None)
        if slide is None:
            slide = open_slide(source.path, reader=source.reader)
        self._open[source.path] = slide
        while len(self._open) > 1 and (len(self._open) > _OPEN or sum(map(_bytes, self._open.values())) > _OPEN_BYTES):
            self._open.popitem(last=False)[1].close()
        return slide


def read_region(region: Region, settings: RegionSettings) -> NDArray[np.uint8]:
    """One region, plain: uint8 (side, side, 3) at the resolution of the settings. For many take a `RegionReader`.

    Raises `InputError` where the slide does not give it.
    """
    with RegionReader(settings) as reader:
        try:
            return reader.pixels(region)
        except RegionUnreadableError as error:
            raise InputError(str(error)) from error


def cache_name(region: Region) -> str:
    """`P01_0123456789abcdef.npy`."""
    source = region.source
    deciding = [source.identity, source.level, region.x_px, region.y_px, region.width_px, region.height_px]
    key = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in source.slide_id)[:120]
    return f"{safe}_{key}.npy"


def _kept(path: Path, region: Region) -> NDArray[np.uint8] | None:
    """What lies in the folder; None where nothing whole does."""
    try:
        planes: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # not there, cut off, or another file: then it is read again
        return None
    is_whole = planes.dtype == np.uint8 and planes.shape == (3, region.height_px, region.width_px)
    return np.array(planes) if is_whole else None


def _bytes(slide: Slide) -> int:
    width_px, height_px = slide.size_px
    return 3 * width_px * height_px if slide.reader == "image" else 0
