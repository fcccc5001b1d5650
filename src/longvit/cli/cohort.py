"""`longvit cohort check MANIFEST.csv` and `longvit cohort split MANIFEST.csv`"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from longvit.cli.options import echo

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.data.folds import Fold
    from longvit.data.leakage import CohortReport
    from longvit.tasks.settings import FinetuneSettings

_NAMED = 3  # how many names a line shows; --json has all

Manifest = Annotated[
    Path, Parameter(help="CSV (or .csv.zip) with a row per slide: slide_id or path, case_id, and a label or outcome.")
]
TaskName = Annotated[
    Literal["subtyping", "survival"], Parameter(help="What the manifest holds: classes, or times and events.")
]
LabelColumn = Annotated[str, Parameter(help="Which column holds the class.")]
Keep = Annotated[
    tuple[str, ...],
    Parameter(
        consume_multiple=True, help="Use only rows of these classes, in this order. Default: all.", show_default=False
    ),
]
TimeColumn = Annotated[str, Parameter(help="Survival: which column holds the time.")]
EventColumn = Annotated[
    str | None, Parameter(help="Survival: column that is 1 where the event happened. Default: event.")
]
CensorshipColumn = Annotated[
    str | None, Parameter(help="Survival: column that is 1 where follow-up ended before it. Default: censorship.")
]

_HELP = """Check a manifest and its folds before training, or make folds.

**Examples**

