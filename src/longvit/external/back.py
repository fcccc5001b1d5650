"""The opposite direction: a fine-tuning on cohort B with the settings of the run, validated on the slides of the run.

OUT/back/run       the fine-tuning on cohort B; its split is by patient, as in a cohort table without a split
OUT/back/external  its external validation on cohort A
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from longvit.annotations.settings import AnnotationSettings
from longvit.data.cohort import Cohort, SlideRow
from longvit.data.table import column_name
from longvit.errors import InputError
from longvit.external.settings import ExternalSettings
from longvit.external.source_run import SourceRun, read_source_run
from longvit.external.validate import ExternalResult, validate, without_overlap
from longvit.finetuning.run import finetune
from longvit.tasks.settings import TaskSettings
from longvit.tasks.task import task_class

FOLDER = "back"


def refuse_back(run: SourceRun) -> None:
    """Raises `InputError` for a run that cannot be trained in the opposite direction."""
    if run.is_crossval:
        raise InputError(f"--back: for a fine-tuning; {run.folder} is a cross-validation, so give one of its folds")
    if run.first.slides is None:
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
    """Trains on cohort B (without its overlap with A), then validates on all slides of A; resumes like a fine-tuning.

    Subgroups and recalibration belong to cohort B and are left out. Raises the errors of `finetune` and `validate`.
    """
    from longvit.report import finetune_report

    refuse_back(run)
    cohort, _ = without_overlap(run, cohort, settings)
    cache_dir = settings.cache_dir or out_dir / "canvases"
    of_b = annotations or AnnotationSettings()
    own = {field.name: getattr(of_b, field.name) for field in fields(AnnotationSettings)}
    trained = replace(run.first.finetune_settings, cache_dir=cache_dir, device=device, threads=threads, **own)
    result = finetune(cohort, out_dir / FOLDER / "run", trained)
    finetune_report(result, cohort, trained)
    back = read_source_run(result.folder)
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


def cohort_of_run(run: SourceRun) -> Cohort:
    """All slides of a fine-tuning as a cohort to validate on, with the outcome in the columns of its settings."""
    slides = run.first.slides
    assert slides is not None
    classes = run.outputs if task_class(run.settings.task).has_classes else ()
    cohort = slides.cohort(classes)
    rows = tuple(replace(row, split=None, extra_columns=_with_outcome(row, run.settings)) for row in cohort.rows)
    return replace(cohort, rows=rows)


def _with_outcome(row: SlideRow, settings: TaskSettings) -> dict[str, str]:
    """Cells of a row of slides.csv, with time and event also under the names of the settings."""
    cells = dict(row.extra_columns)
    if settings.task == "survival":
        happened = cells["event"]
        cells[column_name(settings.time_column)] = cells["survival_months"]
        if settings.event_column is not None:
            cells[column_name(settings.event_column)] = happened
        if settings.censorship_column is not None:
            cells[column_name(settings.censorship_column)] = str(1 - int(happened))
    return cells
