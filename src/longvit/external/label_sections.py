"""Sections of the report on numbers, grades and several labels: plots, A's threshold of each label, groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.external.text import main_metric, ranged
from longvit.report.labels import counted, display_name, metric_label
from longvit.report.page import ReportImage, Row, Section, Table
from longvit.report.sections import saved_plot

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.external.member_predictions import ExternalLogits
    from longvit.external.source_run import SourceRun

_SECOND = {"regression": "mae", "ordinal": "mae", "multilabel": "average_precision"}


def label_plots(run: SourceRun, cohort: Cohort, logits: ExternalLogits, folder: Path) -> list[ReportImage]:
    """Scatter of numbers, confusion of grades, or a ROC curve for each label column; also in `folder`."""
    from longvit.external.label_tasks import labelled_b

    data = labelled_b(run, cohort, logits)
    labels, p = data.slides.labels, data.slides.predictions[data.main]
    task = run.settings.task
    if task == "regression":
        from longvit.plots.regression import scatter_plot

        scatter_plot({"B": (labels[:, 0], p[:, 0])}, folder / "scatter.png", unit=data.outputs[0])
        caption = "Slides of B: prediction against label. Dotted: equal."
        return [saved_plot("Predictions and labels", folder / "scatter.png", caption, max_px=640)]
    if task == "ordinal":
        from longvit.plots.classification import confusion_plot

        confusion_plot(labels[:, 0].astype(int), p, data.outputs, folder / "confusion.png")
        caption = "Slides of B by grade (rows) and most probable grade (columns)."
        return [saved_plot("Confusion", folder / "confusion.png", caption)]
    from longvit.plots.multilabel import label_roc_plot

    label_roc_plot({"B": (labels, p)}, data.outputs, folder / "roc.png")
    caption = "Slides of B that have the label. Dotted: chance."
    return [saved_plot("ROC", folder / "roc.png", caption, max_px=640)]


def label_threshold_sections(metrics: Mapping[str, Any]) -> list[Section]:
    """Section with A's threshold of each label on B; none for other tasks."""
    tables, chosen = [], ""
    for level, entries in metrics.get("levels", {}).items():
        rows = []
        for column, at in entries.get("thresholds", {}).items():
            if "at_prevalence_of_b" not in at:
                rows.append(Row([column, *["–"] * 7]))
                continue
            chosen = display_name(at["chosen_on"])
            point = at["at_prevalence_of_b"]
            rows.append(
                Row(
                    [
                        column,
                        f"{at['value']:.4f}",
                        str(sum(at["counts"].values())),
                        f"{at['prevalence']:.3f}",
                        *(ranged(point[name]) for name in ("sensitivity", "specificity", "ppv", "npv")),
                    ]
                )
            )
        if rows:
            columns = (
                f"per {level[:-1]}", "threshold", level, "prevalence", "sensitivity", "specificity", "PPV", "NPV"
            )  # fmt: skip
            tables.append(Table(columns, rows, frozenset(range(1, len(columns))), first_stays=True))
    if not chosen:
        return []
    text = (
        f"The threshold of a label has the highest sensitivity + specificity (Youden) on cohort A's {chosen} "
        f"predictions; nothing of it is chosen on B."
    )
    return [Section("A's thresholds on B", text=(text,), tables=tables)]


def label_group_sections(metrics: Mapping[str, Any]) -> list[Section]:
    """Section per column with a row per site or subgroup: slides, patients, labels, two metrics."""
    names = (main_metric(metrics), _SECOND[metrics["task"]])
    sections = []
    for column, groups in metrics["groups"].items():
        rows = [
            Row(
                [
                    value,
                    str(entry["slides"]),
                    str(entry["patients"]),
                    labels_text(metrics["task"], entry["labels"]),
                    *(ranged(entry["metrics"][name]) for name in names),
                ]
            )
            for value, entry in groups.items()
        ]
        columns = (column, "slides", "patients", "labels", *map(metric_label, names))
        table = Table(columns, rows, frozenset(range(1, len(columns))) - {3}, first_stays=True)
        sections.append(Section(f"By {column}", tables=(table,)))
    return sections


def labels_text(task: str, labels: Mapping[str, Any]) -> str:
    """Labels of some slides: mean and SD of numbers, counts of grades, or counts of each label."""
    if task == "regression":
        return f"mean {labels['mean']:.4g}, SD {labels['sd']:.4g}"
    if task == "ordinal":
        return ", ".join(f"{name} {n}" for name, n in labels.items() if n)
    return ", ".join(f"{name} {n['ones']} of {counted(n['cases'], 'slide')}" for name, n in labels.items())
