"""`longvit embed MODEL SLIDES…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import (
    Cluster,
    Device,
    MaxBadTiles,
    Model,
    Mpp,
    Reader,
    Retries,
    Slides,
    SlidesDir,
    Threads,
    TimeoutS,
    Workers,
    end_of_batch,
    model_and_run,
)


def embed(
    model: Model,
    slides: Slides,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("embeddings"),
    device: Device = "auto",
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
    """One vector per slide, for a model of your own.

    Writes `OUT/embeddings.csv` (a line per slide) and `OUT/slide_features_longvit/<slide_id>.h5` in TRIDENT's layout,
    with a `.json` beside it that says where it came from. Finished slides are skipped when the command is given
    again; `longvit status OUT` looks on from elsewhere. A slide that cannot be read costs one row of
    `OUT/problems.csv` and exit code 1, not the run.

    **Examples**

    ```
    longvit embed run/model slides/
    longvit embed run/model a.svs b.ndpi --out embeddings
    longvit embed run/model slides/ --workers 4
    longvit embed run/model slides/ --cluster tcp://scheduler:8786
    longvit embed run/model cohort.csv --slides-dir /data/slides --max-bad-tiles 0
    ```
    """
    from longvit.batch import ReadSettings, embed_slides
    from longvit.data.slide_list import find_slides
    from longvit.files import make_folder

    make_folder(out)
    listed = find_slides(slides, slides_dir=slides_dir, leave_out=out)
    loaded, run = model_and_run(model, device, threads, workers, cluster, retries, timeout_s)
    result = embed_slides(loaded, listed, out, ReadSettings(mpp, reader, max_bad_tiles), run)
    return end_of_batch(result, out, f"Vectors: {out / 'embeddings.csv'}")
