"""Report sections drawn from predictions: ROC, precision-recall, confusion, calibration, Kaplan-Meier, scatter.

Used for a single run and for a cross-validation. Every plot is also written to a folder, as PNG and SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longvit.data.problems import Problem
from longvit.metrics.classification import BINS, Interval
from longvit.report.page import ReportImage, Row, Section, Table, number
from longvit.report.predictions import PredictedSlides


def classification_sections(
    predicted: PredictedSlides, folder: Path, interval: Interval | None = None
) -> list[Section]:
    """Sections with ROC, precision-recall, confusion and calibration. `interval`: of the AUC, one run, two classes."""
    from longvit.plots.classification import confusion_plot, reliability_plot
    from longvit.plots.curves import pr_curves_plot, roc_curves_plot

    classes, folds = predicted.classes, predicted.by_fold()
    labels, probabilities = predicted.labels, predicted.probabilities
    several = len(folds) > 1
    roc_curves_plot(folds, classes, folder / "roc.png", interval=None if several else interval)
    pr_curves_plot(folds, classes, folder / "precision_recall.png")
    confusion_plot(labels, probabilities, classes, folder / "confusion.png")
    reliability_plot(labels, probabilities, folder / "calibration.png")
    band = " Thin lines: folds; thick line: mean; band: ± SD." if several else ""
    pooled = " Pooled over folds." if several else ""
    return [
        Section(
            "Curves",
            side_by_side=True,
            plots=(
                saved_plot("ROC", folder / "roc.png", f"Sensitivity against 1 − specificity. Dotted: chance.{band}"),
                saved_plot(
                    "Precision and recall",
                    folder / "precision_recall.png",
                    f"Precision against recall. Dotted: chance (the prevalence of the class).{band}",
                ),
            ),
        ),
        Section(
            "Confusion and calibration",
            side_by_side=True,
            plots=(
                saved_plot(
                    "Confusion",
                    folder / "confusion.png",
                    f"Number of slides by label (rows) and predicted class (columns), with row percentages.{pooled}",
                ),
                saved_plot(
                    "Calibration",
                    folder / "calibration.png",
                    f"Accuracy against the probability of the predicted class. Dotted: perfect calibration. Below: "
                    f"number of slides in each of {BINS} bins.{pooled}",
                ),
            ),
        ),
    ]


def survival_sections(predicted: PredictedSlides, folder: Path) -> list[Section]:
    """Section with Kaplan-Meier curves of the patients in the lower and the higher half of risk within their fold."""
    from longvit.plots.survival import kaplan_meier_plot, risk_halves

    cases = predicted.column("case_id")
    higher = risk_halves(predicted.column("fold").tolist(), cases.tolist(), predicted.numbers("risk"))
    _, first = np.unique(cases, return_index=True)  # a patient counts once, however many slides and folds
    months, event = predicted.numbers("survival_months")[first], predicted.numbers("event")[first]
    kaplan_meier_plot(months, event, higher[first].astype(np.int64), folder / "kaplan_meier.png")
    patients = "Patients"
    if len(predicted.folds) > 1:
        patients = "Held-out patients of all folds, each predicted by a model that was not trained on them and"
    caption = (
        f"{patients} split at the median risk within their fold (risks of two models cannot be compared). Bands: 95 % "
        f"intervals; ticks: censored patients; below: patients at risk. The p value compares the two halves. The "
        f"c-index is the metric to judge the model by."
    )
    plot = saved_plot("Kaplan–Meier", folder / "kaplan_meier.png", caption, max_px=680)
    return [Section("Survival by predicted risk", plots=(plot,))]


def regression_sections(predicted: PredictedSlides, folder: Path) -> list[Section]:
    """Section with the scatter of predicted numbers against labels, a colour per fold."""
    from longvit.plots.regression import scatter_plot

    truth, guess, fold = predicted.numbers("value"), predicted.numbers("predicted_value"), predicted.column("fold")
    parts = {
        f"fold {name}" if name else "slides": (truth[fold == name], guess[fold == name]) for name in predicted.folds
    }
    scatter_plot(parts, folder / "scatter.png")
    plot = saved_plot("Scatter", folder / "scatter.png", "Prediction against label. Dotted: equal.", max_px=640)
    return [Section("Predictions and labels", plots=(plot,))]


def multilabel_sections(predicted: PredictedSlides, folder: Path) -> list[Section]:
    """Section with a row and a ROC curve for each label column, over the slides that have its label."""
    from longvit.metrics.multilabel import bootstrap_multilabel, multilabel_metrics
    from longvit.plots.multilabel import label_roc_plot

    columns, fold = predicted.label_columns, predicted.column("fold")
    labels, p = predicted.label_table()
    folds = {name: (labels[fold == name], p[fold == name]) for name in predicted.folds}
    label_roc_plot(folds, columns, folder / "roc.png")
    metrics = multilabel_metrics(labels, p, columns)
    intervals = bootstrap_multilabel(labels, p, columns, predicted.column("case_id").tolist())
    rows = [
        Row(
            [
                column,
                str(int(np.isfinite(labels[:, c]).sum())),
                str(int((labels[:, c] == 1).sum())),
                number(metrics[f"auc_{column}"]),
                interval_range(intervals[f"auc_{column}"].low, intervals[f"auc_{column}"].high),
                number(metrics[f"average_precision_{column}"]),
            ]
        )
        for c, column in enumerate(columns)
    ]
    pooled = " Predictions of all folds together." if len(folds) > 1 else ""
    caption = f"Over the slides that have the label. Intervals: bootstrap, resampled by patient.{pooled}"
    header = ("label", "slides", "of them 1", "AUC", "95 % interval", "average precision")
    table = Table(header, rows, frozenset(range(1, len(header))), caption, first_stays=True)
    plot = saved_plot("ROC", folder / "roc.png", "Sensitivity against 1 − specificity. Dotted: chance.", max_px=640)
    return [Section("Labels", tables=(table,), plots=(plot,))]


def problems_table(problems: Sequence[Problem], first: str = "slide") -> Table:
    """Table of problems; `first`: name of its first column."""
    return Table((first, "stage", "problem"), [Row([p.slide, p.stage, p.error]) for p in problems])


def saved_plot(title: str, png: Path, caption: str = "", max_px: int = 0) -> ReportImage:
    """Plot that was saved as PNG and SVG: the SVG, which is sharp at every size, or else the PNG."""
    svg = png.with_suffix(".svg")
    return ReportImage(title, (svg if svg.exists() else png).read_bytes(), caption, max_px)


def interval_range(low: float | None, high: float | None, decimals: int = 2) -> str:
    """Interval as text, `0.85–0.91`; empty where it is not defined."""
    return "" if low is None or high is None or math.isnan(low) else f"{low:.{decimals}f}–{high:.{decimals}f}"


def interval_label(low: float | None, high: float | None) -> str:
    """`95 % interval 0.85–0.91` without line breaks inside; empty where it is not defined."""
    text = interval_range(low, high)
    return f"95\u00a0% interval {text}".replace("–", "\u2060–\u2060") if text else ""


def sections_of(predicted: PredictedSlides, folder: Path, interval: Interval | None = None) -> Sequence[Section]:
    """Sections that the columns of the predictions allow; none without labels."""
    if predicted.is_classified:
        return classification_sections(predicted, folder, interval)
    if predicted.is_measured:
        return regression_sections(predicted, folder)
    if predicted.label_columns:
        return multilabel_sections(predicted, folder)
    return survival_sections(predicted, folder) if predicted.is_followed else []
