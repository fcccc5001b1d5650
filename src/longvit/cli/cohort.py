"""`longvit cohort check MANIFEST.csv` and `longvit cohort split MANIFEST.csv`"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from longvit.cli.options import SlidesDir, echo

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.data.folds import Fold
    from longvit.data.leakage import CohortReport
    from longvit.tasks.settings import TaskSettings

_SHOWN_NAMES = 3  # names per line of text; --json has all

Manifest = Annotated[
    Path, Parameter(help="CSV (or .csv.zip) with a row per slide: slide_id or path, case_id, and a label or outcome.")
]


@dataclass(frozen=True)
class LabelOptions:
    """Options of the labels of a cohort table: task, label column, classes, columns of survival times and events."""

    task: Literal["subtyping", "survival", "regression", "ordinal", "multilabel"] = "subtyping"
    """Content of the table: classes, times and events, numbers, grades, or several labels."""
    label_column: str = "label"
    """Column with the class."""
    keep: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = ()
    """Use only rows of these classes, in this order. Default: all."""
    label_columns: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ("label",)
    """Regression: column with the number. Multilabel: columns with the labels."""
    time_column: str = "survival_months"
    """Survival: column with the time."""
    event_column: str | None = None
    """Survival: column that is 1 if the event happened. Default: event."""
    clini: Annotated[Path | None, Parameter(show_default=False)] = None
    """Table with a row per patient (PATIENT or case_id, and labels), joined to the CSV by patient, as in STAMP."""
    censorship_column: str | None = None
    """Survival: column that is 1 if follow-up ended before the event. Default: censorship."""

    def read(self, manifest: Path, slides_dir: Path | None = None) -> Cohort:
        """Reads all readable rows. Where the task has no classes, the label of a row is censored or event, or its
        stratum."""
        from longvit.data.cohort_table import read_cohort

        has_classes = self.task in ("subtyping", "ordinal")
        cohort = read_cohort(
            manifest,
            label_column=self.label_column if has_classes else None,
            keep=self.keep or None,
            slides_dir=slides_dir,
            need_files=False,
            need_labels=False,
            allow_leak=True,
            clini=self.clini,
        )
        if has_classes:
            return cohort
        return self._with_outcome_labels(cohort) if self.task == "survival" else self._with_strata(cohort)

    def _with_strata(self, cohort: Cohort) -> Cohort:
        """Cohort with the strata of regression or multilabel as labels; rows without a label are left out."""
        from longvit.tasks.multilabel import Multilabel
        from longvit.tasks.regression import Regression, without_numbers

        settings = self._settings()
        if self.task == "regression":
            cohort = without_numbers(cohort, settings)
            strata = Regression.strata(cohort, settings)
        else:
            cohort = Multilabel.select(cohort, settings)
            strata = Multilabel.strata(cohort, settings)
        rows = tuple(replace(row, label=name) for row, name in zip(cohort.rows, strata, strict=True))
        return replace(cohort, rows=rows)

    def _with_outcome_labels(self, cohort: Cohort) -> Cohort:
        from longvit.tasks.survival import lacks_outcome

        settings = self._settings()
        without = [row for row in cohort.rows if lacks_outcome(row, cohort.source, settings)]
        if without and len(without) < len(cohort.rows):
            names = ", ".join(row.slide_id for row in without)
            note = (
                f"{cohort.source}: {len(without)} of {len(cohort.rows)} rows have no time or event and are left out: "
            )
            complete = tuple(row for row in cohort.rows if not lacks_outcome(row, cohort.source, settings))
            cohort = replace(cohort, rows=complete, notes=(*cohort.notes, note + names))
        labelled = [
            replace(row, label="event" if happened else "censored")
            for row, (_, happened) in zip(cohort.rows, self._outcomes(cohort), strict=True)
        ]
        return replace(cohort, rows=tuple(labelled), classes=("censored", "event"))

    def strata(self, cohort: Cohort) -> list[str]:
        """Stratum of each row of a survival cohort: its quarter of time, and if the event happened."""
        from longvit.tasks.survival_loss import bin_of, time_bins

        outcomes = self._outcomes(cohort)
        months, happened = [month for month, _ in outcomes], [event for _, event in outcomes]
        quarters = bin_of(months, time_bins(months, happened))
        return [f"{row.label}, quarter {quarter}" for row, quarter in zip(cohort.rows, quarters, strict=True)]

    def _outcomes(self, cohort: Cohort) -> list[tuple[float, bool]]:
        from longvit.tasks.survival import read_outcome

        settings = self._settings()
        return [read_outcome(row, cohort.source, settings) for row in cohort.rows]

    def _settings(self) -> TaskSettings:
        from longvit.tasks.settings import TaskSettings

        return TaskSettings(
            task=self.task,
            label_columns=self.label_columns,
            time_column=self.time_column,
            event_column=self.event_column,
            censorship_column=self.censorship_column,
        )


Labels = Annotated[LabelOptions, Parameter(name="*")]

_HELP = """Check a cohort table and its folds before training, or make folds.

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
    labels: Labels = LabelOptions(),
    slides_dir: SlidesDir = None,
    other: Annotated[
        Path | None,
        Parameter(help="Another cohort table, which must agree on the slides that are in both.", show_default=False),
    ] = None,
    contents: Annotated[bool, Parameter(help="Compare the slide files by content.")] = True,
    allow_leak: Annotated[bool, Parameter(negative="", help="Exit with 0 even if a fold leaks.")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, with all names.")] = False,
) -> int:
    """Check sizes, labels and leaks of a cohort, fold by fold; exit code 1 if a fold leaks.

    A leak is a patient, a slide or a copy of its file in two splits of a fold. Slides without a label or a file are
    counted and named. A note says whether the column site predicts the label.

    **Examples**

    ```
    longvit cohort check cohort.csv
    longvit cohort check tcga_brca_subset.csv.zip --label-column oncotree_code --keep IDC ILC --folds splits/tcga_brca
    longvit cohort check tcga_ucec_all_clean.csv.zip --task survival --folds splits/tcga_ucec --json
    ```
    """
    from longvit.data import leakage
    from longvit.data.folds import fold_of_splits, folds_of_column, has_fold_column, read_folds

    cohort = labels.read(manifest, slides_dir)
    if other is not None:
        shared = leakage.refuse_disagreement(cohort, labels.read(other, slides_dir))
        echo(f"{other}: agrees on the {shared} slides in both")
    checked: tuple[Fold, ...] = ()
    if folds is not None:
        checked = read_folds(folds)
    elif any(row.split for row in cohort.rows):
        checked = (fold_of_splits(cohort),)
    elif has_fold_column(cohort):
        checked = folds_of_column(cohort)
    report = leakage.check(cohort, checked, contents=contents)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=False) if as_json else "\n".join(report_lines(report)))
    if any(row.site for row in cohort.rows):
        from longvit.sites.check import site_note

        if (note := site_note(cohort)) is not None:
            echo(note)
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
    k: Annotated[int, Parameter(help="Number of folds.")] = 5,
    seed: Annotated[int, Parameter(help="Seed of the assignment.")] = 0,
    val_fraction: Annotated[
        float, Parameter(help="Fraction of the slides outside test that are for validation; 0: none.")
    ] = 0.1,
    by_site: Annotated[
        bool, Parameter(negative="", help="Keep each site (column site) in one split, not only each patient.")
    ] = False,
    patient_disjoint: Annotated[
        Path | None,
        Parameter(
            help="Instead of new folds, use these folds (a folder), changed so that no patient is in two splits.",
            show_default=False,
        ),
    ] = None,
    labels: Labels = LabelOptions(),
) -> int:
    """Make folds: by patient or by site, stratified by class, or by time and event.

    The slide files need not exist. Each slide is in test once. The same seed gives the same folds.

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
    from longvit.data.leakage import check as check_leakage

    cohort = labels.read(manifest)
    if patient_disjoint is not None:
        folds = new_folds.patient_disjoint(read_folds(patient_disjoint), cohort)
    else:
        strata = labels.strata(cohort) if labels.task == "survival" else None
        folds = new_folds.make_folds(cohort, k, seed=seed, strata=strata, by_site=by_site, val_fraction=val_fraction)
    write_folds(out, folds)
    for note in cohort.notes:
        echo(note)
    print("\n".join(_fold_lines(check_leakage(cohort, folds, contents=False))))
    print(f"{len(folds)} folds: {out}")
    return 0


def report_lines(report: CohortReport) -> list[str]:
    """Formats a cohort report as text."""
    labels = [f"{label} {n} of {report.patients_of[label]}" for label, n in report.labels.items()]
    lines = ["; ".join([f"{report.source}: {report.slides} slides of {report.patients} patients", *labels])]
    lines += [f"note: {note}" for note in report.notes]
    if report.missing_files:
        lines.append(f"no file: {len(report.missing_files)} of {report.slides} slides: {_names(report.missing_files)}")
    lines += [f"cannot be opened: {slide_id}: {error}" for slide_id, error in report.unreadable.items()]
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
        per_split = " / ".join
        table.append(
            [
                fold.name,
                per_split(str(fold.listed.get(split, 0)) for split in splits),
                per_split(str(fold.used.get(split, 0)) for split in splits),
                *(per_split(str(fold.labels.get(s, {}).get(label, 0)) for s in splits) for label in report.labels),
                str(sum(map(len, fold.unlabelled.values()))),
                *(str(len(fold.shared_patients.get(pair, ()))) for pair in pairs),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{' / '.join(splits)}; unlabelled: ids without a row that has a label; in a+b: patients in both splits"]
    lines += ["  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)).rstrip() for row in table]
    for fold in report.folds:
        for kind, shared in (
            ("slides", fold.shared_slides),
            ("copies", fold.copies),
            ("patients", fold.shared_patients),
        ):
            lines += [f"fold {fold.name}: {kind} in {pair}: {_names(names)}" for pair, names in shared.items()]
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
    more = f", … ({len(names) - _SHOWN_NAMES} more: --json)" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