```
longvit cohort check cohort.csv --folds folds
longvit cohort split cohort.csv --k 5 --out folds
```
"""
cohort = App(name="cohort", help=_HELP, sort_key=7)


@cohort.command
def check(
    manifest: Manifest,
    /,
    *,
    folds: Annotated[
        Path | None,
        Parameter(
            help="Folder of folds (splits_0.csv, …), or one such file. Default: the column split or fold.",
            show_default=False,
        ),
    ] = None,
    task: TaskName = "subtyping",
    label_column: LabelColumn = "label",
    keep: Keep = (),
    time_column: TimeColumn = "survival_months",
    event_column: EventColumn = None,
    censorship_column: CensorshipColumn = None,
    slides_dir: Annotated[
        Path | None, Parameter(help="Where slides without a path lie, if not beside the CSV.", show_default=False)
    ] = None,
    other: Annotated[
        Path | None,
        Parameter(help="Another manifest, which must say the same of the slides in both.", show_default=False),
    ] = None,
    contents: Annotated[bool, Parameter(help="Compare the slides' files by content.")] = True,
    allow_leak: Annotated[bool, Parameter(negative="", help="Exit with 0 although a fold leaks.")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, with every name.")] = False,
) -> int:
    """Sizes, labels and leaks of a cohort, fold by fold; exit code 1 where a fold leaks.

    A leak is a patient, a slide or a copy of its file in two splits of a fold. Slides without a label or a file are
    counted and named.

    **Examples**

    ```
    longvit cohort check cohort.csv
    longvit cohort check tcga_brca_subset.csv.zip --label-column oncotree_code --keep IDC ILC --folds splits/tcga_brca
    longvit cohort check tcga_ucec_all_clean.csv.zip --task survival --folds splits/tcga_ucec --json
    ```
    """
    from longvit.data import leakage
    from longvit.data.folds import fold_of_splits, folds_of_column, read_folds

    rows = _read(manifest, task, label_column, keep, slides_dir, (time_column, event_column, censorship_column))
    if other is not None:
        theirs = _read(other, task, label_column, keep, slides_dir, (time_column, event_column, censorship_column))
        echo(f"{other}: agrees on the {leakage.refuse_disagreement(rows, theirs)} slides in both")
    listed: tuple[Fold, ...] = ()
    if folds is not None:
        listed = read_folds(folds)
    elif any(row.split for row in rows.rows):
        listed = (fold_of_splits(rows),)
    elif any(row.fold for row in rows.rows):
        listed = folds_of_column(rows)
    report = leakage.check(rows, listed, contents=contents)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=False) if as_json else "\n".join(lines_of(report)))
    if not (leaking := report.leaking()):
        return 0
    echo(
        f"longvit: {manifest}: {len(leaking)} of {len(report.folds)} folds leak; make them patient-disjoint with "
        f"`longvit cohort split … --patient-disjoint FOLDS`, or accept it with --allow-leak"
    )
    return 0 if allow_leak else 1


@cohort.command
def split(
    manifest: Manifest,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for splits_0.csv, splits_1.csv, …")],
    k: Annotated[int, Parameter(help="How many folds.")] = 5,
    seed: Annotated[int, Parameter(help="Decides who goes where.")] = 0,
    val_fraction: Annotated[float, Parameter(help="Share of the slides outside test that validates; 0: none.")] = 0.1,
    by_site: Annotated[
        bool, Parameter(negative="", help="Keep each site (column site) on one side, not only each patient.")
    ] = False,
    patient_disjoint: Annotated[
        Path | None,
        Parameter(
            help="Instead of new folds: these folds (a folder), changed so that no patient is in two splits.",
            show_default=False,
        ),
    ] = None,
    task: TaskName = "subtyping",
    label_column: LabelColumn = "label",
    keep: Keep = (),
    time_column: TimeColumn = "survival_months",
    event_column: EventColumn = None,
    censorship_column: CensorshipColumn = None,
) -> int:
    """Make folds: by patient or by site, stratified by class, or by time and event.

    Slides need not be there. Each slide is in test once; the same seed gives the same folds.

    **Examples**

    ```
    longvit cohort split cohort.csv --k 5 --out folds
    longvit cohort split cohort.csv --k 5 --by-site --seed 7 --out folds
    longvit cohort split outcomes.csv --task survival --out folds
    longvit cohort split labels.csv --patient-disjoint published/folds --out folds
    ```
    """
    from longvit.data import new_folds
    from longvit.data.folds import read_folds, write_folds
    from longvit.data.leakage import check as report_of

    columns = (time_column, event_column, censorship_column)
    rows = _read(manifest, task, label_column, keep, None, columns)
    if patient_disjoint is not None:
        made = new_folds.patient_disjoint(read_folds(patient_disjoint), rows)
    else:
        strata = _bins(rows, columns) if task == "survival" else None
        made = new_folds.make_folds(rows, k, seed=seed, strata=strata, by_site=by_site, val_fraction=val_fraction)
    write_folds(out, made)
    for note in rows.notes:
        echo(note)
    print("\n".join(_fold_lines(report_of(rows, made, contents=False))))
    print(f"{len(made)} folds: {out}")
    return 0


_Columns = tuple[str, str | None, str | None]  # time, event, censorship


def _read(
    manifest: Path, task: str, label_column: str, keep: Sequence[str], slides_dir: Path | None, columns: _Columns
) -> Cohort:
    """Everything that can be read; the rows of a survival manifest get the labels censored and event."""
    from longvit.data.cohort import read_cohort

    is_survival = task == "survival"
    rows = read_cohort(
        manifest,
        label_column=None if is_survival else label_column,
        keep=tuple(keep) or None,
        slides_dir=slides_dir,
        need_files=False,
        need_labels=False,
        allow_leak=True,
    )
    if not is_survival:
        return rows
    from longvit.tasks.survival import lacks_outcome

    settings = _settings(columns)
    without = [row for row in rows.rows if lacks_outcome(row, rows.source, settings)]
    if without and len(without) < len(rows.rows):
        names = ", ".join(row.slide_id for row in without)
        note = f"{manifest}: {len(without)} of {len(rows.rows)} rows have no time or event and drop out: {names}"
        left = tuple(row for row in rows.rows if not lacks_outcome(row, rows.source, settings))
        rows = replace(rows, rows=left, notes=(*rows.notes, note))
    labelled = [
        replace(row, label="event" if happened else "censored")
        for row, (_, happened) in zip(rows.rows, _outcomes(rows, columns), strict=True)
    ]
    return replace(rows, rows=tuple(labelled), classes=("censored", "event"))


def _settings(columns: _Columns) -> FinetuneSettings:
    from longvit.tasks.settings import FinetuneSettings

    time, event, censorship = columns
    return FinetuneSettings(task="survival", time_column=time, event_column=event, censorship_column=censorship)


def _outcomes(rows: Cohort, columns: _Columns) -> list[tuple[float, bool]]:
    from longvit.tasks.survival import read_outcome

    settings = _settings(columns)
    return [read_outcome(row, rows.source, settings) for row in rows.rows]


def _bins(rows: Cohort, columns: _Columns) -> list[str]:
    """A row's stratum: its quarter of time, and whether the event came."""
    from longvit.tasks.survival_loss import bin_of, time_bins

    outcomes = _outcomes(rows, columns)
    months, happened = [m for m, _ in outcomes], [e for _, e in outcomes]
    quarters = bin_of(months, time_bins(months, happened))
    return [f"{row.label}, quarter {quarter}" for row, quarter in zip(rows.rows, quarters, strict=True)]


