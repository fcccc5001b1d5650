"""`longvit embed MODEL SLIDES…`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

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
    listed_slides,
    model_and_run,
)
from longvit.errors import InputError


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
    sequence_ranks: Annotated[
        int,
        Parameter(help="Under torchrun: how many ranks share the patches of each slide; the others take other slides."),
    ] = 1,
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
    torchrun --nproc-per-node 8 -m longvit embed run/model slides/ --sequence-ranks 8
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs import ReadSettings, embed_slides

    if "RANK" in os.environ or sequence_ranks > 1:
        if workers > 1 or cluster is not None:
            raise InputError("torchrun has started the ranks that work: leave --workers and --cluster away")
        return _over_ranks(
            model, slides, out, device, slides_dir, threads, sequence_ranks, (mpp, reader, max_bad_tiles)
        )
    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    loaded, run = model_and_run(model, device, threads, workers, cluster, retries, timeout_s)
    result = embed_slides(loaded, listed, out, ReadSettings(mpp, reader, max_bad_tiles), run)
    return end_of_batch(result, out, f"Vectors: {out / 'embeddings.csv'}")


def _over_ranks(
    model: Path,
    slides: tuple[Path, ...],
    out: Path,
    device: str,
    slides_dir: Path | None,
    threads: int | None,
    sequence_ranks: int,
    read: tuple[Any, ...],
) -> int:
    from longvit.device import pick_device, set_threads
    from longvit.parallel import all_ranks
    from longvit.slide_jobs import ReadSettings
    from longvit.slide_jobs.embed_ranks import embed_over_ranks
    from longvit.slide_jobs.job import load_longvit

    with all_ranks(sequence_ranks, device=device) as ranks:
        set_threads(threads)
        listed = listed_slides(slides, slides_dir, out)
        loaded = load_longvit(model).to(pick_device(device).device)
        result = embed_over_ranks(loaded, listed, out, ranks, ReadSettings(*read))
    return end_of_batch(result, out, f"Vectors: {out / 'embeddings.csv'}") if ranks.is_first else 0
