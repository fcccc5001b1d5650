"""External validation: a run of cohort A on the labelled slides of cohort B, one command.

OUT/predictions.csv            slide_id, case_id, path, and the prediction of the model (of the folds: their ensemble)
OUT/canvases/                  canvases of cohort B, unless --cache-dir names another folder
OUT/problems.csv               slides that were left out
OUT/external/index.html        report
OUT/external/metrics.json      everything in the report as numbers; written last
OUT/external/metrics.csv       system, level, metric, value, low, high
OUT/external/predictions.csv   system, case_id, slide_id, label, prediction: read by `longvit evaluate`
OUT/external/patients.csv      the same per patient
OUT/external/decision_curve.csv, reporting.md, pictures/
OUT/back/                      with --back: run/ trained on cohort B, and its own external/
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longvit.annotations.settings import AnnotationSettings
from longvit.data.cohort import Cohort
from longvit.data.leakage import content_hashes
from longvit.data.problems import PROBLEMS_CSV, Problem, write_problems
from longvit.device import pick_device, set_threads
from longvit.errors import InputError
from longvit.external.labelled_cohort import VALIDATED, groups_of, has_labels
from longvit.external.member_predictions import ExternalLogits, predict_external
from longvit.external.overlap import Overlap, find_overlap, resolve_overlap
from longvit.external.settings import ExternalSettings
from longvit.external.source_run import SourceRun
from longvit.external.tables import write_tables
from longvit.files import make_folder, write_text
from longvit.finetuning.shortcut import predicted_numbers, shortcut_in
from longvit.json_file import without_nan
from longvit.tasks.task import task_class

FOLDER = "external"


@dataclass(frozen=True)
class ExternalResult:
    """Result of an external validation."""

    folder: Path
    """OUT/external."""
    metrics: dict[str, Any]
    """Content of metrics.json; a metric that is not defined is None."""
    problems: tuple[Problem, ...]

    def summary(self) -> str:
        """Lines for the terminal."""
        from longvit.external.text import summary_lines

        return "\n".join(summary_lines(self.metrics))


def validates(run: SourceRun, table: Path, settings: ExternalSettings) -> bool:
    """True where the CSV has labels of the run's task."""
    return run.settings.task in VALIDATED and has_labels(table, run.settings, settings.label_column)


def validate(
    run: SourceRun,
    cohort: Cohort,
    out_dir: Path,
    settings: ExternalSettings,
    *,
    device: str = "auto",
    threads: int | None = None,
    annotations: AnnotationSettings | None = None,
) -> ExternalResult:
    """Validates a run on a cohort with labels (`read_labelled`), and writes the files that this module lists.

    Raises `InputError` in one line: slides, patients or files that the run used too (see `ExternalSettings.overlap`),
    a column for subgroups that is not there, no slide that can be read.
    """
    check_options(run, cohort, settings)
    make_folder(out_dir)
    set_threads(threads)
    chosen = pick_device(device)
    cohort, overlap = without_overlap(run, cohort, settings)
    cache_dir = settings.cache_dir or out_dir / "canvases"
    logits = predict_external(run, cohort.rows, cache_dir, chosen, annotations or AnnotationSettings())
    write_problems(out_dir / PROBLEMS_CSV, logits.problems)
    metrics = write_validation(run, cohort, logits, overlap, settings, out_dir)
    return ExternalResult(out_dir / FOLDER, metrics, logits.problems)


def write_validation(
    run: SourceRun,
    cohort: Cohort,
    logits: ExternalLogits,
    overlap: Overlap,
    settings: ExternalSettings,
    out_dir: Path,
) -> dict[str, Any]:
    """Evaluates the logits and writes the tables, the page and metrics.json; returns the content of metrics.json."""
    metrics = _metrics(run, cohort, logits, overlap, settings)
    folder = make_folder(out_dir / FOLDER)
    write_tables(run, cohort, logits, metrics, out_dir)
    text = json.dumps(without_nan(metrics), indent=1, ensure_ascii=False, allow_nan=False)
    plain: dict[str, Any] = json.loads(text)
    _write_report(run, cohort, logits, plain, folder)
    write_text(folder / "metrics.json", text + "\n")
    return plain


