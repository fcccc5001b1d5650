"""Reporting table: items of TRIPOD+AI (Collins et al. 2024) and STARD-AI, filled in as far as the run allows.

TRIPOD+AI items have their numbers; those of STARD-AI are named by topic. What only the authors can state is "to be
filled in".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longvit import __version__
from longvit.comparison.settings import ComparisonSettings
from longvit.external.label_sections import labels_text
from longvit.external.source_run import SourceRun
from longvit.external.text import levels_of, main_metric, main_system, ranged
from longvit.files import write_text
from longvit.finetuning.settings import FinetuneSettings
from longvit.report.labels import counted, display_name, metric_label
from longvit.tasks.settings import TaskSettings

OPEN = "to be filled in"
_OUTCOME = {"subtyping": "class", "regression": "number", "ordinal": "grade", "multilabel": "labels"}
_NO_CUT_OFF = {
    "regression": "none: a number",
    "ordinal": "none: the most probable grade",
    "multilabel": "one per label, chosen on A; see the report",
}
_OUTPUT = {
    "survival": "Risk and survival over time",
    "regression": "Number in the unit of the label",
    "ordinal": "Probability of each grade",
    "multilabel": "Probability of each label",
}


def reporting_rows(run: SourceRun, metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Guideline, item and content of each row; `metrics`: content of external/metrics.json."""
    s = run.settings
    a, b, overlap = metrics["cohort_a"], metrics["cohort_b"], metrics["overlap"]
    training = run.first.metrics["training"]
    outcome = (
        f"survival, columns {s.time_column} and event"
        if s.task == "survival"
        else f"{_OUTCOME.get(s.task, s.task)}: {', '.join(metrics['classes'])}"
    )
    groups = ", ".join(metrics["groups"]) or "none given (--subgroup COLUMN)"
    start = training["starts_from"]
    shared = f"longvit {__version__}; settings: {run.folder / 'settings.yaml'}; predictions: external/*.csv"
    rows = {
        "1 Title": f"External validation of a model for {outcome}",
        "2 Abstract": OPEN,
        "3 Background": OPEN,
        "4 Objectives": "External validation of a model that is not changed"
        + ("" if metrics.get("recalibration") is None else ", and recalibration on a stated part"),
        "5a Sources of data": f"A: {run.folder}; B: {metrics['table']}. Origin and period: {OPEN}",
        "6 Participants": f"Setting and eligibility: {OPEN}. Evaluated: {_size(b)}; treatments: {OPEN}",
        "7 Data preparation": f"{_preparation(s)}, as in training; same for A and B",
        "8 Outcome": f"{outcome}; how and by whom it was assessed: {OPEN}",
        "9 Predictors": "Pixels of the whole slide; no clinical variable",
        "10 Sample size": f"Size of B: {_size(b)}; justification: {OPEN}",
        "11 Missing data": f"Slides that cannot be read are left out: {len(b['left_out'])}. Notes: "
        + (" ".join(metrics["notes"]) or "none"),
        "12 Analytical methods": f"{_model(run)}, {training['parameters'] / 1e6:.1f} million parameters, starting from "
        f"{start}; {training['epochs']} epochs, the last one evaluated; {len(metrics['members'])} model(s)"
        + (f", {metrics['ensemble']}" if metrics["ensemble"] else ""),
        "12f Performance measures": f"Intervals: {metrics['bootstrap']} bootstrap resamples by patient; DeLong's (AUC)",
        "13 Class imbalance": _imbalance(s),
        "14 Fairness": f"Metrics by group: {groups}",
        "15 Model output": f"{_OUTPUT.get(s.task, 'Probability of each class')}{_threshold(metrics)}",
        "16 Training versus evaluation": f"Overlap of A and B: {len(overlap['patients'])} patients, "
        f"{len(overlap['slides'])} slide ids, {len(overlap['content'])} files (--overlap {overlap['policy']}); "
        f"{len(overlap['dropped'])} slides dropped",
        "17 Ethical approval": OPEN,
        "18 Open science": f"Funding, interests, protocol, registration, data: {OPEN}. Code and settings: {shared}",
        "19 Patient and public involvement": OPEN,
        "20 Participants in the results": f"A: {_size(a)}; B: {_size(b)}; {_classes(metrics)}",
        "21 Model development": f"{training['slides']} slides of {training['patients']} patients in training"
        + (" (first fold)" if len(run.members) > 1 else ""),
        "22 Model specification": f"model.safetensors in {run.first.folder}",
        "23a Model performance": _performance(metrics),
        "23b Heterogeneity": f"By group, see the report: {groups}",
        "24 Model updating": _recalibration(metrics),
        "25 Interpretation": OPEN,
        "26 Limitations": OPEN,
        "27 Usability": f"Input: a slide file that longvit reads; poor input: {OPEN}",
    }
    stard = {
        "Index test": f"the model of {run.folder}, longvit {__version__}",
        "Reference standard": f"{outcome}; rationale: {OPEN}",
        "Test positivity cut-off": _threshold(metrics).removeprefix("; ")
        or _NO_CUT_OFF.get(s.task, "none: the most probable class"),
        "Blinding of the readers of both tests": OPEN,
        "Indeterminate results": f"{len(b['left_out'])} slides without a result",
        "Cross tabulation": _cross_table(metrics),
        "Estimates of accuracy and their precision": _performance(metrics),
        "Harms of testing": OPEN,
    }
    return [("TRIPOD+AI", item, text) for item, text in rows.items()] + [
        ("STARD-AI", item, text) for item, text in stard.items()
    ]


