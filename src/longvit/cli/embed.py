"""`longvit embed MODEL SLIDES…`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

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
from longvit.errors import InputError
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import RunSettings, SlideJobsResult


def embed(
    model: Model,
    slides: Slides,
    /,
    *,
    out: Out = Path("embeddings"),
    by: Annotated[
        Literal["slide", "patient"],
        Parameter(
            help="patient: also write `OUT/patient_embeddings.csv`, the mean of the vectors of each patient's slides "
            "(column case_id of the CSV)."
        ),
    ] = "slide",
    slides_dir: SlidesDir = None,
    anndata: Annotated[
        bool,
        Parameter(negative="", help="Also write `OUT/embeddings.h5ad` with the columns of the CSV (longvit[anndata])."),
    ] = False,
    sequence_ranks: Annotated[
        int,
        Parameter(help="Under torchrun: ranks that share the patches of one slide; the other ranks take other slides."),
    ] = 1,
    reading: Reading = ReadSettings(),
    workers: Workers = WorkerSettings(),
) -> int:
    """Embed slides: one vector per slide, for downstream models.

    Writes `OUT/embeddings.csv` (one row per slide) and `OUT/slide_features_longvit/<slide_id>.h5` in TRIDENT's layout,
    each with a `.json` of its provenance. Finished slides are skipped when the command is run again. Run `longvit
    status OUT` in another terminal to see progress. A slide that cannot be read becomes a row of `OUT/problems.csv` and
    exit code 1; the run continues.

    **Examples**

    ```
    longvit embed run/model slides/
    longvit embed run/model a.svs b.ndpi --out embeddings
    longvit embed run/model cohort.csv --anndata
    longvit embed run/model cohort.csv --by patient
    longvit embed run/model slides/ --workers 4
    longvit embed run/model slides/ --cluster tcp://scheduler:8786
    longvit embed run/model cohort.csv --slides-dir /data/slides --max-bad-tiles 0
    longvit embed run/model slides/ --regions annotations/ --region-class Tumor Stroma
    torchrun --nproc-per-node 8 -m longvit embed run/model slides/ --sequence-ranks 8
    ```
    """
    from longvit.files import make_folder
    from longvit.slide_jobs.embed import embed_slides

    if anndata:
        from longvit.slide_jobs.anndata_file import require_anndata

        require_anndata()
    if "RANK" in os.environ or sequence_ranks > 1:
        if not workers.is_here:
            raise InputError("--workers and --cluster are not for torchrun, whose ranks process the slides")
        return _embed_over_ranks(model, slides, out, slides_dir, sequence_ranks, reading, workers, anndata, by)
    make_folder(out)
    case_of = _patients(slides) if by == "patient" else {}
    listed = listed_slides(slides, slides_dir, out)
    result = embed_slides(listed, out, model_or_folder(model, workers), reading, workers)
    if anndata:
        _write_anndata(model, slides, out, result)
    if by == "patient":
        _write_patients(model, out, result, case_of)
    return print_outcome(result, out, f"Vectors: {out / 'embeddings.csv'}")


def _patients(slides: tuple[Path, ...]) -> dict[str, str]:
    from longvit.slide_jobs.patients import patients_of_sources

    if not (case_of := patients_of_sources(slides)):
        raise InputError("--by patient: give a CSV with the columns slide_id (or path) and case_id")
    return case_of


def _write_patients(model: Path, out: Path, result: SlideJobsResult, case_of: dict[str, str]) -> None:
    from longvit.slide_jobs.job import config_of
    from longvit.slide_jobs.patients import write_patient_embeddings

    write_patient_embeddings(out, result.records, case_of, config_of(model).embed_dim)


def _write_anndata(model: Path, slides: tuple[Path, ...], out: Path, result: SlideJobsResult) -> None:
    from longvit.slide_jobs.anndata_file import write_anndata
    from longvit.slide_jobs.job import config_of

    write_anndata(out, result.records, slides, config_of(model).embed_dim)


def _embed_over_ranks(
    model: Path,
    slides: tuple[Path, ...],
    out: Path,
    slides_dir: Path | None,
    sequence_ranks: int,
    reading: ReadSettings,
    run: RunSettings,
    anndata: bool,
    by: str,
) -> int:
    from longvit.device import pick_device, set_threads
    from longvit.parallel import all_ranks
    from longvit.slide_jobs.embed_ranks import embed_over_ranks
    from longvit.slide_jobs.job import load_longvit

    case_of = _patients(slides) if by == "patient" else {}
    with all_ranks(sequence_ranks, device=run.device) as ranks:
        set_threads(run.threads)
        listed = listed_slides(slides, slides_dir, out)
        longvit = load_longvit(model).to(pick_device(run.device).device)
        result = embed_over_ranks(longvit, listed, out, ranks, reading)
        if anndata and ranks.is_first:
            _write_anndata(model, slides, out, result)
        if by == "patient" and ranks.is_first:
            _write_patients(model, out, result, case_of)
    return print_outcome(result, out, f"Vectors: {out / 'embeddings.csv'}") if ranks.is_first else 0
