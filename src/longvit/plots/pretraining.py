"""Plots of a pretraining run: loss, teacher outputs, labelled regions, rank, schedules; as PNG and SVG.

Steps are averaged down to a few hundred points, so that the plot of a long run stays small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longvit.plots.style import COLOURS, GREY, blank, safe_plot, save, write_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Table = Mapping[str, NDArray[np.float64]]
"""Column -> values; NaN where undefined."""

_POINTS = 400


@safe_plot
def loss_plot(steps: Table, epochs: Table, log_k: float | None, path: Path) -> None:
    """Loss of the steps and its mean over each epoch; for a cross-entropy, beside that of random guessing, log K."""
    figure, axes = blank(5.2, 3.6)
    _line(axes, steps, "loss", color=GREY, alpha=0.5, linewidth=0.8, label="steps")
    middle = epochs["epoch"] - 0.5
    axes.plot(middle, epochs["train_loss"], color=COLOURS[0], marker="o", ms=3, label="mean of the epoch")
    if log_k is not None:
        axes.axhline(log_k, color=GREY, linewidth=0.8, linestyle=":", label="chance: log K")
    axes.set_ylim(0, None)
    _finish(axes, "squared error" if log_k is None else "cross-entropy, nats")
    save(figure, path)


@safe_plot
def outputs_plot(steps: Table, log_k: float, path: Path) -> None:
    """Entropy of the teacher's outputs, and the distance of the outputs and of their mean from uniform."""
    figure, axes = blank(5.2, 3.6)
    for i, (name, label) in enumerate(
        {
            "teacher_entropy": "entropy of an output",
            "kl_to_uniform": "log K − entropy of an output",
            "mean_kl_to_uniform": "log K − entropy of the mean output",
        }.items()
    ):
        _line(axes, steps, name, color=COLOURS[i], linewidth=1.4, label=label)
    axes.axhline(log_k, color=GREY, linewidth=0.8, linestyle=":", label="log K")
    axes.set_ylim(0, None)
    _finish(axes, "nats")
    save(figure, path)


@safe_plot
def probe_plot(epochs: Table, controls: Mapping[str, Mapping[str, float | None]], chance: float, path: Path) -> None:
    """Balanced accuracy on the labelled regions from the random start, beside mean colour."""
    figure, axes = blank(5.2, 3.6)
    axes.axhline(chance, color=GREY, linewidth=0.8, linestyle=":", label="chance")
    start, colours = (controls.get(name) or {} for name in ("random_start", "mean_colour"))
    for i, (name, label) in enumerate({"knn_balanced": "k-NN", "linear_balanced": "linear probe"}.items()):
        x, y = _known(epochs, name)
        if (value := start.get(name)) is not None:
            x, y = np.concatenate([[0.0], x]), np.concatenate([[value], y])
        axes.plot(x, y, color=COLOURS[i], marker="o", ms=3, label=label)
        if (value := colours.get(name)) is not None:
            axes.axhline(
                value, color=COLOURS[i], linewidth=1, linestyle="--", alpha=0.6, label=f"{label} on mean colour"
            )
    axes.set_ylim(0, 1)
    _finish(axes, "balanced accuracy")
    save(figure, path)


@safe_plot
def rank_plot(epochs: Table, controls: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """RankMe and the spread of the embeddings, from the random start."""
    figure, panels = blank(5.2, 3.6, rows=2)
    start = controls.get("random_start") or {}
    names = {"rankme": "RankMe", "feature_std": "spread"}
    for i, (axes, (name, label)) in enumerate(zip(panels, names.items(), strict=True)):
        x, y = _known(epochs, name)
        if (value := start.get(name)) is not None:
            x, y = np.concatenate([[0.0], x]), np.concatenate([[value], y])
        axes.plot(x, y, color=COLOURS[i], marker="o", ms=3)
        axes.set(ylabel=label)
        axes.set_ylim(0, 1.1 * max(y, default=0) or 1)
    _finish(panels[-1], names["feature_std"])
    save(figure, path)


@safe_plot
def rates_plot(steps: Table, path: Path) -> None:
    """Scheduled values and the gradient norm."""
    names = {
        "lr": "learning rate",
        "weight_decay": "weight decay",
        "teacher_momentum": "momentum",
        "grad_norm": "gradient norm",
    }
    shown = {name: label for name, label in names.items() if name in steps and np.isfinite(steps[name]).any()}
    figure, panels = blank(5.2, 1.3 * max(2, len(shown)), rows=max(1, len(shown)))
    panels = np.atleast_1d(panels)
    for axes, (name, label) in zip(panels, shown.items(), strict=False):
        _line(axes, steps, name, color=COLOURS[0], linewidth=1.2)
        axes.set_ylabel(label, fontsize=8.5)
        axes.ticklabel_format(axis="y", useOffset=False)
        known = steps[name][np.isfinite(steps[name])]
        if name == "grad_norm" and 0 < 30 * known.min() < known.max():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the default formatter typesets
            axes.yaxis.set_minor_formatter("")
    if shown:
        _finish(panels[-1], shown.popitem()[1])
    else:
        write_note(panels[0], "no rates in steps.csv")
    figure.align_ylabels(list(panels))
    save(figure, path)


def thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of x and y over at most `_POINTS` groups of equal length; values that are not finite are dropped."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(y) <= _POINTS:
        return x, y
    edges = np.linspace(0, len(y), _POINTS + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / counts, np.add.reduceat(y, edges[:-1]) / counts


def _line(axes: Axes, steps: Table, name: str, **style: object) -> None:
    """Plots a column of the steps against fractional epochs."""
    if name in steps:
        axes.plot(*thinned(steps["at_epoch"], steps[name]), **style)  # type: ignore[arg-type]


def _known(epochs: Table, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = epochs.get(name, np.full(len(epochs["epoch"]), math.nan))
    known = np.isfinite(values)
    return epochs["epoch"][known], values[known]


def _finish(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", ylabel=label)
    if axes.dataLim.x1 > 0:
        axes.set_xlim(0, 1.01 * axes.dataLim.x1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
