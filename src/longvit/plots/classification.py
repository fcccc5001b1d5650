"""Classification plots: loss, ROC, confusion, calibration, and the metrics and losses of folds.

Each is written as PNG and as SVG. Curves with a band over folds are in `curves`, Kaplan-Meier in `survival`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from longvit.figure import short_name
from longvit.metrics.classification import BINS, confusion, reliability
from longvit.plots.style import COLOURS, GREY, blank, colour, legend_name, safe_plot, save, write_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from longvit.metrics.classification import Interval


# A confusion matrix of many classes has colours without numbers, on a sheet that fits into memory.
_MAX_SIDE_IN, _MAX_NUMBERED_CLASSES = 24.0, 40


class LabelledProbabilities(Protocol):
    """Labels and class probabilities, as a ROC curve needs them."""

    @property
    def labels(self) -> np.ndarray:
        """Labels, int (N,)."""

    @property
    def probabilities(self) -> np.ndarray:
        """Class probabilities (N, C); a row sums to 1."""


@safe_plot
def loss_plot(
    history: Mapping[str, np.ndarray],
    epochs: Sequence[Mapping[str, float]],
    path: str | Path,
    *,
    loss_name: str = "cross-entropy",
) -> None:
    """Loss plot: training loss per step, its mean over each epoch, and the loss on val and test after each epoch.

    The axis starts at 0, except for a loss with negative values (Cox's, with the mean left out).
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = blank(5.2, 3.9)
    steps = len(history["loss"])
    x = np.arange(1, steps + 1) * (len(epochs) / steps)
    axes.plot(x, history["loss"], color=GREY, alpha=0.35, linewidth=0.8, label="training, each step")
    epoch = np.arange(1, len(epochs) + 1)
    lines = [("train_loss", "training, mean of the epoch"), ("val_loss", "validation"), ("test_loss", "test")]
    for (key, label), shade in zip(lines, COLOURS, strict=False):
        values = np.array([row.get(key, math.nan) for row in epochs], dtype=float)
        if np.isfinite(values).any():
            axes.plot(epoch, values, marker="o", markersize=3.5, color=shade, label=label)
    top = np.nanquantile(history["loss"], 0.98) * 1.15
    shown = [row.get(key, math.nan) for row in epochs for key, _ in lines]
    axes.set(xlabel="epoch", ylabel=loss_name, xlim=(0, len(epochs) + 0.2))
    if min(np.nanmin(shown), np.nanmin(history["loss"])) >= 0:
        axes.set_ylim(0, max(top, np.nanmax(shown) * 1.1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


@safe_plot
def fold_losses_plot(
    losses: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, *, loss_name: str = "loss"
) -> None:
    """Loss after each epoch: folds as thin lines, their mean as a thick line, one colour each for train, val, test.

    `losses`: fold -> `train_loss`, `val_loss`, `test_loss` -> a value per epoch; absent or NaN values are not drawn.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = blank(5.2, 3.9)
    lines = {"train_loss": "training, mean of the epoch", "val_loss": "validation", "test_loss": "test"}
    for i, (key, label) in enumerate(lines.items()):
        folds = [np.asarray(fold[key], dtype=float) for fold in losses.values() if key in fold]
        folds = [values for values in folds if np.isfinite(values).any()]
        if not folds:
            continue
        for values in folds if len(folds) > 1 else []:
            axes.plot(np.arange(1, len(values) + 1), values, color=colour(i), linewidth=0.6, alpha=0.4)
        shortest = min(map(len, folds))
        mean = np.mean([values[:shortest] for values in folds], 0)
        axes.plot(np.arange(1, shortest + 1), mean, color=colour(i), linewidth=1.8, marker="o", ms=3, label=label)
    if not axes.lines:
        write_note(axes, "no losses")
    else:
        axes.legend(frameon=False, fontsize=8.5)
    axes.set(xlabel="epoch", ylabel=loss_name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


@safe_plot
def roc_plot(
    predictions: Mapping[str, LabelledProbabilities],
    classes: Sequence[str],
    path: str | Path,
    *,
    intervals: Mapping[str, Interval] | None = None,
    controls: Mapping[str, float] | None = None,
) -> None:
    """ROC curves, one panel per split (`val`, `test`) that has slides of at least two classes.

    Two classes: the curve of the second one. More: one curve per class against the rest. `intervals`: split -> 95 %
    interval of its AUC. `controls`: name -> AUC on the split of the last panel, written as a footnote.
    """
    panels = [split for split in predictions if _drawable(predictions[split])]
    figure, row = blank(4.0 * max(1, len(panels)), 4.3, columns=max(1, len(panels)))
    for axes, split in zip(np.atleast_1d(row), panels, strict=False):
        _roc_panel(axes, split, predictions[split], classes, (intervals or {}).get(split))
    if not panels:
        write_note(row, "no split has slides of two classes:\nno ROC curve")
    if controls and panels:
        text = ", ".join(f"{name} {value:.2f}" for name, value in controls.items())
        figure.supxlabel(f"AUC of the controls on {_split_label(panels[-1])}: {text}", fontsize=8, color=GREY)
    save(figure, path)


def _roc_panel(
    axes: Axes, split: str, predictions: LabelledProbabilities, classes: Sequence[str], interval: Interval | None
) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for i, c in enumerate([1] if len(classes) == 2 else range(len(classes))):
        positive = predictions.labels == c
        if not positive.any() or positive.all():
            continue
        score = predictions.probabilities[:, c]
        false_positive, true_positive, _ = roc_curve(positive, score, drop_intermediate=False)
        label = f"{legend_name(classes[c])}: AUC {roc_auc_score(positive, score):.2f}"
        if interval is not None and len(classes) == 2 and math.isfinite(interval.low):
            label += f" (95 % interval {interval.low:.2f}–{interval.high:.2f})"
        axes.plot(false_positive, true_positive, color=colour(i), label=label, clip_on=False)
    counts = ", ".join(f"{int((predictions.labels == c).sum())} {short_name(name)}" for c, name in enumerate(classes))
    axes.set_title(f"{_split_label(split)}\n{counts}", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="1 − specificity", ylabel="sensitivity")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


@safe_plot
def confusion_plot(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """Confusion matrix: slides of each label (row) by predicted class (column), with row percentages.

    `labels` int (N,), `probabilities` (N, C). Concatenated folds count a slide once per prediction. More than 40
    classes are drawn without numbers.
    """
    table = confusion(labels, probabilities)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    classes = [short_name(name) for name in classes]
    side = min(2.6 + 0.75 * len(classes), _MAX_SIDE_IN)
    figure, axes = blank(side, side - 0.4)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*table.shape) if len(classes) <= _MAX_NUMBERED_CLASSES else ():
        text = f"{table[i, j]}\n{share[i, j]:.0%}" if table[i].sum() else "0"
        axes.text(j, i, text, ha="center", va="center", color="white" if share[i, j] > 0.55 else "#1c2430")
    axes.set_xticks(range(len(classes)), classes, rotation=30 if max(map(len, classes)) > 9 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="label", title=title)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    save(figure, path)


@safe_plot
def reliability_plot(
    labels: np.ndarray, probabilities: np.ndarray, path: str | Path, *, bins: int = BINS, title: str = ""
) -> None:
    """Reliability diagram: accuracy against the probability of the predicted class, and a histogram of the slides.

    Each bin is a dot at its mean probability, with an area that grows with its slides. The line to the diagonal is the
    calibration error of the bin. `labels` int (N,), `probabilities` (N, C).
    """
    diagram = reliability(labels, probabilities, bins)
    figure, (axes, below) = blank(4.6, 5.0, rows=2, heights=(4, 1))
    filled = diagram.counts > 0
    confidence, accuracy, counts = diagram.confidence[filled], diagram.accuracy[filled], diagram.counts[filled]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    low, high = np.minimum(confidence, accuracy), np.maximum(confidence, accuracy)
    axes.vlines(confidence, low, high, color=COLOURS[1], linewidth=1.2, alpha=0.7)
    axes.plot(confidence, accuracy, color=COLOURS[0], linewidth=1.2)
    area = 20 + 180 * counts / max(1, counts.max(initial=0))
    axes.scatter(confidence, accuracy, s=area, color=COLOURS[0], alpha=0.85, linewidth=0, zorder=3, clip_on=False)
    if len(counts):
        axes.text(0.02, 0.97, f"ECE {diagram.ece:.3f}", transform=axes.transAxes, va="top")
    axes.set(ylim=(0, 1.02), xlim=(1 / np.shape(probabilities)[1] - 0.03, 1.0), ylabel="accuracy", title=title)
    axes.tick_params(labelbottom=False)
    below.bar(
        diagram.edges[:-1], diagram.counts, width=1 / bins, align="edge", color=GREY, edgecolor="white", linewidth=0.5
    )
    below.set(xlabel="probability of the predicted class", ylabel="slides")
    save(figure, path)


@safe_plot
def fold_dots_plot(
    rows: Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    metric_name: str = "AUC",
    published: tuple[str, float, float] | None = None,
    ddof: int = 1,
    chance: float | None = 0.5,
) -> None:
    """Dot plot of one metric over folds: a row for the model (first) and each control, and a published mean ± SD.

    `rows`: name -> value of each fold, NaN where undefined. The bar is the mean, the line mean ± SD (`ddof`).
    `published`: name, mean and SD.
    """
    names = [short_name(name, 48) for name in (*rows, *([published[0]] if published else []))]
    figure, axes = blank(5.2, 1.1 + 0.48 * len(names))
    if chance is not None:
        axes.axvline(chance, color=GREY, linewidth=0.8, linestyle=":")
    for y, values in enumerate(rows.values()):
        shade = COLOURS[0] if y == 0 else GREY
        x = np.asarray(values, dtype=np.float64)
        x = x[np.isfinite(x)]
        # dots of equal height would overlap: they alternate around the line of the row
        axes.scatter(x, y + 0.12 * (np.arange(len(x)) % 3 - 1), s=22, color=shade, alpha=0.6, linewidth=0, zorder=3)
        if len(x):
            _mean_and_spread(axes, y, x.mean(), x.std(ddof=ddof) if len(x) > ddof else 0.0, shade)
    if published:
        _mean_and_spread(axes, len(rows), published[1], published[2], COLOURS[1])
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.45, -0.55), xlabel=metric_name)
    low, high = axes.get_xlim()
    axes.set_xlim(low, min(high, 1.01) if high > 1 else high)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save(figure, path)


def _mean_and_spread(axes: Axes, y: int, mean: float, spread: float, shade: str) -> None:
    axes.plot([mean - spread, mean + spread], [y, y], color=shade, linewidth=1.4)
    axes.plot([mean, mean], [y - 0.25, y + 0.25], color=shade, linewidth=2.6)


def _split_label(split: str) -> str:
    return {"val": "validation", "test": "test"}.get(split, split)


def _drawable(predictions: LabelledProbabilities) -> bool:
    return len(np.unique(predictions.labels)) > 1
