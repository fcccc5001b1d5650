"""`longvit predict MODEL SLIDES…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longvit.cli.options import (
    Device,
    MaxBadTiles,
    Model,
    Mpp,
    Reader,
    Slides,
    SlidesDir,
    Threads,
    end_of_batch,
    load_longvit,
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
) -> int:
    """Class probabilities, or risk and survival, for slides with a fine-tuned model.

    Writes `OUT/predictions.csv`: `prob_<class>` and prediction (survival: risk and `survival_<time>_months`) of every
    slide; where each came from stands in `OUT/slides/<slide_id>.json`. Finished slides are skipped when the command is
    given again. A slide that cannot be read costs one row of `OUT/problems.csv` and exit code 1, not the run.

    **Examples**

    ```
    longvit predict run/model slides/
    longvit predict run/model "scans/*.svs" --pictures --device cuda
    longvit predict run/model cohort.csv --slides-dir /data/slides
    ```
    """
    from longvit.batch import ReadSettings, predict_slides
    from longvit.data.slide_list import find_slides
    from longvit.files import make_folder

    make_folder(out)
    listed = find_slides(slides, slides_dir=slides_dir, leave_out=out)
    loaded = load_longvit(model, device, threads)
    result = predict_slides(loaded, listed, out, ReadSettings(mpp, reader, max_bad_tiles), pictures=pictures)
    return end_of_batch(result, out, f"Predictions: {out / 'predictions.csv'}")
