"""The opposite direction: the training of the run on cohort B, with its settings, validated on the slides of the run.

OUT/back/run       the fine-tuning on cohort B; its split is by patient, as in a cohort table without a split. Of a
                   cross-validation: as many new folds, by patient and stratum
OUT/back/external  its external validation on cohort A
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from longvit.annotations.settings import AnnotationSettings
from longvit.data.cohort import Cohort
from longvit.data.new_folds import make_folds
from longvit.errors import InputError
from longvit.external.settings import ExternalSettings
from longvit.external.source_run import SourceRun, read_source_run
from longvit.external.validate import ExternalResult, validate, without_overlap
from longvit.finetuning.run import finetune
from longvit.finetuning.run_slides import with_outcome
from longvit.finetuning.settings import FinetuneSettings
from longvit.tasks.task import task_class

FOLDER = "back"


def refuse_back(run: SourceRun) -> None:
    """Raises `InputError` for a run that cannot be trained in the opposite direction."""
    if any(member.slides is None for member in run.members):
        raise InputError(f"--back: {run.folder} is a run of an older version, without slides.csv; train it again")


def train_back(
    run: SourceRun,
    cohort: Cohort,
    out_dir: Path,
    settings: ExternalSettings,
    *,
    device: str = "auto",
    threads: int | None = None,
    annotations: AnnotationSettings | None = None,
) -> ExternalResult:
    """Trains on cohort B (without its overlap with A), then validates on all slides of A; resumes like `longvit train`.

    Subgroups and recalibration belong to cohort B and are left out. Raises the errors of `finetune` and `validate`.
    """
    refuse_back(run)
    cohort, _ = without_overlap(run, cohort, settings)
    cache_dir = settings.cache_dir or out_dir / "canvases"
    of_b = annotations or AnnotationSettings()
    own = {field.name: getattr(of_b, field.name) for field in fields(AnnotationSettings)}
    trained = replace(run.first.finetune_settings, cache_dir=cache_dir, device=device, threads=threads, **own)
    folder = out_dir / FOLDER / "run"
    if run.is_crossval:
        _train_folds(cohort, folder, trained, len(run.members))
    else:
        _train_once(cohort, folder, trained)
    back = read_source_run(folder)
    of_a = {field.name: getattr(run.first.finetune_settings, field.name) for field in fields(AnnotationSettings)}
    return validate(
        back,
        cohort_of_run(run),
        out_dir / FOLDER,
        replace(settings, subgroup=(), recalibrate_on=None, cache_dir=cache_dir),
        device=device,
        threads=threads,
        annotations=AnnotationSettings(**of_a),
    )


def _train_once(cohort: Cohort, folder: Path, settings: FinetuneSettings) -> None:
    from longvit.report import finetune_report

    finetune_report(finetune(cohort, folder, settings), cohort, settings)


def _train_folds(cohort: Cohort, folder: Path, settings: FinetuneSettings, k: int) -> None:
    """Cross-validation in k new folds. `InputError`: too few patients for them, slides that leave a fold empty."""
    from longvit.finetuning.crossval import cross_validate
    from longvit.report import crossval_report

    strata = task_class(settings.task).strata(cohort, settings)
    folds = make_folds(cohort, k, seed=settings.seed, strata=strata)
    result = cross_validate(cohort, folder, folds, settings)
    assert result is not None
    crossval_report(result.summary, folder, images={row.slide_id: row.path for row in cohort.rows})


def cohort_of_run(run: SourceRun) -> Cohort:
    """All slides of a run as a cohort to validate on, with the outcome in the columns of its settings."""
    slides = run.first.slides
    assert slides is not None
    rows = tuple(with_outcome(replace(row, split=None), run.settings) for row in run.rows())
    return Cohort(rows, run.first.label_classes, str(slides.path), is_ordered=True)
