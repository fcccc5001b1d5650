"""`longvit canvas SLIDES…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.cli.options import (
    CpuWorkers,
    Out,
    Reading,
    Slides,
    SlidesDir,
    WorkerSettings,
    listed_slides,
    print_outcome,
)
from longvit.slide_jobs.reading import ReadSettings


def canvas(
    slides: Slides,
    /,
    *,
    side_px: Annotated[int, Parameter(help="Side of the square canvas in pixels.")] = 4096,
    fit: Annotated[
        Literal["stretch", "pad"], Parameter(help="stretch fills the square; pad keeps the slide's aspect ratio.")
    ] = "stretch",
    out: Out = Path("canvases"),
    slides_dir: SlidesDir = None,
    reading: Reading = ReadSettings(),
    workers: CpuWorkers = WorkerSettings(),
) -> int:
    """Write whole slides as square images (canvases), the input of the model.

    Writes `OUT/<slide_id>.tif`, an ordinary tiled TIFF that any viewer opens, with its provenance in `.tif.json`, and
    `OUT/canvases.csv`. Finished slides are skipped when the command is run again. Run `longvit status OUT` in another
    terminal to see progress. A slide that cannot be read becomes a row of `OUT/problems.csv` and exit code 1; the run
    continues.

    **Examples**

    ```
    longvit canvas slides/ --side-px 4096
    longvit canvas a.svs b.ndpi --fit pad --out canvases
    longvit canvas cohort.csv --slides-dir /data/slides --workers 4
    longvit canvas slides/ --regions annotations/ --region-class Tumor
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs.canvas import canvas_slides

    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result = canvas_slides(listed, out, side_px, fit, reading, workers)
    return print_outcome(result, out, f"Canvases: {out / 'canvases.csv'}")
