"""The whole slide as one square raster of `side_px`, as the paper feeds it to LongViT, and its file.

`canvas` streams (see `strips`): the memory is that of the raster and a few rows of tiles, whatever the slide. A canvas
file is an ordinary tiled TIFF that any viewer opens; its ImageDescription holds where the pixels came from as JSON,
and the same text lies beside it (`x.tif.json`) for people.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit import __version__
from longvit.errors import InputError
from longvit.files import atomic_path, write_text
from longvit.slides.mpp import Mpp
from longvit.slides.pixel_reader import BadTile, Rgb, one_line
from longvit.slides.placement import Box, Fit, Placement, check_side_and_fit
from longvit.slides.resampling import FILTER_NAME
from longvit.slides.strips import CanvasPlan, canvas_strips, plan_canvas

if TYPE_CHECKING:
    from longvit.slides.reader import Slide

_FORMAT = "longvit canvas"
_FORMAT_VERSION = 1
_TILE_PX = 256


@dataclass(frozen=True)
class CanvasSource:
    """The slide that a canvas was made of, and with what."""

    name: str
    """The file's name without its folder."""
    identity: str
    """`Slide.identity()`: the same for a copy elsewhere."""
    size_px: tuple[int, int]
    vendor: str
    mpp: Mpp | None
    reader: str
    reader_version: str
    background: Rgb
    filter: str = FILTER_NAME
    package_version: str = __version__


@dataclass(frozen=True)
class Canvas:
    """A slide as a raster, with where it lies and what was lost. `numpy.asarray(canvas)` gives the pixels.

    >>> import longvit, numpy
    >>> canvas = longvit.open_slide("examples/CMU-1-Small-Region.svs").canvas(256)
    >>> numpy.asarray(canvas).shape, canvas.placement.to_level0(128, 128)
    ((256, 256, 3), (1110.0, 1483.5))
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    """RGB uint8 (side, side, 3)."""
    placement: Placement
    """Canvas px <-> level-0 px."""
    level: int
    """The level that was read."""
    tiles: int
    """How many tiles of it were read."""
    bad_tiles: tuple[BadTile, ...]
    """Those that could not be decoded and are background."""
    source: CanvasSource

    @property
    def side_px(self) -> int:
        return self.placement.side_px

    @property
    def mpp(self) -> tuple[float, float] | None:
        """µm per canvas pixel along x and y; None where the slide's resolution is not known."""
        if self.source.mpp is None:
            return None
        down_x, down_y = self.placement.downsample
        return self.source.mpp.x * down_x, self.source.mpp.y * down_y

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.pixels, dtype=dtype, copy=copy)

    def provenance(self) -> dict[str, Any]:
        """Everything but the pixels, ready for JSON."""
        return {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "slide": asdict(self.source),
            "side_px": self.side_px,
            "fit": self.placement.fit,
            "bounds_level0_px": asdict(self.placement.bounds),
            "canvas_mpp": self.mpp,
            "level": self.level,
            "tiles": self.tiles,
            "bad_tiles": [asdict(tile) for tile in self.bad_tiles],
        }


def canvas(
    slide: Slide,
    side_px: int,
    fit: Fit = "stretch",
    *,
    progress: Callable[[int, int], None] | bool | None = None,
    max_bad_tiles: int | None = None,
    threads: int | None = None,
) -> Canvas:
    """The whole slide (its bounds) as a uint8 RGB raster of side_px × side_px, streamed from the best level.

    `fit`: "stretch" fills the square, "pad" keeps the aspect ratio on background. A slide smaller than the canvas is
    enlarged. `progress`: True for a bar (a line now and then where there is no terminal) or a function of
    (tiles done, tiles in all). `max_bad_tiles`: more unreadable tiles than this raise; default: filled and counted.

    Raises `InputError` for a slide with a side under 32 px, an unknown fit, a side that is no positive whole number,
    a slide of which nothing can be read.
    """
    check_side_and_fit(side_px, fit)
    plan = plan_canvas(slide, side_px, fit)
    bar = _Bar(f"read {slide.path.name}", tiles_of(plan)) if progress is True else nullcontext(progress or None)
    with bar as call:
        strips = canvas_strips(slide, side_px, fit, threads=threads, progress=call or None, max_bad_tiles=max_bad_tiles)
        (whole,) = strips
    return Canvas(whole.pixels, plan.placement, plan.level.index, tiles_of(plan), whole.bad_tiles, source_of(slide))


