"""`longvit predict MODEL SLIDES…`"""

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
    listed_slides,
    model_and_run,
)


def predict(
    model: Model,
    slides: Slides,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("predictions"),
    pictures: Annotated[
        bool, Parameter(negative="", help="Also draw what each patch contributes, `OUT/slides/<slide_id>.png`.")
    ] = False,
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
    """Class probabilities, or risk and survival, for slides with a fine-tuned model.

    Writes `OUT/predictions.csv`: `prob_<class>` and prediction (survival: risk and `survival_<time>_months`) of every
    slide; where each came from stands in `OUT/slides/<slide_id>.json`. Finished slides are skipped when the command
    is given again; `longvit status OUT` looks on from elsewhere. A slide that cannot be read costs one row of
    `OUT/problems.csv` and exit code 1, not the run.

    **Examples**

    ```
    longvit predict run/model slides/
    longvit predict run/model "scans/*.svs" --pictures --device cuda
    longvit predict run/model slides/ --workers 4
    longvit predict run/model slides/ --cluster tcp://scheduler:8786
    longvit predict run/model cohort.csv --slides-dir /data/slides
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs import ReadSettings, predict_slides

    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    loaded, run = model_and_run(model, device, threads, workers, cluster, retries, timeout_s)
    result = predict_slides(loaded, listed, out, ReadSettings(mpp, reader, max_bad_tiles), run, pictures=pictures)
    return end_of_batch(result, out, f"Predictions: {out / 'predictions.csv'}")
