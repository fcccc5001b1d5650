"""`longvit train COHORT.csv`"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from longvit.cli.options import SETTINGS, Recipe, echo
from longvit.tasks.settings import FinetuneSettings

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.data.folds import Fold
    from longvit.parallel.ranks import Ranks


def train(
    cohort: Annotated[
        Path,
        Parameter(
            help="CSV with a row per slide: slide_id or path, and label (survival: survival_months and event or "
            "censorship); optionally case_id (the patient), split, fold, site, mpp."
        ),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the run.")] = Path("run"),
    recipe: Recipe = None,
    label_column: Annotated[str, Parameter(help="Which column of the CSV holds the class.")] = "label",
    keep: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=True,
            negative="",
            help="Use these classes only, in this order; rows of others are left out and counted.",
            show_default=False,
        ),
    ] = (),
    slides_dir: Annotated[
        Path | None, Parameter(help="Where slides without a path lie, if not beside the CSV.", show_default=False)
    ] = None,
    allow_missing: Annotated[
        bool,
        Parameter(
            negative="", help="Leave out slides without a file (a row of problems.csv each) instead of refusing."
        ),
    ] = False,
    folds: Annotated[
        str | None,
        Parameter(
            help="Cross-validation: a number (5: new folds, by patient and stratum), a folder of splits_0.csv … as "
            "published, or `column` (each value of the CSV's column fold is the test once).",
            show_default=False,
        ),
    ] = None,
    fold: Annotated[
        tuple[str, ...], Parameter(negative="", help="Only this fold (may be given again).", show_default=False)
    ] = (),
    patient_disjoint: Annotated[
        bool, Parameter(negative="", help="Move patients who stand on two sides of a fold to one side.")
    ] = False,
    jobs: Annotated[int, Parameter(help="Folds at once, each in a process of its own.")] = 1,
    settings: Annotated[FinetuneSettings, Parameter(name="*", group=SETTINGS)] = FinetuneSettings(),
) -> int:
    """Fine-tune on slides and a CSV of labels or survival times; with --folds, a cross-validation.

    Writes `OUT/index.html` (open it in a browser), predictions, metrics, pictures, and the model in `OUT/model`; with
    --folds all of that per fold in `OUT/fold_0` …, and one table and report over them. Settings come from the
    defaults (the paper's), then from --recipe, then from the command line. Given again, the same command goes on where
    it was interrupted. A slide that cannot be read costs one row of `problems.csv` and exit code 1, not the run.

    **Examples**

    ```
    longvit train cohort.csv --out runs/first
    longvit train cohort.csv --recipe subtyping --side-px 4096 --lr 1e-4
    longvit train cohort.csv --folds 5 --jobs 2 --out runs/cv
    longvit train tcga_ucec.csv --task survival --folds splits/tcga_ucec --slides-dir /data/slides
    longvit train labels.csv --label-column subtype --slides-dir /data/slides --weights longvit-s
    torchrun --nproc-per-node 8 -m longvit train cohort.csv --side-px 32768 --sequence-ranks 4
    ```

    The last one trains on 8 GPUs of a machine: 4 share the patches of a slide, so 2 slides are in work at once. The
    result is that of one process; `--max-restarts 3` (before -m) lets torchrun go on from the last checkpoint after a
    rank has died.
    """
    with all_ranks_of(settings.sequence_ranks, settings.device) as ranks:
        return _train(
            cohort,
            ranks,
            out=out,
            label_column=label_column,
            keep=keep,
            slides_dir=slides_dir,
            allow_missing=allow_missing,
            folds=folds,
            fold=fold,
            patient_disjoint=patient_disjoint,
            jobs=jobs,
            settings=settings,
        )


def all_ranks_of(sequence_ranks: int, device: str) -> AbstractContextManager[Ranks | None]:
    """Those that torchrun has started; a process by itself need not load torch before it has read the cohort."""
    if "RANK" not in os.environ and sequence_ranks == 1:
        return nullcontext()
    from longvit.parallel.ranks import all_ranks

    return all_ranks(sequence_ranks, device=device)


def _train(
    cohort: Path,
    ranks: Ranks | None,
    *,
    out: Path,
    label_column: str,
    keep: tuple[str, ...],
    slides_dir: Path | None,
    allow_missing: bool,
    folds: str | None,
    fold: tuple[str, ...],
    patient_disjoint: bool,
    jobs: int,
    settings: FinetuneSettings,
) -> int:
    from longvit.data.cohort import read_cohort
    from longvit.device import pick_device
    from longvit.files import make_folder
    from longvit.finetuning.run import finetune
    from longvit.report import finetune_report
    from longvit.tasks.task import task_class

    is_first = ranks is None or ranks.is_first
    if is_first:
        make_folder(out)
    pick_device(settings.device)  # before any slide is touched
    manifest = read_cohort(
        cohort,
        label_column=label_column if task_class(settings.task).has_classes else None,
        keep=keep or None,
        slides_dir=slides_dir,
        need_files=not allow_missing,
        allow_leak=settings.allow_leak,
    )
    for line in (manifest.summary(), *manifest.notes) if is_first else ():
        echo(line)
    if folds is not None:
        command = _command_of_a_fold(cohort, out, label_column, keep, slides_dir, allow_missing)
        rounds = _folds(manifest, folds, settings, patient_disjoint)
        return _cross_validate(manifest, rounds, settings, out, fold, jobs, command, ranks)
    result = finetune(manifest, settings, out, ranks=ranks)
    if not is_first:
        return 0
    if result.was_finished:
        echo(f"{out}: finished before with these settings; nothing was computed")
    report = finetune_report(result, manifest, settings)
    print(result.summary())
    print(f"report: {report}")
    if left_out := [problem for problem in result.problems if problem.is_left_out]:
        echo(f"{len(left_out)} slides were left out, see {result.problems_csv}")
        return 1
    return 0


def _folds(manifest: Cohort, folds: str, settings: FinetuneSettings, patient_disjoint: bool) -> tuple[Fold, ...]:
    from longvit.data import new_folds
    from longvit.data.folds import folds_of_column, read_folds
    from longvit.tasks.task import task_class

    if folds.isdecimal():
        strata = task_class(settings.task).strata(manifest, settings)
        return new_folds.make_folds(manifest, int(folds), seed=settings.seed, strata=strata)
    found = folds_of_column(manifest) if folds == "column" else read_folds(folds)
    return new_folds.patient_disjoint(found, manifest) if patient_disjoint else found


def _command_of_a_fold(
    cohort: Path, out: Path, label_column: str, keep: tuple[str, ...], slides_dir: Path | None, allow_missing: bool
) -> list[str]:
    """The command that trains one fold; settings and folds are those that the whole has written."""
    command = ["train", str(cohort), "--out", str(out), "--recipe", str(out / "settings.yaml")]
    command += ["--folds", str(out / "folds"), "--label-column", label_column]
    command += ["--keep", *keep] if keep else []
    command += ["--allow-missing"] if allow_missing else []
    return command + (["--slides-dir", str(slides_dir)] if slides_dir is not None else [])


def _cross_validate(
    manifest: Cohort,
    rounds: tuple[Fold, ...],
    settings: FinetuneSettings,
    out: Path,
    only: tuple[str, ...],
    jobs: int,
    command: list[str],
    ranks: Ranks | None,
) -> int:
    from dataclasses import replace

    from longvit.finetuning.crossval import cross_validate
    from longvit.report import crossval_report

    if jobs > 1 and settings.threads is None:  # each process would start a thread per core
        settings = replace(settings, threads=max(1, (os.cpu_count() or 1) // jobs))
    result = cross_validate(manifest, rounds, settings, out, only=only, command=command, jobs=jobs, ranks=ranks)
    if result is None:
        return 0
    print(result.text())
    if result.missing:
        echo(f"not finished yet: fold {', '.join(result.missing)}")
        if not only:
            return 1
    else:
        images = {row.slide_id: row.path for row in manifest.rows}
        print(f"report: {crossval_report(result.summary, out, images=images)}")
    if result.left_out:
        echo(f"{len(result.left_out)} slides were left out, see problems.csv of each fold")
        return 1
    return 0
