"""Canvas: the whole slide as one square raster of `side_px`, as the paper feeds it to LongViT, and its file.

`canvas` streams (see `strips`), so memory is the raster and a few rows of tiles, whatever the slide. A canvas file is
an ordinary tiled TIFF that any viewer opens. Its ImageDescription holds the provenance of the pixels as JSON. The same
text is beside it (`x.tif.json`) for readers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit import __version__
from longvit.errors import InputError, one_line
from longvit.files import atomic_path, write_text
from longvit.slides.kept_area import KeptArea
from longvit.slides.mpp import Mpp
from longvit.slides.pixel_reader import BadTile, Rgb
from longvit.slides.placement import Box, Fit, Placement, check_side_and_fit
from longvit.slides.resampling import FILTER_NAME
from longvit.slides.strips import CanvasPlan, Decode, plan_canvas, planned_strips

if TYPE_CHECKING:
    from longvit.slides.reader import Slide

_FORMAT = "longvit canvas"
_FORMAT_VERSION = 1
_TILE_PX = 256


@dataclass(frozen=True)
class CanvasSource:
    """The slide of a canvas, with the reader and filter that made it."""

    name: str
    """File name without its folder."""
    identity: str
    """`Slide.identity()`: equal for a copy elsewhere."""
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
    """A slide as a raster, with its placement and its unreadable tiles. `numpy.asarray(canvas)` gives the pixels.

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
    """Index of the level that was read."""
    tiles: int
    """Number of tiles that were read."""
    bad_tiles: tuple[BadTile, ...]
    """Tiles that could not be decoded; they are filled with background."""
    source: CanvasSource
    """Slide, reader and filter of the canvas."""
    area: Mapping[str, Any] | None = None
    """Provenance of the kept area, outside of which pixels are background; None: the whole slide."""

    @property
    def side_px(self) -> int:
        """Side of the square canvas, in px."""
        return self.placement.side_px

    @property
    def mpp(self) -> tuple[float, float] | None:
        """µm per canvas pixel along x and y; None where the slide's resolution is unknown."""
        if self.source.mpp is None:
            return None
        down_x, down_y = self.placement.downsample
        return self.source.mpp.x * down_x, self.source.mpp.y * down_y

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.pixels, dtype=dtype, copy=copy)

    def provenance(self) -> dict[str, Any]:
        """Everything but the pixels, ready for JSON."""
        area = {} if self.area is None else {"regions": dict(self.area)}
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
            **area,
        }


def canvas(
    slide: Slide,
    side_px: int,
    fit: Fit = "stretch",
    *,
    decode: Decode = "exact",
    progress: Callable[[int, int], None] | bool | None = None,
    max_bad_tiles: int | None = None,
    threads: int | None = None,
    area: KeptArea | None = None,
) -> Canvas:
    """The whole slide (its bounds) as a uint8 RGB raster of side_px × side_px, streamed from the best level.

    A slide smaller than the canvas is enlarged.

    - `fit`: "stretch" fills the square, "pad" keeps the aspect ratio on background.
    - `decode`: "exact", or "reduced" (faster for JPEG tiles, a few grey levels off; see `plan_canvas`).
    - `progress`: True for a bar (log lines without a terminal), or a function of (tiles done, total tiles).
    - `max_bad_tiles`: more unreadable tiles than this raise an error; by default they are filled and counted.
    - `area`: pixels outside it are background.

    Raises `InputError` for a slide with a side under 32 px, an unknown fit, a side that is not a positive whole number,
    and a slide without a readable tile.
    """
    check_side_and_fit(side_px, fit)
    plan = plan_canvas(slide, side_px, fit, decode)
    bar = _Bar(f"read {slide.path.name}", tiles_of(plan)) if progress is True else nullcontext(progress or None)
    with bar as call:
        (whole,) = planned_strips(
            slide, plan, threads=threads, progress=call or None, max_bad_tiles=max_bad_tiles, area=area
        )
    source, record = source_of(slide, plan.level.reduction), None if area is None else area.record
    return Canvas(whole.pixels, plan.placement, plan.level.index, tiles_of(plan), whole.bad_tiles, source, record)


def source_of(slide: Slide, reduction: int = 1) -> CanvasSource:
    """Provenance of a slide for its canvas, which was reduced while decoding by `reduction`."""
    return CanvasSource(
        name=slide.path.name,
        identity=slide.identity(),
        size_px=slide.size_px,
        vendor=slide.vendor,
        mpp=slide.mpp,
        reader=slide.reader,
        reader_version=slide.reader_version,
        background=slide.background,
        filter=FILTER_NAME if reduction == 1 else f"JPEG decoded at 1/{reduction}, then {FILTER_NAME}",
    )


def write_canvas(canvas: Canvas, path: str | os.PathLike[str]) -> Path:
    """Writes a tiled TIFF (Deflate, lossless) and `<path>.json` beside it, atomically.

    A known resolution is also written to the TIFF's own tags. Raises `InputError` where it cannot be written.
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
            # ASCII, as the tag demands: json escapes other characters.
            description=text,
            metadata=None,
            software=f"longvit {__version__}",
            resolution=None if mpp is None else (1e4 / mpp[0], 1e4 / mpp[1]),
            resolutionunit=None if mpp is None else "CENTIMETER",
        )
    write_text(path.with_name(f"{path.name}.json"), text + "\n")
    return path


def read_canvas(path: str | os.PathLike[str]) -> Canvas:
    """Canvas from a file of `write_canvas`. Raises `InputError` for a missing, damaged or foreign file."""
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
    # The decoder and the record fail in many ways; in each the file is unusable.
    except Exception as error:
        raise InputError(f"{path}: not a canvas of longvit, or damaged ({one_line(error)}); make it again") from error


def _canvas_of(pixels: NDArray[np.uint8], record: dict[str, Any]) -> Canvas:
    slide = dict(record["slide"])
    slide["size_px"] = tuple(slide["size_px"])
    slide["background"] = tuple(slide["background"])
    slide["mpp"] = None if slide["mpp"] is None else Mpp(**slide["mpp"])
    placement = Placement(Box(**record["bounds_level0_px"]), record["side_px"], record["fit"])
    if pixels.shape != (placement.side_px, placement.side_px, 3):
        raise ValueError(f"its pixels have shape {pixels.shape}, its record says {placement.side_px} px a side")
    bad = tuple(BadTile(**tile) for tile in record["bad_tiles"])
    area = record.get("regions")
    return Canvas(pixels, placement, record["level"], record["tiles"], bad, CanvasSource(**slide), area)


def tiles_of(plan: CanvasPlan) -> int:
    """Number of tiles of the slide that a canvas reads."""
    return sum(plan.tiles_in(*tile_row) for tile_row in plan.tile_rows(0, plan.y_axis.n_out))


class _Bar:
    """Progress bar as a context manager; its value is called with (done, total)."""

    def __init__(self, title: str, total: int) -> None:
        from longvit.progress import Progress

        self._progress = Progress(title, total, unit="tiles", stream=sys.stderr)

    def __enter__(self) -> Callable[[int, int], None]:
        self._progress.__enter__()
        return lambda done, total: self._progress.advance(done - self._progress.done)

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)
