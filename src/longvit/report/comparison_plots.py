"""Plots of a comparison: metric of each system with its folds and interval, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.comparison.longvit_run import NAME as LONGVIT
from longvit.comparison.summary_table import three_digits
from longvit.plots.style import COLOURS, GREY, blank, safe_plot, save


@safe_plot
def systems_plot(summary: Mapping[str, Any], path: Path) -> None:
    """Dot plot with a row per system, the highest mean on top: folds, mean, interval, published value."""
    rows = sorted(summary["systems"], key=lambda row: -1.0 if row["mean"] is None else row["mean"], reverse=True)
    figure, axes = blank(7.0, 1.1 + 0.36 * len(rows))
    axes.axvline(summary["chance"], color=GREY, linewidth=0.8, linestyle=":")
    for y, row in enumerate(rows):
        shade = COLOURS[1] if row["system"] == LONGVIT else COLOURS[0]
        x = np.array([trial["value"] for trial in row["cells"] if trial["value"] is not None], dtype=np.float64)
        # dots of equal height would overlap
        axes.scatter(x, y + 0.13 * (np.arange(len(x)) % 3 - 1), s=14, color=shade, alpha=0.45, linewidth=0, zorder=3)
        if row["mean"] is None:
            axes.text(summary["chance"], y, "  failed", va="center", color=GREY, fontsize=8)
            continue
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [y, y], color=shade, linewidth=1.6)
        axes.plot([row["mean"]] * 2, [y - 0.27, y + 0.27], color=shade, linewidth=2.6)
        if row["published"]:
            axes.scatter([row["published"]["mean"]], [y], marker="D", s=26, facecolor="white", edgecolor=GREY, zorder=4)
    axes.set_yticks(range(len(rows)), [f"{row['words']} ({row['inputs']})" for row in rows], fontsize=8)
    axes.set(ylim=(len(rows) - 0.45, -0.55), xlabel=summary["figure_words"])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save(figure, path)


@safe_plot
def costs_plot(summary: Mapping[str, Any], path: Path) -> None:
    """Bar plot of seconds per fold and peak memory, with the numbers beside the bars."""
    rows = [row for row in summary["systems"] if row["seconds"] is not None]
    figure, panels = blank(7.6, 1.1 + 0.3 * len(rows), columns=2)
    shown: Sequence[tuple[str, str]] = (("seconds", "seconds per fold"), ("peak_memory_mib", "peak memory, MiB"))
    for axes, (key, label), shade in zip(panels, shown, COLOURS, strict=False):
        values = [row[key] or 0.0 for row in rows]
        bars = axes.barh(range(len(rows)), values, color=shade, height=0.62)
        axes.bar_label(bars, [three_digits(row[key]) for row in rows], padding=3, fontsize=8)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=label, xlim=(0, 1.18 * max([*values, 1e-9])))
        axes.set_yticks(range(len(rows)), [row["words"] for row in rows] if key == "seconds" else [""] * len(rows))
        axes.tick_params(axis="y", length=0, labelsize=8)
    save(figure, path)
