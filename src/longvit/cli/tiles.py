"""`longvit tiles SLIDES…`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.cli.options import (
    CpuWorkers,
    Out,
    Reading,
    Slides,
    SlidesDir,
    Tiling,
    TilingSettings,
    TissueMask,
    WorkerSettings,
    echo,
    listed_slides,
    print_outcome,
)
from longvit.slide_jobs.reading import ReadSettings
from longvit.slides.tissue import TissueSettings

if TYPE_CHECKING:
    from longvit.slide_jobs.run import SlideJobsResult
    from longvit.slides.tissue import TissueSettings


def tiles(
    slides: Slides,
    /,
    *,
    out: Out = Path("tiles"),
    slides_dir: SlidesDir = None,
    tiling: Tiling = TilingSettings(),
    tissue: TissueMask = TissueSettings(),
    reading: Reading = ReadSettings(),
    workers: CpuWorkers = WorkerSettings(),
) -> int:
    """Find tissue and cut it into tiles: tile coordinates, and an overview image of each slide.

    Writes, in `OUT/20x_256px_0px_overlap` (named after the settings), `patches/<slide_id>_patches.h5` in TRIDENT's
    layout with a `.json` of its provenance, `visualization/<slide_id>.jpg`, `tissue/<slide_id>.geojson` (the outline of
    the tissue for QuPath; edit it and pass the folder as --regions), and `tiles.csv`. Coordinates are top-left corners
    in pixels of the largest level. A slide without tissue has no tiles, which is no problem. Finished slides
    are skipped when the command is run again. A slide that cannot be read, has no resolution or is smaller than a tile
    becomes a row of `OUT/problems.csv` and exit code 1; the run continues.

    **Examples**

    ```
    longvit tiles slides/ --out job
    longvit tiles slides/ --out job --tile-px 512 --tile-mpp 0.25 --overlap-px 64
    longvit tiles cohort.csv --slides-dir /data/slides --out job --min-tissue 0.5 --workers 4
    longvit tiles slides/ --out job --regions annotations/ --region-class Tumor
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs.tiles import TABLE, tile_folder, tile_slides

    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result = tile_slides(listed, out, tiling, tissue, reading, workers)
    print_tile_counts(result)
    return print_outcome(result, out, f"Tiles: {tile_folder(out, tiling) / TABLE}")


def print_tile_counts(result: SlideJobsResult) -> None:
    """Prints the number of tiles, and the slides without tiles."""
    records: Sequence[dict[str, Any]] = result.records
    total = sum(record["tiles"] for record in records)
    blank = [record["slide_id"] for record in records if not record["tiles"]]
    echo(f"{total:,} tiles on {len(records) - len(blank):,} slides")
    if blank:
        more = f" and {len(blank) - 5} more" if len(blank) > 5 else ""
        echo(f"no tiles on {len(blank)}: {', '.join(blank[:5])}{more}")
