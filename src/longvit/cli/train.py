"""`longvit train COHORT.csv`"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from longvit.cli.options import SETTINGS, CohortOptions, ExcludeQc, FoldOptions, Recipe, echo, exclude_failed_rows
from longvit.finetuning.settings import FinetuneSettings

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.data.qc_table import QualityCheck
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
    cohort_options: Annotated[CohortOptions, Parameter(name="*")] = CohortOptions(),
    allow_missing: Annotated[
        bool,
        Parameter(
            negative="", help="Leave out slides without a file (a row of problems.csv each) instead of refusing."
        ),
    ] = False,
    exclude_qc: ExcludeQc = None,
    fold_options: Annotated[FoldOptions, Parameter(name="*")] = FoldOptions(),
    jobs: Annotated[int, Parameter(help="Folds trained in parallel, each in its own process.")] = 1,
    settings: Annotated[FinetuneSettings, Parameter(name="*", group=SETTINGS)] = FinetuneSettings(),
) -> int:
    """Fine-tune on slides and a CSV of labels, numbers or survival times; with --folds, a cross-validation.

    Writes `OUT/index.html` (open it in a browser), predictions, metrics, plots, and the model in `OUT/model`. With
    --folds, it writes all of that per fold in `OUT/fold_0` …, and one table and report over the folds. Settings come
    from the defaults (the paper's), then from --recipe, then from the command line. Run the same command again to
    resume an interrupted run. A slide that cannot be read becomes a row of `problems.csv` and exit code 1; the run
    continues.

    **Examples**

    ```
    longvit train cohort.csv --out runs/first
    longvit train cohort.csv --recipe subtyping --side-px 4096 --lr 1e-4
    longvit train cohort.csv --folds 5 --jobs 2 --out runs/cv
    longvit train tcga_ucec.csv --task survival --folds splits/tcga_ucec --slides-dir /data/slides
    longvit train cohort.csv --task multilabel --label-columns MSI=MSI-H BRAF KRAS
    longvit train pathobench/bcnb/her2 --folds column --slides-dir /data/BCNB
    longvit train labels.csv --label-column subtype --slides-dir /data/slides --weights longvit-s
    longvit train cohort.csv --exclude-qc qc/qc.csv
    longvit train cohort.csv --regions annotations/ --region-class Tumor
    torchrun --nproc-per-node 8 -m longvit train cohort.csv --side-px 32768 --sequence-ranks 4
    ```

    The last example trains on 8 GPUs of one machine: 4 share the patches of a slide, so 2 slides are processed at once.
    The result equals that of one process. With `--max-restarts 3` (before -m), torchrun resumes from the last
    checkpoint after a rank has died.
    """
    from longvit.device import pick_device
    from longvit.files import make_folder

    with ranks_or_none(settings.sequence_ranks, settings.device) as ranks:
        is_first = ranks is None or ranks.is_first
        if is_first:
            make_folder(out)
        pick_device(settings.device)  # before any slide is read
        manifest = cohort_options.read(
            cohort, settings.task, need_files=not allow_missing, allow_leak=settings.allow_leak
        )
        manifest, check = exclude_failed_rows(manifest, exclude_qc, out, is_first=is_first)
        for line in (manifest.summary(), *manifest.notes) if is_first else ():
            echo(line)
        if fold_options.folds is None:
            return _finetune(manifest, settings, out, ranks, check)
        command = _fold_command(cohort, out, cohort_options, allow_missing, exclude_qc)
        return _cross_validate(manifest, settings, out, fold_options, jobs, command, ranks, check)


def ranks_or_none(sequence_ranks: int, device: str) -> AbstractContextManager[Ranks | None]:
    """The ranks that torchrun started; None for a single process, which then loads no torch before the cohort."""
    if "RANK" not in os.environ and sequence_ranks == 1:
        return nullcontext()
    from longvit.parallel.ranks import all_ranks

    return all_ranks(sequence_ranks, device=device)


def _finetune(
    manifest: Cohort, settings: FinetuneSettings, out: Path, ranks: Ranks | None, check: QualityCheck | None
) -> int:
    from longvit.finetuning.run import finetune
    from longvit.report import finetune_report
    from longvit.report.quality import run_sections

    result = finetune(manifest, out, settings, ranks=ranks)
    if ranks is not None and not ranks.is_first:
        return 0
    if result.was_finished:
        echo(f"{out}: finished before with these settings; nothing was computed")
    report = finetune_report(result, manifest, settings, more=run_sections(check, manifest.rows))
    print(result.summary())
    print(f"report: {report}")
    if left_out := [problem for problem in result.problems if problem.is_left_out]:
        echo(f"{len(left_out)} slides were left out, see {result.problems_csv}")
        return 1
    return 0


def _fold_command(
    cohort: Path, out: Path, options: CohortOptions, allow_missing: bool, exclude_qc: Path | None
) -> list[str]:
    """Arguments that train one fold, with the settings and folds that the cross-validation has stored."""
    command = ["train", str(cohort), "--out", str(out), "--recipe", str(out / "settings.yaml")]
    command += ["--folds", str(out / "folds"), "--label-column", options.label_column]
    command += ["--keep", *options.keep] if options.keep else []
    command += ["--allow-missing"] if allow_missing else []
    command += ["--clini", str(options.clini)] if options.clini is not None else []
    command += ["--exclude-qc", str(exclude_qc)] if exclude_qc is not None else []
    return command + (["--slides-dir", str(options.slides_dir)] if options.slides_dir is not None else [])


def _cross_validate(
    manifest: Cohort,
    settings: FinetuneSettings,
    out: Path,
    fold_options: FoldOptions,
    jobs: int,
    command: list[str],
    ranks: Ranks | None,
    check: QualityCheck | None,
) -> int:
    from dataclasses import replace

    from longvit.finetuning.crossval import cross_validate
    from longvit.processes.cpu_count import cpu_count
    from longvit.report import crossval_report
    from longvit.report.quality import run_sections

    folds, only = fold_options.make(manifest, settings, settings.seed), fold_options.fold
    if jobs > 1 and settings.threads is None:  # each process would start a thread per core
        settings = replace(settings, threads=max(1, cpu_count() // jobs))
    result = cross_validate(manifest, out, folds, settings, only=only, command=command, jobs=jobs, ranks=ranks)
    if result is None:
        return 0
    print(result.text())
    if result.missing:
        echo(f"not finished yet: fold {', '.join(result.missing)}")
        if not only:
            return 1
    else:
        images = {row.slide_id: row.path for row in manifest.rows}
        more = run_sections(check, manifest.rows)
        print(f"report: {crossval_report(result.summary, out, images=images, more=more)}")
    if result.left_out:
        echo(f"{len(result.left_out)} slides were left out, see problems.csv of each fold")
        return 1
    return 0
