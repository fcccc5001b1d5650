"""What predictions show: curves, confusion, calibration, Kaplan-Meier; for one run and for a cross-validation.

Every picture also lies in a folder, as PNG and SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longvit.metrics.classification import BINS, Interval
from longvit.report.page import ReportImage, Section
from longvit.report.predictions import PredictedSlides


def classification_sections(
    predicted: PredictedSlides, folder: Path, interval: Interval | None = None
) -> list[Section]:
    """ROC, precision-recall; confusion, calibration. `interval`: that of the AUC of a single run of two classes."""
    from longvit.plots.classification import confusion_plot, reliability_plot
    from longvit.plots.curves import pr_curves_plot, roc_curves_plot

    classes, folds = predicted.classes, predicted.by_fold()
    labels, probabilities = predicted.labels, predicted.probabilities
    several = len(folds) > 1
    roc_curves_plot(folds, classes, folder / "roc.png", interval=None if several else interval)
    pr_curves_plot(folds, classes, folder / "precision_recall.png")
    confusion_plot(labels, probabilities, classes, folder / "confusion.png")
    reliability_plot(labels, probabilities, folder / "calibration.png")
    band = " Thin: each fold; thick: their mean; band: ± SD." if several else ""
    pooled = " All folds together." if several else ""
    return [
        Section(
            "Curves",
            side_by_side=True,
            plots=(
                drawn("ROC", folder / "roc.png", f"Sensitivity against 1 − specificity; dotted: guessing.{band}"),
                drawn(
                    "Precision and recall",
                    folder / "precision_recall.png",
                    f"Of the slides called positive, the share that is, against the share found; dotted: guessing."
                    f"{band}",
                ),
            ),
        ),
        Section(
            "Confusion and calibration",
            side_by_side=True,
            plots=(
                drawn(
                    "Confusion",
                    folder / "confusion.png",
                    f"Slides of each label (row) by the predicted class, and the share of the row.{pooled}",
                ),
                drawn(
                    "Calibration",
                    folder / "calibration.png",
                    f"How often the prediction is right, by how sure the model says it is; on the dotted line its "
                    f"probabilities mean what they say. Below: how many slides are how sure ({BINS} bins).{pooled}",
                ),
            ),
        ),
    ]


def survival_sections(predicted: PredictedSlides, folder: Path) -> list[Section]:
    """Kaplan-Meier of the patients whose risk lies in the lower and in the higher half of their fold."""
    from longvit.plots.survival import kaplan_meier_plot, risk_halves

    cases = predicted.column("case_id")
    higher = risk_halves(predicted.column("fold").tolist(), cases.tolist(), predicted.numbers("risk"))
    _, first = np.unique(cases, return_index=True)  # a patient counts once, however many slides and folds
    months, event = predicted.numbers("survival_months")[first], predicted.numbers("event")[first]
    kaplan_meier_plot(months, event, higher[first].astype(np.int64), folder / "kaplan_meier.png")
    several = (
        " of all folds together, each predicted by a model that had not seen them" if len(predicted.folds) > 1 else ""
    )
    caption = (
        f"The patients{several}, halved by the risk within their fold (risks of two models cannot be compared). Bands: "
        f"95 %; ticks: end of follow-up; below: patients still followed. The p is that of the two halves; the c-index "
        f"is the figure to judge the model by."
    )
    plot = drawn("Kaplan–Meier", folder / "kaplan_meier.png", caption, max_px=680)
    return [Section("Survival of the lower and the higher risks", plots=(plot,))]


def drawn(title: str, png: Path, caption: str = "", max_px: int = 0) -> ReportImage:
    """A picture that was saved as PNG and SVG: the SVG, sharp at every size (the PNG where there is only that)."""
    svg = png.with_suffix(".svg")
    return ReportImage(title, (svg if svg.exists() else png).read_bytes(), caption, max_px)


def interval_words(low: float | None, high: float | None, decimals: int = 2) -> str:
    """`0.85–0.91`; nothing where it is not defined."""
    return "" if low is None or high is None else f"{low:.{decimals}f}–{high:.{decimals}f}"


def sure_words(low: float | None, high: float | None) -> str:
    """`95 % interval 0.85–0.91` in one piece, that no line break tears apart; nothing where it is not defined."""
    words = interval_words(low, high)
    return f"95\u00a0% interval {words}".replace("–", "\u2060–\u2060") if words else ""


def sections_of(predicted: PredictedSlides, folder: Path, interval: Interval | None = None) -> Sequence[Section]:
    """What the columns allow: a new task's predictions without labels or times give none."""
    if predicted.is_classified:
        return classification_sections(predicted, folder, interval)
    return survival_sections(predicted, folder) if predicted.is_followed else []
