"""`longvit predict MODEL SLIDES…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longvit.cli.external import External, refuse_external_options, validate_run
from longvit.cli.options import (
    ExcludeQc,
    HeatMaps,
    Out,
    Reading,
    Slides,
    SlidesDir,
    TopK,
    Workers,
    WorkerSettings,
    exclude_failed_slides,
    listed_slides,
    model_or_folder,
    print_outcome,
)
from longvit.external.settings import ExternalSettings
from longvit.slide_jobs.reading import ReadSettings


def predict(
    model: Annotated[
        Path,
        Parameter(
            help="Model folder (config.json, model.safetensors), or the folder of a `longvit train` or `benchmark` run."
        ),
    ],
    slides: Slides,
    /,
    *,
    out: Out = Path("predictions"),
    pictures: Annotated[
        bool, Parameter(negative="", help="Also plot the contribution of each patch, `OUT/slides/<slide_id>.png`.")
    ] = False,
    heatmaps: HeatMaps = (),
    top_k: TopK = 10,
    heatmap_of: Annotated[
        str | None,
        Parameter(
            help="Class, label column or cut (`above 2`) of plots and heat maps. Default: the highest output.",
            show_default=False,
        ),
    ] = None,
    aggregate: Annotated[
        Literal["mean", "max"],
        Parameter(help="Prediction of a patient from those of its slides, where the CSV has a column case_id."),
    ] = "mean",
    slides_dir: SlidesDir = None,
    exclude_qc: ExcludeQc = None,
    reading: Reading = ReadSettings(),
    workers: Workers = WorkerSettings(),
    external: External = ExternalSettings(),
) -> int:
    """Predict slides with a fine-tuned model: classes, grades, numbers, labels, risk; with labels, validate externally.

    Writes `OUT/predictions.csv` with the predictions of every slide, in the columns of the model's task: `prob_<class>`
    and prediction; predicted_value; `probability_<column>`; or risk and `survival_<time>_months`. Their provenance is
    in `OUT/slides/<slide_id>.json`. Heat maps are in `OUT/heatmaps`, the top and bottom patches over all slides in
    `OUT/top` and `OUT/bottom`. Slides of a CSV with a column case_id are also aggregated in `OUT/patients.csv`.
    Finished slides are skipped when the command is run again. Run `longvit status OUT` in another terminal to see
    progress. A slide that cannot be read becomes a row of `OUT/problems.csv` and exit code 1; the run continues.

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
    longvit predict comparison cohortB.csv --features jobB --out external
    ```
    """
    from longvit.external.source_run import is_run
    from longvit.files import make_folder
    from longvit.heatmaps.formats import HeatMapSettings
    from longvit.slide_jobs.patients import patients_of_sources, write_patient_predictions
    from longvit.slide_jobs.predict import predict_slides

    if is_run(model):
        draws = "--pictures" if pictures else "--heatmaps" if heatmaps else None
        code = validate_run(model, slides, out, external, slides_dir, exclude_qc, reading, workers, draws)
        if code is not None:
            return code
        model = model / "model"
    refuse_external_options(external, model)
    settings = HeatMapSettings.parsed(heatmaps, top_k)
    make_folder(out)
    case_of = patients_of_sources(slides)
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
        heatmap_of=heatmap_of,
    )
    write_patient_predictions(out, result.records, case_of, aggregate)
    return print_outcome(result, out, f"Predictions: {out / 'predictions.csv'}")