def write_reporting_table(path: Path, run: SourceRun, metrics: Mapping[str, Any]) -> None:
    """Writes the table as Markdown."""
    lines = [
        "# Reporting table",
        "",
        "Items of TRIPOD+AI and STARD-AI, filled in from the run. Complete the others, and check all.",
        "",
        "| guideline | item | content |",
        "|---|---|---|",
    ]
    for cells in reporting_rows(run, metrics):
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    write_text(path, "\n".join(lines) + "\n")


def _preparation(settings: TaskSettings) -> str:
    if isinstance(settings, FinetuneSettings):
        return f"Each slide as a canvas of {settings.side_px} px ({settings.fit})"
    return "Features of the tiles of each slide, from one encoder"


def _imbalance(settings: TaskSettings) -> str:
    balanced = isinstance(settings, FinetuneSettings | ComparisonSettings) and settings.balanced
    return "classes drawn equally often in training" if balanced else "no correction"


def _model(run: SourceRun) -> str:
    return "LongViT" if isinstance(run.settings, FinetuneSettings) else f"{run.folder.name} on tile features"


def _size(cohort: Mapping[str, Any]) -> str:
    return f"{counted(cohort['slides'], 'slide')} of {counted(cohort['patients'], 'patient')}"


def _classes(metrics: Mapping[str, Any]) -> str:
    if metrics["task"] == "survival":
        return f"{metrics['events']} events among {metrics['patients']} patients of B"
    if metrics["task"] != "subtyping":
        return f"slides of B: {labels_text(metrics['task'], metrics['levels']['slides']['labels'])}"
    return "slides of B: " + ", ".join(f"{n} {name}" for name, n in metrics["levels"]["slides"]["classes"].items())


def _performance(metrics: Mapping[str, Any]) -> str:
    name, main = main_metric(metrics), main_system(metrics)
    parts = []
    for level, entries in levels_of(metrics).items():
        parts.append(f"{metric_label(name)} per {level[:-1]} {ranged(entries['systems'][main][name])}")
        if (drop := entries.get("drop")) is not None:
            parts.append(f"change from A to B {ranged(drop['metrics'][name]['difference'])}")
    return "; ".join(parts)


def _threshold(metrics: Mapping[str, Any]) -> str:
    if (cut := metrics.get("cut")) is not None:
        return f"; cut {cut['risk']:.4g}, chosen on A ({display_name(cut['chosen_on'])})"
    threshold = metrics.get("levels", {}).get("slides", {}).get("threshold")
    if not threshold or threshold["value"] is None:
        return ""
    return f"; threshold {threshold['value']:.4g}, chosen on A ({display_name(threshold['chosen_on'])})"


def _cross_table(metrics: Mapping[str, Any]) -> str:
    threshold = metrics.get("levels", {}).get("slides", {}).get("threshold") or {}
    if not (counts := threshold.get("counts")):
        return "see the report"
    return ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items())


def _recalibration(metrics: Mapping[str, Any]) -> str:
    entry = metrics.get("recalibration")
    if entry is None:
        return "none"
    if entry["slope"] is None:
        return f"on {entry['part']}: no fit"
    return f"logistic recalibration on {entry['part']}: intercept {entry['intercept']:.3f}, slope {entry['slope']:.3f}"
