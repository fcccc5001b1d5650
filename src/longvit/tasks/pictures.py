"""The two pictures of a run: how the loss fell, and the ROC curve. matplotlib without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from longvit.tasks.metrics import Interval
    from longvit.tasks.subtyping import Predictions

# Colour-blind safe (Okabe-Ito); grey is kept for what is no result: chance, controls.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#777777"


def loss_picture(history: Mapping[str, np.ndarray], epochs: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Training loss per step, its mean over each epoch, and the loss on val and test after each epoch; from 0 on."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas(5.6, 3.6)
    steps = len(history["loss"])
    x = np.arange(1, steps + 1) * (len(epochs) / steps)
    axes.plot(x, history["loss"], color=_GREY, alpha=0.35, linewidth=0.8, label="training, each step")
    at = np.arange(1, len(epochs) + 1)
    lines = [("train_loss", "training, mean of the epoch"), ("val_loss", "validation"), ("test_loss", "test")]
    for (key, label), colour in zip(lines, _COLOURS, strict=False):
        values = np.array([row.get(key, math.nan) for row in epochs], dtype=float)
        if np.isfinite(values).any():
            axes.plot(at, values, marker="o", markersize=3.5, color=colour, label=label)
    top = np.nanquantile(history["loss"], 0.98) * 1.15
    shown = [row.get(key, math.nan) for row in epochs for key, _ in lines]
    axes.set(xlabel="epoch", ylabel="cross-entropy", xlim=(0, len(epochs) + 0.2))
    axes.set_ylim(0, max(top, np.nanmax(shown) * 1.1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def roc_picture(
    predictions: Mapping[str, Predictions],
    classes: Sequence[str],
    path: str | Path,
    *,
    intervals: Mapping[str, Interval] | None = None,
    controls: Mapping[str, float] | None = None,
) -> None:
    """ROC curves, one panel per split (`val`, `test`) that has slides of at least two classes.

    Two classes: the curve of the second one. More: one curve per class against the rest. `intervals`: the 95 %
    interval of a split's AUC; `controls`: name -> AUC on the last panel's split, written as a footnote.
    """
    panels = [split for split in predictions if _drawable(predictions[split])]
    figure, row = _canvas(4.0 * max(1, len(panels)), 4.3, columns=max(1, len(panels)))
    for axes, split in zip(np.atleast_1d(row), panels, strict=False):
        _roc_panel(axes, split, predictions[split], classes, (intervals or {}).get(split))
    if not panels:
        row.text(0.5, 0.5, "no split has slides of two classes:\nno ROC curve", ha="center", va="center")
        row.set_axis_off()
    if controls and panels:
        text = ", ".join(f"{name} {value:.2f}" for name, value in controls.items())
        figure.supxlabel(f"AUC of the controls on {_words(panels[-1])}: {text}", fontsize=8, color=_GREY)
    _save(figure, path)


def _roc_panel(
    axes: Axes, split: str, predictions: Predictions, classes: Sequence[str], interval: Interval | None
) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    for i, c in enumerate([1] if len(classes) == 2 else range(len(classes))):
        positive = predictions.labels == c
        if not positive.any() or positive.all():
            continue
        score = predictions.probabilities[:, c]
        false_positive, true_positive, _ = roc_curve(positive, score, drop_intermediate=False)
        label = f"{classes[c]}: AUC {roc_auc_score(positive, score):.2f}"
        if interval is not None and len(classes) == 2 and math.isfinite(interval.low):
            label += f" (95 % interval {interval.low:.2f}–{interval.high:.2f})"
        axes.plot(false_positive, true_positive, color=_COLOURS[i % len(_COLOURS)], label=label, clip_on=False)
    counts = ", ".join(f"{int((predictions.labels == c).sum())} {name}" for c, name in enumerate(classes))
    axes.set_title(f"{_words(split)}\n{counts}", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="1 − specificity", ylabel="sensitivity")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _words(split: str) -> str:
    return {"val": "validation", "test": "test"}.get(split, split)


def _drawable(predictions: Predictions) -> bool:
    return len(np.unique(predictions.labels)) > 1


def _canvas(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of its own, apart from pyplot, so that neither a display nor the caller's figures are touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    row = figure.subplots(1, columns)
    for axes in np.atleast_1d(row):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, row


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
