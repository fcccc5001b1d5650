"""CSV tables of an external validation: predictions per slide and per patient, metrics, decision curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longvit.external.member_predictions import ExternalLogits
from longvit.external.source_run import SourceRun
from longvit.files import write_csv


def write_tables(run: SourceRun, logits: ExternalLogits, metrics: Mapping[str, Any], out_dir: Path) -> None:
    """Writes OUT/predictions.csv and the tables in OUT/external (see `longvit.external.validate`)."""
    folder = out_dir / "external"
    if run.settings.task == "survival":
        _write_survival(run, logits, metrics, out_dir, folder)
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