def lines_of(report: CohortReport) -> list[str]:
    """The report for people."""
    labels = [f"{label} {n} of {report.patients_of[label]}" for label, n in report.labels.items()]
    lines = ["; ".join([f"{report.source}: {report.slides} slides of {report.patients} patients", *labels])]
    lines += [f"note: {note}" for note in report.notes]
    if report.missing_files:
        lines.append(f"no file: {len(report.missing_files)} of {report.slides} slides: {_names(report.missing_files)}")
    lines += [f"cannot be opened: {slide_id}: {why}" for slide_id, why in report.unreadable.items()]
    lines += [f"one file under {len(ids)} ids: {' = '.join(ids)}" for ids in report.copies]
    if report.folds:
        lines += ["", *_fold_lines(report)]
    return lines


def _fold_lines(report: CohortReport) -> list[str]:
    splits = list(dict.fromkeys(split for fold in report.folds for split in fold.listed))
    pairs = [f"{a}+{b}" for i, a in enumerate(splits) for b in splits[i + 1 :]]
    table = [
        ["fold", "listed", "used", *(f"{label}" for label in report.labels), "unlabelled", *(f"in {p}" for p in pairs)]
    ]
    for fold in report.folds:
        each = " / ".join
        table.append(
            [
                fold.name,
                each(str(fold.listed.get(split, 0)) for split in splits),
                each(str(fold.used.get(split, 0)) for split in splits),
                *(each(str(fold.labels.get(s, {}).get(label, 0)) for s in splits) for label in report.labels),
                str(sum(map(len, fold.unlabelled.values()))),
                *(str(len(fold.shared_patients.get(pair, ()))) for pair in pairs),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{' / '.join(splits)}; unlabelled: ids without a row that has a label; in a+b: patients on both sides"]
    lines += ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
    for fold in report.folds:
        for kind, found in (
            ("slides", fold.shared_slides),
            ("copies", fold.copies),
            ("patients", fold.shared_patients),
        ):
            lines += [f"fold {fold.name}: {kind} in {pair}: {_names(names)}" for pair, names in found.items()]
    unlabelled = list(dict.fromkeys(i for fold in report.folds for ids in fold.unlabelled.values() for i in ids))
    if unlabelled:
        lines.append(f"unlabelled: {len(unlabelled)} different ids: {_names(unlabelled)}")
    for fold in report.folds:
        if fold.unused:
            lines.append(f"fold {fold.name}: {len(fold.unused)} slides are in no split: {_names(fold.unused)}")
    same = " (each once)" if report.drawn == report.different else ", so the folds' test sets overlap"
    lines.append(f"evaluated: {report.different} different ids of {report.drawn} in all folds{same}")
    return lines


def _names(names: Sequence[str]) -> str:
    rest = f", … ({len(names) - _NAMED} more: --json)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
