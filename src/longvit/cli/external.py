"""External validation of `longvit predict RUN cohortB.csv`: its options, and what the command does with a run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from longvit.cli.options import WorkerSettings, echo, exclude_failed_rows
from longvit.external.settings import ExternalSettings
from longvit.slide_jobs.reading import ReadSettings

External = Annotated[
    ExternalSettings,
    Parameter(name="*", group=Group("External validation (a run folder, and a CSV with labels)", sort_key=1)),
]


def validate_run(
    folder: Path,
    slides: tuple[Path, ...],
    out: Path,
    settings: ExternalSettings,
    slides_dir: Path | None,
    exclude_qc: Path | None,
    reading: ReadSettings,
    workers: WorkerSettings,
    draws: str | None,
) -> int | None:
    """Exit code of an external validation; None where the model of a fine-tuning predicts slides without labels.

    `draws`: option of heat maps that was given. `InputError`: options that an external validation does not have; a
    cross-validation without labels.
    """
    from longvit.errors import InputError
    from longvit.external.back import refuse_back, train_back
    from longvit.external.compared_systems import is_comparison
    from longvit.external.labelled_cohort import VALIDATED, read_labelled
    from longvit.external.source_run import read_source_run
    from longvit.external.validate import validate, validates

    if is_comparison(folder):
        return _validate_comparison(folder, slides, out, settings, slides_dir, exclude_qc, workers, draws)
    if settings.features is not None:
        raise InputError(f"--features: for a folder of `longvit benchmark`; {folder} is a fine-tuning")
    run = read_source_run(folder)
    model = run.first.folder / "model"
    is_table = len(slides) == 1 and slides[0].suffix.lower() == ".csv"
    if is_table and run.settings.task not in VALIDATED:
        only = f"external validation is for {' and '.join(VALIDATED)}; {folder} is of the task {run.settings.task}"
        if run.is_crossval:
            raise InputError(f"{only}; predict with the model of a fold, such as {model}")
        echo(f"{only}: its slides are predicted, without metrics")
        return None
    if not (is_table and validates(run, slides[0], settings)):
        if run.is_crossval:
            raise InputError(
                f"{folder}: a cross-validation predicts one CSV with labels; without labels give the model of a fold, "
                f"such as {model}"
            )
        return None
    if draws is not None or not workers.is_here:
        option = draws or "--workers, --cluster"
        raise InputError(f"{option}: not in an external validation; use `longvit predict {model}` for it")
    if settings.back:
        refuse_back(run)
    table = slides[0]
    cohort = read_labelled(
        table, run.settings, run.first.label_classes, label_column=settings.label_column, slides_dir=slides_dir
    )
    cohort, _ = exclude_failed_rows(cohort, exclude_qc, out)
    for line in (cohort.summary(), *cohort.notes):
        echo(line)
    device, threads = workers.device, workers.threads
    results = [validate(run, cohort, out, settings, device=device, threads=threads, annotations=reading)]
    if settings.back:
        print(f"A to B\n{results[0].summary()}\nreport: {results[0].folder / 'index.html'}\nB to A", flush=True)
        results.append(train_back(run, cohort, out, settings, device=device, threads=threads, annotations=reading))
    print(results[-1].summary())
    print(f"report: {results[-1].folder / 'index.html'}")
    if left_out := sum(problem.is_left_out for result in results for problem in result.problems):
        echo(f"{left_out} slides were left out, see {out / 'problems.csv'}")
        return 1
    return 0


def refuse_external_options(settings: ExternalSettings, model: Path) -> None:
    """Raises `InputError` where options of an external validation were given without a run or without labels."""
    from longvit.errors import InputError

    given = [field.name for field in fields(settings) if getattr(settings, field.name) != field.default]
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')}: for an external validation, which needs the folder of a run and one CSV "
            f"with labels; {model} is only asked for predictions"
        )


def _validate_comparison(
    folder: Path,
    slides: tuple[Path, ...],
    out: Path,
    settings: ExternalSettings,
    slides_dir: Path | None,
    exclude_qc: Path | None,
    workers: WorkerSettings,
    draws: str | None,
) -> int:
    """Exit code of the external validation of all systems of a comparison."""
    from longvit.errors import InputError
    from longvit.external.compared_systems import comparison_lines, read_compared_systems, validate_comparison
    from longvit.external.labelled_cohort import read_labelled
    from longvit.external.validate import validates

    if draws is not None or settings.back or not workers.is_here:
        raise InputError(f"{draws or ('--back' if settings.back else '--workers, --cluster')}: not for a comparison")
    if settings.features is None:
        raise InputError(f"{folder}: a comparison; give --features, a folder with the features of the CSV's slides")
    systems, notes = read_compared_systems(folder)
    run = systems[0].run
    is_table = len(slides) == 1 and slides[0].suffix.lower() == ".csv"
    if not (is_table and validates(run, slides[0], settings)):
        raise InputError(f"{folder}: a comparison predicts one CSV with labels")
    cohort = read_labelled(
        slides[0], run.settings, run.first.label_classes, label_column=settings.label_column, slides_dir=slides_dir
    )
    cohort, _ = exclude_failed_rows(cohort, exclude_qc, out)
    for line in (cohort.summary(), *cohort.notes):
        echo(line)
    result = validate_comparison(
        folder,
        systems,
        cohort,
        settings.features,
        out,
        settings,
        notes=notes,
        device=workers.device,
        threads=workers.threads,
    )
    print("\n".join(comparison_lines(result.metrics)))
    print(f"report: {result.folder / 'index.html'}")
    if result.problems:
        echo(f"{len(result.problems)} slides were left out, see {out / 'problems.csv'}")
        return 1
    return 0
