"""Files of a heat map of 100,000 tiles: seconds and bytes of the GeoJSON for QuPath and of the two OME-TIFFs.

    python benchmarks/heatmap_files.py [--save]      (half a minute)

The tiles of 256 px lie on a grid of 400 × 250 without gaps; their scores are random, so they compress badly. Each row
is the fastest of three writes, and has the CPU seconds of that write beside those by the clock.

- `heat map`: rectangles and raster from coordinates and scores
- `geojson`, `geojson gzipped`: a tile per rectangle, 10 annotations
- `ome-tiff scores`, `ome-tiff colours`: 1,600 × 1,000 px
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from longvit.heatmaps.geojson import write_geojson
from longvit.heatmaps.heat_map import HeatMap, of_tiles
from longvit.heatmaps.ome_tiff import write_colours, write_scores
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from side_by_side import report

COLUMNS, ROWS, TILE_PX = 400, 250, 256
GOAL = {"geojson_seconds": 3, "geojson_bytes": 10_000_000}


def made() -> HeatMap:
    """Heat map of all tiles."""
    rng = np.random.default_rng(0)
    columns, rows = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    coords = np.stack([columns.ravel(), rows.ravel()], 1) * TILE_PX
    scores = rng.random(len(coords)).astype(np.float32)
    bounds = Box(0, 0, COLUMNS * TILE_PX, ROWS * TILE_PX)
    return of_tiles("made", scores / scores.sum(), coords, TILE_PX, bounds, Mpp(0.25, 0.25, "explicit"))


def row(name: str, call: Callable[[], Any], path: Path | None = None) -> dict[str, Any]:
    """The fastest of three calls."""
    times = []
    for _ in range(3):
        clock, cpu = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - clock, time.process_time() - cpu))
    seconds, cpu_seconds = min(times)
    size = {} if path is None else {"bytes": path.stat().st_size}
    return {"file": name, "tiles": COLUMNS * ROWS, "seconds": round(seconds, 3), "cpu_s": round(cpu_seconds, 3), **size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/heatmap_files.json")
    args = parser.parse_args()
    heat_map = made()
    rows: list[dict[str, Any]] = [{"goals": GOAL}, row("heat map", made)]
    with tempfile.TemporaryDirectory() as folder:
        for name, write, suffix in (
            ("geojson", write_geojson, ".geojson"),
            ("geojson gzipped", write_geojson, ".geojson.gz"),
            ("ome-tiff scores", write_scores, ".scores.ome.tif"),
            ("ome-tiff colours", write_colours, ".colour.ome.tif"),
        ):
            path = Path(folder) / f"made{suffix}"
            rows.append(row(name, lambda write=write, path=path: write(heat_map, path), path))
    report(Path(__file__).stem, rows, save=args.save)


if __name__ == "__main__":
    main()