def check_options(run: SourceRun, cohort: Cohort, settings: ExternalSettings) -> None:
    """Raises `InputError` for options that the task does not have, or columns that the CSV does not have."""
    is_binary = run.settings.task == "subtyping" and len(run.outputs) == 2
    for option, value in (("prevalence", settings.prevalence), ("recalibrate-on", settings.recalibrate_on)):
        if value is not None and not is_binary:
            raise InputError(f"--{option}: for two classes only; {run.folder} has {run.settings.task}")
    part = settings.recalibration
    for column in (*settings.subgroup, *([part[0]] if isinstance(part, tuple) else [])):
        groups_of(cohort.rows, column, cohort.source)


def without_overlap(run: SourceRun, cohort: Cohort, settings: ExternalSettings) -> tuple[Cohort, Overlap]:
    """Cohort B and its overlap with the run, resolved as `settings.overlap` says."""
    known = run.content()
    content, _ = content_hashes(cohort) if known else ({}, {})
    overlap = find_overlap(cohort.rows, content, run.rows(), known)
    return resolve_overlap(cohort, overlap, settings.overlap, str(run.folder))


def _metrics(
    run: SourceRun, cohort: Cohort, logits: ExternalLogits, overlap: Overlap, settings: ExternalSettings
) -> dict[str, Any]:
    """Content of metrics.json."""
    from longvit.external import classification, label_tasks, survival

    rows_of_a = run.rows()
    reference_is_known = all(member.slides is not None for member in run.members)
    content: dict[str, Any] = {
        "task": run.settings.task,
        "classes": list(run.outputs),
        "run": str(run.folder),
        "table": cohort.source,
        "members": list(logits.members),
        "ensemble": "mean of the members' predictions"
        if run.settings.task == "regression" and len(logits.members) > 1
        else "mean of the members' probabilities"
        if len(logits.members) > 1
        else None,
        "cohort_a": {
            "slides": len(rows_of_a),
            "patients": len({row.case_id for row in rows_of_a}),
            "is_complete": reference_is_known,
        },
        "cohort_b": {
            "slides": len(logits.rows),
            "patients": len({row.case_id for row in logits.rows}),
            "left_out": [problem.slide for problem in logits.problems if problem.is_left_out],
        },
        "overlap": {"policy": settings.overlap, **overlap.as_json()},
        "prevalence": settings.prevalence,
        "bootstrap": settings.bootstrap,
    }
    notes = [*cohort.notes, *logits.notes, *run.unchecked()]
    if overlap and settings.overlap == "allow":
        notes.append(f"Also used in the run, and kept (--overlap allow): {overlap.text()}.")
    if not reference_is_known:
        notes.append("No threshold and no drop from A to B: the run is of an older version, without slides.csv.")
    content["notes"] = notes
    content["shortcut"] = {"a": run.shortcut(), "b": _shortcut(run, cohort, logits)}
    if run.settings.task == "survival":
        return content | survival.evaluate(run, logits, settings, cohort.source)
    if run.settings.task != "subtyping":
        of_b = label_tasks.labelled_b(run, cohort, logits)
        return content | {"classes": list(of_b.outputs)} | label_tasks.evaluate(run, of_b, settings, cohort.source)
    data = classification.classified(run, logits)
    return content | classification.evaluate(data, classification.reference_of(run), settings, cohort.source)


def _shortcut(run: SourceRun, cohort: Cohort, logits: ExternalLogits) -> str | None:
    """Sentence on a likely shortcut of the predictions on B (the mean of the members), or None."""
    kind = task_class(run.settings.task)
    numbers = [predicted_numbers(kind, member.classes, logits.members[member.name]) for member in run.members]
    rows = replace(cohort, rows=logits.rows)
    return shortcut_in(rows, run.settings, np.mean(numbers, axis=0))


def _write_report(
    run: SourceRun, cohort: Cohort, logits: ExternalLogits, metrics: dict[str, Any], folder: Path
) -> None:
    from longvit.external.report import write_external_report
    from longvit.external.reporting_items import write_reporting_table

    write_reporting_table(folder / "reporting.md", run, metrics)
    write_external_report(run, cohort, logits, metrics, folder)
