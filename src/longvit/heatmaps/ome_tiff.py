"""OME-TIFF of a heat map: float32 scores with their physical size and a pyramid, and the same map in colours.

    <slide>.scores.ome.tif    one channel, float32; NaN where there is no score
    <slide>.colour.ome.tif    uint8 RGB

Both span the slide's bounds exactly: width in px × PhysicalSizeX is the width of the slide in µm. Pixels of a stretched
canvas are not square. A level is every second pixel of the level above, so that every value is the score of a patch.
QuPath, napari and OMERO open both; OpenSlide opens the one in colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvit import __version__
from longvit.files import atomic_path, printable
from longvit.heatmaps.colours import coloured
from longvit.heatmaps.heat_map import HeatMap

_TILE_PX = 256
_LOWEST_LEVEL_PX = 256
"""Levels are added until both sides are at most this long."""


def write_scores(heat_map: HeatMap, path: str | Path) -> None:
    """Writes the scores as float32, atomically."""
    _write(heat_map, heat_map.raster, path, photometric="minisblack", axes="YX", channel=heat_map.measurement)


def write_colours(heat_map: HeatMap, path: str | Path) -> None:
    """Writes the map in colours, atomically."""
    _write(heat_map, coloured(heat_map), path, photometric="rgb", axes="YXS", channel=heat_map.measurement)


def _write(heat_map: HeatMap, pixels: NDArray[Any], path: str | Path, *, channel: str, axes: str, **more: Any) -> None:
    import tifffile

    levels = [pixels]
    while max(levels[-1].shape[:2]) > _LOWEST_LEVEL_PX:
        levels.append(levels[-1][::2, ::2])
    size: dict[str, Any] = {}
    metadata: dict[str, Any] = {"axes": axes, "Name": printable(heat_map.slide_id)}
    metadata["Channel"] = {"Name": printable(channel)}
    if (mpp := heat_map.raster_mpp) is not None:
        size = {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
        metadata |= {
            "PhysicalSizeX": mpp[0],
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": mpp[1],
            "PhysicalSizeYUnit": "µm",
        }
    settings: dict[str, Any] = {"tile": (_TILE_PX, _TILE_PX), "compression": "adobe_deflate", **more}
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as writer:
        writer.write(
            levels[0],
            subifds=len(levels) - 1,
            metadata=metadata,
            software=f"longvit {__version__}",
            **settings,
            **size,
        )
        for i, level in enumerate(levels[1:], 1):
            reduced = {"resolution": tuple(value / 2**i for value in size["resolution"])} if size else {}
            writer.write(np.ascontiguousarray(level), subfiletype=1, metadata=None, **settings, **(size | reduced))
