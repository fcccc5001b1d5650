"""`longvit predict MODEL SLIDES…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import (
    Model,
    Out,
    Reading,
    Slides,
    SlidesDir,
    Workers,
    WorkerSettings,
    listed_slides,
    model_or_folder,
    print_outcome,
)
from longvit.slide_jobs.reading import ReadSettings


def predict(
    model: Model,
    slides: Slides,
    /,
    *,
    out: Out = Path("predictions"),
    pictures: Annotated[
        bool, Parameter(negative="", help="Also plot the contribution of each patch, `OUT/slides/<slide_id>.png`.")
    ] = False,
    slides_dir: SlidesDir = None,
    reading: Reading = ReadSettings(),
    workers: Workers = WorkerSettings(),
) -> int:
    """Predict classes, or risk and survival, of slides with a fine-tuned model.

    Writes `OUT/predictions.csv` with the predictions of every slide: `prob_<class>` and prediction, or risk and
    `survival_<time>_months`. Their provenance is in `OUT/slides/<slide_id>.json`. Finished slides are skipped when the
    command is run again. Run `longvit status OUT` in another terminal to see progress. A slide that cannot be read
    becomes a row of `OUT/problems.csv` and exit code 1; the run continues.

    **Examples**

    ```
    longvit predict run/model slides/
    longvit predict run/model "scans/*.svs" --pictures --device cuda
    longvit predict run/model slides/ --workers 4
    longvit predict run/model slides/ --cluster tcp://scheduler:8786
    longvit predict run/model cohort.csv --slides-dir /data/slides
    longvit predict run/model slides/ --regions annotations/ --region-class Tumor
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs.predict import predict_slides

    make_folder(out)
    listed = listed_slides(slides, slides_dir, out)
    result = predict_slides(listed, out, model_or_folder(model, workers), reading, workers, pictures=pictures)
    return print_outcome(result, out, f"Predictions: {out / 'predictions.csv'}")
