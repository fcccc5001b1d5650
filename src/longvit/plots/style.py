"""Style of all plots of results, and their files: a PNG and an SVG each, without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longvit.figure import new_figure, plot, short_name, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe-Ito); grey is reserved for chance and controls.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#777777"

safe_plot = plot(".png", ".svg")
"""Decorator of functions that draw into `path` with `save`."""


def colour(i: int) -> str:
    """Colour of the i-th series; colours repeat after six."""
    return COLOURS[i % len(COLOURS)]


def blank(
    width_in: float, height_in: float, *, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """Empty matplotlib figure with panels in the common style."""
    figure = new_figure(width_in, height_in, dpi=150)
    panels = figure.subplots(rows, columns, height_ratios=heights, sharex=rows > 1)
    for axes in np.atleast_1d(panels).flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save(figure: Figure, path: str | Path) -> None:
    """Writes a plot as PNG and as SVG (letters as outlines, independent of installed fonts).

    The same plot gives the same bytes.
    """
    for suffix in (".png", ".svg"):
        write_figure(figure, Path(path).with_suffix(suffix))


def legend_name(name: str) -> str:
    """Name at the start of a legend entry; matplotlib omits entries that begin with an underscore."""
    return f" {short_name(name)}" if name.startswith("_") else short_name(name)


def write_note(axes: Axes, text: str) -> None:
    """Text in place of a plot that has no data."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_axis_off()