def source_of(slide: Slide) -> CanvasSource:
    """What a canvas remembers of its slide."""
    return CanvasSource(
        name=slide.path.name,
        identity=slide.identity(),
        size_px=slide.size_px,
        vendor=slide.vendor,
        mpp=slide.mpp,
        reader=slide.reader,
        reader_version=slide.reader_version,
        background=slide.background,
    )


def write_canvas(canvas: Canvas, path: str | os.PathLike[str]) -> Path:
    """Writes a tiled TIFF (Deflate, lossless) and `<path>.json` beside it; atomic: the old file or the whole new one.

    The resolution stands in the TIFF's own tags where it is known. Raises `InputError` where it cannot be written.
    """
    import tifffile

    path = Path(path)
    text = json.dumps(canvas.provenance(), indent=1)
    mpp = canvas.mpp
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            canvas.pixels,
            photometric="rgb",
            tile=(_TILE_PX, _TILE_PX),
            compression="adobe_deflate",
            compressionargs={"level": 1},
            predictor=True,
            # ASCII, as the tag demands: json escapes what is not.
            description=text,
            metadata=None,
            software=f"longvit {__version__}",
            resolution=None if mpp is None else (1e4 / mpp[0], 1e4 / mpp[1]),
            resolutionunit=None if mpp is None else "CENTIMETER",
        )
    write_text(path.with_name(f"{path.name}.json"), text + "\n")
    return path


def read_canvas(path: str | os.PathLike[str]) -> Canvas:
    """Reads what `write_canvas` wrote. Raises `InputError` for a missing, damaged or foreign file."""
    import tifffile

    path = Path(path)
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            record = json.loads(page.description)
            if record.get("format") != _FORMAT:
                raise ValueError("its description is not that of a canvas")
            pixels = page.asarray()
            return _canvas_of(pixels, record)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    # Whatever breaks inside the decoder or the record, the file is of no use.
    except Exception as error:
        raise InputError(f"{path}: no canvas of longvit, or damaged ({one_line(error)}); make it again") from error


def _canvas_of(pixels: NDArray[np.uint8], record: dict[str, Any]) -> Canvas:
    slide = dict(record["slide"])
    slide["size_px"] = tuple(slide["size_px"])
    slide["background"] = tuple(slide["background"])
    slide["mpp"] = None if slide["mpp"] is None else Mpp(**slide["mpp"])
    placement = Placement(Box(**record["bounds_level0_px"]), record["side_px"], record["fit"])
    if pixels.shape != (placement.side_px, placement.side_px, 3):
        raise ValueError(f"its pixels are {pixels.shape}, its record says {placement.side_px} px a side")
    bad = tuple(BadTile(**tile) for tile in record["bad_tiles"])
    return Canvas(pixels, placement, record["level"], record["tiles"], bad, CanvasSource(**slide))


def tiles_of(plan: CanvasPlan) -> int:
    """How many tiles of the slide a canvas reads."""
    return sum(plan.tiles_in(*stretch) for stretch in plan.tile_rows(0, plan.y_axis.n_out))


class _Bar:
    """Progress as a context manager whose value is called with (done, total)."""

    def __init__(self, what: str, total: int) -> None:
        from longvit.progress import Progress

        self._progress = Progress(what, total, unit="tiles", stream=sys.stderr)

    def __enter__(self) -> Callable[[int, int], None]:
        self._progress.__enter__()
        return lambda done, total: self._progress.advance(done - self._progress.done)

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)
