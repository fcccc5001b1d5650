"""`longvit benchmark COHORT.csv --features DIR`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from longvit.cli.options import SETTINGS, Recipe, SlidesDir, echo
from longvit.comparison.settings import ComparisonSettings

if TYPE_CHECKING:
    from longvit.comparison.compare import Comparison
    from longvit.data.cohort import Cohort
    from longvit.data.folds import Fold


def benchmark(
    cohort: Annotated[
        Path,
        Parameter(
            help="CSV with a row per slide: slide_id, and label (survival: survival_months and event or censorship); "
            "optionally case_id (the patient), split, fold, site."
        ),
    ],
    /,
    *,
    features: Annotated[
        Path | None,
        Parameter(
            help="Folder of feature bags as `longvit features`, TRIDENT or CLAM write them. Left out: omics alone.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, Parameter(help="Folder of the comparison.")] = Path("benchmark"),
    recipe: Recipe = None,
    folds: Annotated[
        str | None,
        Parameter(
            help="A number (5: new folds, by patient and stratum), a folder of splits_0.csv … as published, or "
            "`column` (each value of the CSV's column fold is the test once). Left out: the CSV's column split as one "
            "fold.",
            show_default=False,
        ),
    ] = None,
    fold: Annotated[
        tuple[str, ...], Parameter(negative="", help="Only this fold (may be given again).", show_default=False)
    ] = (),
    patient_disjoint: Annotated[
        bool, Parameter(negative="", help="Move patients who stand on two sides of a fold to one side.")
    ] = False,
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
    omics: Annotated[
        Path | None,
        Parameter(
            help="CSV with case_id and columns that end with _mut, _cnv or _rnaseq (MCAT's tables as they are): for "
            "snn, mcat and systems with +concat or +bilinear.",
            show_default=False,
        ),
    ] = None,
    signatures: Annotated[
        Path | None,
        Parameter(help="CSV with a column of genes for each of MCAT's six signatures.", show_default=False),
    ] = None,
    longvit_run: Annotated[
        Path | None,
        Parameter(
            help="Folder of `longvit train --folds` on the same folds: LongViT in the table, and how far it is ahead.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        Parameter(
            help="Systems and folds at once, each in a process of its own; they share the cores, unless --threads says "
            "how many each has. The table's seconds are then those of cells with busy neighbours."
        ),
    ] = 1,
    pictures: Annotated[
        int,
        Parameter(help="For so many slides of each fold: the tiles' scores on the slide, and as GeoJSON for QuPath."),
    ] = 0,
    slides_dir: SlidesDir = None,
    settings: Annotated[ComparisonSettings, Parameter(name="*", group=SETTINGS)] = ComparisonSettings(),
) -> int:
    """Every system that the paper compares with, on the same folds, seeds and figures, in one table.

    Trains each system on the bags of each fold as HIPT (subtyping) and MCAT (survival) did, and writes
    `OUT/index.html` (open it in a browser), `benchmark.csv`, `benchmark.json`, and per cell logits, figures and the
    scores of the tiles in `OUT/<system>/fold_<name>`. Given again, the same command goes on where it was interrupted; a
    system can join later. A slide whose features cannot be used and a cell that fails cost a row of `problems.csv` each
    and exit code 1, not the run.

    **Examples**

    ```
    longvit features slides/ --out job
    longvit benchmark cohort.csv --features job --folds 5 --out comparison
    longvit benchmark cohort.csv --features job --folds runs/cv/folds --longvit-run runs/cv --pictures 2 --jobs 8
    longvit benchmark tcga_ucec.csv.zip --task survival --folds splits/tcga_ucec --omics tcga_ucec.csv.zip --systems snn
    longvit benchmark cohort.csv --features job --folds column --systems clam_sb transmil --epochs 5
    ```
    """
    from longvit.comparison.compare import compare, print_table
    from longvit.comparison.omics import read_omics
    from longvit.data.cohort import read_cohort
    from longvit.errors import InputError
    from longvit.report.comparison import comparison_report
    from longvit.tasks.task import task_class

    if signatures is not None and omics is None:
        raise InputError("--signatures: genes of which table? give --omics too")
    manifest = read_cohort(
        cohort,
        label_column=label_column if task_class(settings.task).has_classes else None,
        keep=keep or None,
        slides_dir=slides_dir,
        need_files=False,
        allow_leak=settings.allow_leak,
    )
    for line in (manifest.summary(), *manifest.notes):
        echo(line)
    result = compare(
        manifest,
        _folds(manifest, folds, settings, patient_disjoint),
        settings,
        out,
        features=features,
        omics=None if omics is None else read_omics(omics, signatures),
        only=fold,
        longvit_run=longvit_run,
        jobs=jobs,
    )
    drawn = _pictures(result, pictures) if pictures else 0
    print_table(result.summary)
    print(f"report: {comparison_report(result.summary, out)}")
    if drawn:
        echo(f"{drawn} slides drawn with their tiles' scores: fold_…/attention/ of each system, PNG and GeoJSON")
    problems = result.summary["problems"] + len(result.failed)
    if problems:
        echo(f"{problems} problems, see {out / 'problems.csv'}")
    return 1 if problems else 0


def _folds(
    manifest: Cohort, folds: str | None, settings: ComparisonSettings, patient_disjoint: bool
) -> tuple[Fold, ...]:
    from longvit.data import new_folds
    from longvit.data.folds import fold_of_splits, folds_of_column, read_folds
    from longvit.errors import InputError
    from longvit.tasks.task import task_class

    if folds is None:
        if all(row.split is None for row in manifest.rows):
            raise InputError(f"{manifest.source}: no column split; give --folds (a number, a folder, or column)")
        return (fold_of_splits(manifest),)
    if folds.isdecimal():
        strata = task_class(settings.task).strata(manifest, settings.of_task())
        return new_folds.make_folds(manifest, int(folds), seed=settings.seed, strata=strata)
    found = folds_of_column(manifest) if folds == "column" else read_folds(folds)
    return new_folds.patient_disjoint(found, manifest) if patient_disjoint else found


def _pictures(result: Comparison, slides: int) -> int:
    from longvit.comparison.tile_score_plots import draw_trials
    from longvit.progress import Progress

    cells = [
        result.folder / row["system"] / f"fold_{cell['fold']}"
        for row in result.summary["systems"]
        for cell in row["cells"]
        if cell["error"] is None
    ]
    paths = {row.slide_id: row.path for row in result.bag_cohort.cohort.rows}
    with Progress("pictures", len(cells), unit="cells", brief=True) as progress:
        return draw_trials(cells, paths, slides, progress)
