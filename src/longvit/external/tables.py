"""CSV tables of an external validation: predictions per slide and per patient, metrics, decision curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longvit.data.cohort import Cohort
from longvit.external.member_predictions import ExternalLogits
from longvit.external.source_run import SourceRun
from longvit.files import write_csv


def write_tables(
    run: SourceRun, cohort: Cohort, logits: ExternalLogits, metrics: Mapping[str, Any], out_dir: Path
) -> None:
    """Writes OUT/predictions.csv and the tables in OUT/external (see `longvit.external.validate`)."""
    folder = out_dir / "external"
    if run.settings.task == "survival":
        _write_survival(run, logits, metrics, out_dir, folder)
    elif run.settings.task != "subtyping":
        _write_label_task(run, cohort, logits, metrics, out_dir, folder)
    else:
        _write_classification(run, logits, metrics, out_dir, folder)


def _write_classification(
    run: SourceRun, logits: ExternalLogits, metrics: Mapping[str, Any], out_dir: Path, folder: Path
) -> None:
    from longvit.external.cases import patient_cases
    from longvit.external.classification import classified, metric_rows

    data = classified(run, logits)
    columns = [*(f"prob_{name}" for name in data.classes), "prediction"]

    def cells(p: Any) -> list[str]:
        return [*(repr(float(x)) for x in p), data.classes[int(p.argmax())]]

    main = data.slides.probabilities[data.main]
    write_csv(
        out_dir / "predictions.csv",
        ["slide_id", "case_id", "path", *columns],
        [[row.slide_id, row.case_id, str(row.path), *cells(p)] for row, p in zip(data.rows, main, strict=True)],
    )
    write_csv(
        folder / "predictions.csv",
        ["system", "case_id", "slide_id", "site", "label", *columns],
        [
            [system, row.case_id, row.slide_id, row.site or "", row.label, *cells(p)]
            for system, probabilities in data.slides.probabilities.items()
            for row, p in zip(data.rows, probabilities, strict=True)
        ],
    )
    patients = patient_cases(data.slides)
    write_csv(
        folder / "patients.csv",
        ["system", "case_id", "slides", "label", *columns],
        [
            [system, name, int(slides), data.classes[label], *cells(p)]
            for system, probabilities in patients.probabilities.items()
            for name, slides, label, p in zip(
                patients.patients, patients.slides, patients.labels, probabilities, strict=True
            )
        ],
    )
    _write_metrics(folder, metric_rows(metrics))
    curves = {level: content.get("decision_curve") for level, content in metrics["levels"].items()}
    table = [
        [level, *(repr(float(x)) for x in values)]
        for level, curve in curves.items()
        if curve is not None
        for values in zip(curve["threshold"], curve["model"], curve["all"], curve["none"], strict=True)
    ]
    if table:
        write_csv(folder / "decision_curve.csv", ["level", "threshold", "model", "all", "none"], table)


def _write_label_task(
    run: SourceRun, cohort: Cohort, logits: ExternalLogits, metrics: Mapping[str, Any], out_dir: Path, folder: Path
) -> None:
    """Numbers, grades or several labels, in the columns of their predictions."""
    from longvit.external.classification import metric_rows
    from longvit.external.label_tasks import cases_at, labelled_b

    data = labelled_b(run, cohort, logits)
    is_graded = run.settings.task == "ordinal"
    columns = data.task.prediction_columns(run.outputs)
    label_columns = data.task.label_columns()

    def cells(p: Any) -> list[str]:
        numbers = [repr(float(x)) for x in p]
        rank = float(sum(k * x for k, x in enumerate(p)))
        return [*numbers, data.outputs[int(p.argmax())], repr(rank)] if is_graded else numbers

    def labels(values: Any) -> list[str]:
        if is_graded:
            return [data.outputs[int(values[0])]]
        return ["" if math.isnan(x) else f"{x:.17g}" for x in values]

    slides, patients = data.slides, cases_at("patients", data.slides)
    write_csv(
        out_dir / "predictions.csv",
        ["slide_id", "case_id", "path", *columns],
        [
            [row.slide_id, row.case_id, str(row.path), *cells(p)]
            for row, p in zip(data.rows, slides.predictions[data.main], strict=True)
        ],
    )
    write_csv(
        folder / "predictions.csv",
        ["system", "case_id", "slide_id", "site", *label_columns, *columns],
        [
            [system, row.case_id, row.slide_id, row.site or "", *labels(y), *cells(p)]
            for system, predictions in slides.predictions.items()
            for row, y, p in zip(data.rows, slides.labels, predictions, strict=True)
        ],
    )
    write_csv(
        folder / "patients.csv",
        ["system", "case_id", "slides", *label_columns, *columns],
        [
            [system, name, int(n), *labels(y), *cells(p)]
            for system, predictions in patients.predictions.items()
            for name, n, y, p in zip(patients.patients, patients.slides, patients.labels, predictions, strict=True)
        ],
    )
    _write_metrics(folder, metric_rows(metrics))


def _write_survival(
    run: SourceRun, logits: ExternalLogits, metrics: Mapping[str, Any], out_dir: Path, folder: Path
) -> None:
    from longvit.external.survival import followed

    data = followed(run, logits, str(metrics["table"]))
    names = [f"survival_{time:.6g}_months" for time in data.times] if data.curves else []

    def cells(system: str, i: int) -> list[str]:
        curve = data.curves.get(system)
        return [repr(float(data.risks[system][i])), *(repr(float(s)) for s in (curve[i] if curve is not None else ()))]

    write_csv(
        out_dir / "predictions.csv",
        ["case_id", "risk", *names],
        [[row.case_id, *cells(data.main, i)] for i, row in enumerate(data.rows)],
    )
    write_csv(
        folder / "patients.csv",
        ["system", "case_id", "survival_months", "event", "risk", *names],
        [
            [system, row.case_id, repr(float(data.months[i])), int(data.event[i]), *cells(system, i)]
            for system in data.risks
            for i, row in enumerate(data.rows)
        ],
    )
    _write_metrics(
        folder,
        [
            [system, "patients", name, entry["value"], entry["low"], entry["high"]]
            for system, by_metric in metrics["systems"].items()
            for name, entry in by_metric.items()
        ],
    )


def _write_metrics(folder: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Writes metrics.csv; a value that is not defined is an empty field."""
    table = [[*row[:3], *("" if math.isnan(x) else repr(float(x)) for x in row[3:])] for row in rows]
    write_csv(folder / "metrics.csv", ["system", "level", "metric", "value", "low", "high"], table)
