"""`longvit canvas SLIDES…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.cli.options import (
    Cluster,
    MaxBadTiles,
    Mpp,
    Reader,
    Retries,
    Slides,
    SlidesDir,
    Threads,
    TimeoutS,
    Workers,
    end_of_batch,
    listed_slides,
)


def canvas(
    slides: Slides,
    /,
    *,
    side_px: Annotated[int, Parameter(help="Side of the square canvas in pixels.")] = 4096,
    fit: Annotated[
        Literal["stretch", "pad"], Parameter(help="stretch fills the square; pad keeps the slide's proportions.")
    ] = "stretch",
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("canvases"),
    mpp: Mpp = None,
    max_bad_tiles: MaxBadTiles = None,
    reader: Reader = "auto",
    slides_dir: SlidesDir = None,
    threads: Threads = None,
    workers: Workers = 1,
    cluster: Cluster = None,
    retries: Retries = 2,
    timeout_s: TimeoutS = 1800.0,
) -> int:
    """Whole slides as square pictures, the way the model sees them.

    Writes `OUT/<slide_id>.tif`, an ordinary tiled TIFF that any viewer opens, with a `.tif.json` that says where its
    pixels came from, and `OUT/canvases.csv`. Finished slides are skipped when the command is given again;
    `longvit status OUT` looks on from elsewhere. A slide that cannot be read costs one row of `OUT/problems.csv` and
    exit code 1, not the run.

    **Examples**

    ```
    longvit canvas slides/ --side-px 4096
    longvit canvas a.svs b.ndpi --fit pad --out canvases
    longvit canvas cohort.csv --slides-dir /data/slides --workers 4
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs import ReadSettings, RunSettings, canvas_slides

    run = RunSettings(workers, cluster, retries, timeout_s or None, reads_apart=True, threads=threads)
    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result = canvas_slides(listed, out, side_px, fit, ReadSettings(mpp, reader, max_bad_tiles), run)
    return end_of_batch(result, out, f"Canvases: {out / 'canvases.csv'}")
