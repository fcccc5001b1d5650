"""`longvit benchmark COHORT.csv --features DIR`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from longvit.cli.options import (
    SETTINGS,
    CohortOptions,
    ExcludeQc,
    FoldOptions,
    HeatMaps,
    Recipe,
    TopK,
    echo,
    exclude_failed_rows,
)
from longvit.comparison.settings import ComparisonSettings

if TYPE_CHECKING:
    from longvit.comparison.compare import Comparison
    from longvit.data.cohort import Cohort
    from longvit.data.folds import Fold
    from longvit.heatmaps.formats import HeatMapSettings
    from longvit.report.page import Section


@dataclass(frozen=True)
class ComparisonFolds(FoldOptions):
    """Fold options of a comparison, which without folds uses the CSV's splits."""

    folds: Annotated[str | None, Parameter(show_default=False)] = None
    """A number (5: new folds, by patient and stratum), a folder of splits_0.csv … as published, or `column`. With
    `column`, each value of the CSV's column fold is the test set once. Left out: the CSV's column split as one fold."""


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
            help="Folder of feature bags as `longvit features`, TRIDENT or CLAM write them. Left out: omics only.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        Parameter(
            help="Encoder whose features are used where the folder has those of several, named as for `longvit "
            "features`, e.g. uni2-h.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, Parameter(help="Folder of the comparison.")] = Path("benchmark"),
    recipe: Recipe = None,
    fold_options: Annotated[ComparisonFolds, Parameter(name="*")] = ComparisonFolds(),
    cohort_options: Annotated[CohortOptions, Parameter(name="*")] = CohortOptions(),
    exclude_qc: ExcludeQc = None,
    omics: Annotated[
        Path | None,
        Parameter(
            help="CSV with case_id and columns that end with _mut, _cnv or _rnaseq (MCAT's tables unchanged), for snn, "
            "mcat and systems with +concat or +bilinear.",
            show_default=False,
        ),
    ] = None,
    signatures: Annotated[
        Path | None,
        Parameter(help="CSV with one column of genes for each of MCAT's six signatures.", show_default=False),
    ] = None,
    longvit_run: Annotated[
        Path | None,
        Parameter(
            help="Folder of `longvit train --folds` on the same folds: adds LongViT and its differences to the table.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        Parameter(
            help="Trials run in parallel, each in its own process. They share the cores unless --threads sets the "
            "number per process. The seconds in the table then include this contention."
        ),
    ] = 1,
    pictures: Annotated[
        int,
        Parameter(help="Slides per fold whose tile scores are drawn on the slide and written as GeoJSON for QuPath."),
    ] = 0,
    deletion_slides: Annotated[
        int,
        Parameter(
            help="Evaluated bags per fold of a deletion test: tiles with the highest scores are removed, and the score "
            "of the prediction compared with that without random tiles. In the report and OUT/deletion.csv. 0: none."
        ),
    ] = 0,
    heatmaps: HeatMaps = (),
    top_k: TopK = 10,
    settings: Annotated[ComparisonSettings, Parameter(name="*", group=SETTINGS)] = ComparisonSettings(),
) -> int:
    """Compare the paper's baseline systems on the same folds, seeds and metrics, in one table.

    Trains each system on the bags of each fold as HIPT (subtyping) and MCAT (survival) did. Writes `OUT/index.html`
    (open it in a browser), `benchmark.csv` and `benchmark.json`. Each trial writes logits, metrics and tile scores in
    `OUT/<system>/fold_<name>`. With `--heatmaps`, heat maps of all slides with scores are in its folder `attention`.
    Run the same command again to resume an interrupted run; systems can be added later. A slide whose features cannot
    be used, or a trial that fails, becomes a row of `problems.csv` and exit code 1; the run continues.

    **Examples**

    ```
    longvit features slides/ --out job
    longvit benchmark cohort.csv --features job --folds 5 --out comparison
    longvit benchmark cohort.csv --features job --folds runs/cv/folds --longvit-run runs/cv --pictures 2 --jobs 8
    longvit benchmark cohort.csv --features job --folds 5 --slides-dir slides/ --heatmaps geojson,ome-tiff
    longvit benchmark tcga_ucec.csv.zip --task survival --folds splits/tcga_ucec --omics tcga_ucec.csv.zip --systems snn
    longvit benchmark cohort.csv --features job --folds column --systems clam_sb transmil --epochs 5
    longvit benchmark cohort.csv --features job --encoder uni2-h --folds 5 --exclude-qc qc/qc.csv
    ```
    """
    from longvit.comparison.compare import compare, print_table
    from longvit.comparison.omics import read_omics
    from longvit.errors import InputError
    from longvit.heatmaps.formats import HeatMapSettings
    from longvit.report.comparison import comparison_report
    from longvit.report.quality import run_sections

    heat_map_settings = HeatMapSettings.parsed(heatmaps, top_k)
    if deletion_slides < 0:
        raise InputError(f"--deletion-slides {deletion_slides}: at least 0")
    if signatures is not None and omics is None:
        raise InputError("--signatures needs --omics, the table with the genes")
    if encoder is not None:
        features = _features_of(features, encoder)
    manifest = cohort_options.read(cohort, settings.task, need_files=False, allow_leak=settings.allow_leak)
    manifest, check = exclude_failed_rows(manifest, exclude_qc, out)
    for line in (manifest.summary(), *manifest.notes):
        echo(line)
    result = compare(
        manifest,
        out,
        _folds(manifest, fold_options, settings),
        settings,
        features=features,
        omics=None if omics is None else read_omics(omics, signatures),
        only=fold_options.fold,
        longvit_run=longvit_run,
        jobs=jobs,
    )
    drawn = _draw_tile_scores(result, pictures) if pictures else 0
    print_table(result.summary)
    more = run_sections(check, manifest.rows)
    if deletion_slides:
        more = [*_deletion_sections(result, deletion_slides), *more]
    print(f"report: {comparison_report(result.summary, out, more=more)}")
    if drawn:
        echo(f"{drawn} slides drawn with their tile scores: fold_…/attention/ of each system, PNG and GeoJSON")
    unwritten = _write_heat_maps(result, heat_map_settings) if heat_map_settings.formats else 0
    problems = result.summary["problems"] + len(result.failed) + unwritten
    if problems:
        echo(f"{problems} problems, see {out / 'problems.csv'}")
    return 1 if problems else 0


