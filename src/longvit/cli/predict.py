"""`longvit predict MODEL SLIDES…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from longvit.cli.options import (
    ExcludeQc,
    HeatMaps,
    Model,
    Out,
    Reading,
    Slides,
    SlidesDir,
    TopK,
    Workers,
    WorkerSettings,
    echo,
    exclude_failed_rows,
    exclude_failed_slides,
    listed_slides,
    model_or_folder,
    print_outcome,
)
from longvit.external.settings import ExternalSettings
from longvit.slide_jobs.reading import ReadSettings

_EXTERNAL = Group("External validation (a run folder, and a CSV with labels)", sort_key=1)


def predict(
    model: Model,
    slides: Slides,
    /,
    *,
    out: Out = Path("predictions"),
    pictures: Annotated[
        bool, Parameter(negative="", help="Also plot the contribution of each patch, `OUT/slides/<slide_id>.png`.")
    ] = False,
    heatmaps: HeatMaps = (),
    top_k: TopK = 10,
    slides_dir: SlidesDir = None,
    exclude_qc: ExcludeQc = None,
    reading: Reading = ReadSettings(),
    workers: Workers = WorkerSettings(),
    external: Annotated[ExternalSettings, Parameter(name="*", group=_EXTERNAL)] = ExternalSettings(),
) -> int:
    """Predict slides with a fine-tuned model: classes, or risk and survival; with labels, validate it externally.

    Writes `OUT/predictions.csv` with the predictions of every slide: `prob_<class>` and prediction, or risk and
    `survival_<time>_months`. Their provenance is in `OUT/slides/<slide_id>.json`. Heat maps are in `OUT/heatmaps`, the
    top and bottom patches over all slides in `OUT/top` and `OUT/bottom`. Finished slides are skipped when the command
    is run again. Run `longvit status OUT` in another terminal to see progress. A slide that cannot be read becomes a
    row of `OUT/problems.csv` and exit code 1; the run continues.

    With the folder of a run (of `longvit train`, also with --folds) and one CSV with labels, the run is validated on
    these slides: `OUT/external/index.html` (open it in a browser), metrics.json and tables. A patient, slide or file
    that the run used is refused.

    **Examples**

    ```
    longvit predict run/model slides/
    longvit predict run/model "scans/*.svs" --pictures --device cuda
    longvit predict run/model slides/ --heatmaps geojson,ome-tiff,png
    longvit predict run/model slides/ --heatmaps geojson --heatmaps patches --top-k 20
    longvit predict run/model slides/ --workers 4
    longvit predict run/model slides/ --cluster tcp://scheduler:8786
    longvit predict run/model cohort.csv --slides-dir /data/slides
    longvit predict run/model slides/ --exclude-qc qc/qc.csv
    longvit predict run/model slides/ --regions annotations/ --region-class Tumor
    longvit predict runs/cv cohortB.csv --out external --subgroup scanner --prevalence 0.1
    longvit predict runs/first cohortB.csv --slides-dir /data/B --overlap drop --recalibrate-on 0.2
    ```
    """
    from longvit.external.source_run import is_run

    if is_run(model):
        return _predict_with_run(
            model, slides, out, slides_dir, pictures, heatmaps, top_k, exclude_qc, reading, workers, external
        )
    return _predict(model, slides, out, slides_dir, pictures, heatmaps, top_k, exclude_qc, reading, workers)


def _predict(
    model: Path,
    slides: tuple[Path, ...],
    out: Path,
    slides_dir: Path | None,
    pictures: bool,
    heatmaps: tuple[str, ...],
    top_k: int,
    exclude_qc: Path | None,
    reading: ReadSettings,
    workers: WorkerSettings,
) -> int:
    """Predictions of slides with the model of a folder."""
    from longvit.files import make_folder
    from longvit.heatmaps.formats import HeatMapSettings
    from longvit.slide_jobs.predict import predict_slides

    settings = HeatMapSettings.parsed(heatmaps, top_k)
    make_folder(out)
    listed = exclude_failed_slides(listed_slides(slides, slides_dir, out), exclude_qc, out)
    result = predict_slides(
        listed,
        out,
        model_or_folder(model, workers),
        reading,
        workers,
        pictures=pictures,
        heatmaps=settings.formats,
        top_k=settings.top_k,
    )
    return print_outcome(result, out, f"Predictions: {out / 'predictions.csv'}")


def _predict_with_run(
    folder: Path,
    slides: tuple[Path, ...],
    out: Path,
    slides_dir: Path | None,
    pictures: bool,
    heatmaps: tuple[str, ...],
    top_k: int,
    exclude_qc: Path | None,
    reading: ReadSettings,
    workers: WorkerSettings,
    external: ExternalSettings,
) -> int:
    """External validation of a run, where the slides are one CSV with labels; else predictions with its model."""
    from longvit.errors import InputError
    from longvit.external.labelled_cohort import read_labelled
    from longvit.external.source_run import read_source_run
    from longvit.external.validate import validate, validates

    run = read_source_run(folder)
    is_table = len(slides) == 1 and slides[0].suffix.lower() == ".csv"
    if not (is_table and validates(run, slides[0], external)):
        if run.is_crossval:
            raise InputError(
                f"{folder}: a cross-validation predicts one CSV with labels; for slides without labels give the model "
                f"of a fold, e.g. {run.first.folder / 'model'}"
            )
        return _predict(
            folder / "model", slides, out, slides_dir, pictures, heatmaps, top_k, exclude_qc, reading, workers
        )
    if pictures or heatmaps or not workers.is_here:
        option = "--pictures" if pictures else "--heatmaps" if heatmaps else "--workers, --cluster"
        raise InputError(f"{option}: not in an external validation; use `longvit predict {run.first.folder / 'model'}`")
    cohort = read_labelled(
        slides[0], run.settings, run.outputs, label_column=external.label_column, slides_dir=slides_dir
    )
    cohort, _ = exclude_failed_rows(cohort, exclude_qc, out)
    for line in (cohort.summary(), *cohort.notes):
        echo(line)
    result = validate(run, cohort, out, external, device=workers.device, threads=workers.threads, annotations=reading)
    print(result.summary())
    print(f"report: {result.folder / 'index.html'}")
    if left_out := [problem for problem in result.problems if problem.is_left_out]:
        echo(f"{len(left_out)} slides were left out, see {out / 'problems.csv'}")
        return 1
    return 0