def _features_of(features: Path | None, encoder: str) -> Path:
    """Folder of an encoder's features in a job's folder."""
    from longvit.data.bags import folder_of_encoder
    from longvit.errors import InputError
    from longvit.slide_jobs.encoder_names import encoder_name

    if features is None:
        raise InputError(f"--encoder {encoder} needs --features, the folder of `longvit features`")
    return folder_of_encoder(features, encoder_name(encoder))


def _folds(manifest: Cohort, options: FoldOptions, settings: ComparisonSettings) -> tuple[Fold, ...]:
    from longvit.data.folds import fold_of_splits
    from longvit.errors import InputError

    if options.folds is not None:
        return options.make(manifest, settings, settings.seed)
    if all(row.split is None for row in manifest.rows):
        raise InputError(f"{manifest.source}: no column split; give --folds (a number, a folder, or column)")
    return (fold_of_splits(manifest),)


def _draw_tile_scores(result: Comparison, slides: int) -> int:
    from longvit.comparison.tile_score_plots import draw_trials
    from longvit.progress import Progress

    trials, paths = _trials(result), _slide_paths(result)
    with Progress("plots", len(trials), unit="trials", brief=True) as progress:
        return draw_trials(trials, paths, slides, progress)


def _write_heat_maps(result: Comparison, settings: HeatMapSettings) -> int:
    """Writes the heat maps of all trials, adds their problems to problems.csv, and returns the number of problems."""
    from longvit.comparison.tile_heat_maps import write_trials
    from longvit.data.problems import PROBLEMS_CSV, read_problems, write_problems
    from longvit.progress import Progress

    trials = _trials(result)
    with Progress("heat maps", len(trials), unit="trials", brief=True) as progress:
        maps, problems = write_trials(trials, _slide_paths(result), settings, progress)
    if problems:
        path = result.folder / PROBLEMS_CSV
        write_problems(path, [*read_problems(path), *problems])
    echo(f"{maps} heat maps: fold_…/attention/ of each system")
    return len(problems)


def _deletion_sections(result: Comparison, bags: int) -> list[Section]:
    from longvit.comparison.tile_deletion import deletion_tests, write_table
    from longvit.progress import Progress
    from longvit.report.deletion import systems_section

    with Progress("deletion test", len(_trials(result)), unit="trials", brief=True) as progress:
        tests = deletion_tests(result, bags, progress)
    write_table(result.folder, tests)
    return systems_section(tests)


def _trials(result: Comparison) -> list[Path]:
    """Folders of the trials that were finished."""
    return [
        result.folder / row["system"] / f"fold_{trial['fold']}"
        for row in result.summary["systems"]
        for trial in row["cells"]
        if trial["error"] is None
    ]


def _slide_paths(result: Comparison) -> dict[str, Path]:
    return {row.slide_id: row.path for row in result.bag_cohort.cohort.rows}
