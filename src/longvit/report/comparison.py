"""The report of a comparison: one table of all systems, their figures with intervals, and what each one cost.

Made from what benchmark.json holds alone, so it can be made again anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvit.comparison.longvit_run import NAME as LONGVIT
from longvit.comparison.summary import plus_minus, table, three_digits
from longvit.plots.style import COLOURS, GREY, blank, safe_plot, save
from longvit.report.labels import MEANINGS, counted, listed
from longvit.report.page import MetricCard, Report, Row, Section, Table, number, write_report
from longvit.report.sections import drawn, sure_words
from longvit.report.versions import versions_line

_ERROR_CHARS = 300


def comparison_report(summary: Mapping[str, Any], folder: str | Path) -> Path:
    """Writes `folder`/index.html and `folder`/pictures/systems.*, costs.*; `summary`: see `comparison.summary`."""
    folder = Path(folder)
    return write_report(comparison_content(summary, folder / "pictures"), folder / "index.html")


def comparison_content(summary: Mapping[str, Any], plots: Path) -> Report:
    """What the report says; `pictures` is the folder they are drawn into."""
    systems, folds = summary["systems"], summary["folds"]
    bags = "patient" if summary["per_patient"] else "slide"
    what = f", {summary['tiles']:,} tiles of {summary['width']} features" if summary["width"] else ", omics alone"
    where = f" on {summary['cell']}" if summary["cell"] else ""
    systems_plot(summary, plots / "systems.png")
    sections = [_table_section(summary, plots), _fold_section(summary)]
    if any(row["seconds"] is not None for row in systems):
        costs_plot(summary, plots / "costs.png")
        caption = (
            "Mean seconds of a fold (fitting, training, evaluation) and the highest memory above what the process had "
            "when it began. Measured on the machine of the run, beside whatever else ran there."
        )
        if any(row["system"] == LONGVIT for row in systems):
            caption += " LongViT reads the slides' pixels, the others features that had been made before."
        plot = drawn("Costs", plots / "costs.png", caption, max_px=760)
        sections.append(Section("What each one cost", plots=(plot,)))
    return Report(
        title=f"{summary['task'].capitalize()}: {counted(len(systems), 'system')} on the same folds{where}",
        lead=(
            f"{counted(summary['bags'], bags)}{what}; {counted(len(folds), 'fold')}, evaluated on "
            f"{summary['evaluated']} after the last epoch. Whatever is fitted is fitted on the training fold.",
        ),
        notes=comparison_warnings(summary),
        cards=_cards(summary),
        sections=(*sections, _failed_section(summary), _made_section(summary)),
    )


def comparison_warnings(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a number."""
    notes, words = [], summary["figure_words"]
    failed = [(row, [c for c in row["cells"] if c["error"]]) for row in summary["systems"]]
    if names := [row["words"] for row, cells in failed if cells]:
        notes.append(
            f"Without a figure in some fold: {listed(names)}. Their means are those of the other folds and do not "
            f"compare; the reasons stand below."
        )
    pair = f"train_{summary['evaluated']}"
    if leaking := sum(fold["leaks"].get(pair, 0) for fold in summary["folds"]):
        notes.append(
            f"Patients with slides both in training and among the evaluated ones: {leaking:,}, added over "
            f"{counted(len(summary['folds']), 'fold')}. Every figure is better than for new patients by an unknown "
            f"amount."
        )
    sure = [
        row
        for row in summary["systems"]
        if row["low"] is not None and row["low"] <= summary["chance"] <= row["high"]
    ]  # fmt: skip
    if sure:
        notes.append(
            f"The 95 % interval of the {words} contains {summary['chance']} for {listed([r['words'] for r in sure])}: "
            f"guessing is not ruled out."
        )
    ties = [row for row in summary["systems"] if row["gap"] and row["gap"]["low"] is not None]
    if unsure := [row["words"] for row in ties if row["gap"]["low"] <= 0 <= row["gap"]["high"]]:
        notes.append(f"LongViT and {listed(unsure)} cannot be told apart: the interval of their difference contains 0.")
    if summary["evaluated"] == "val":
        notes.append(
            "These folds have no test part: val is what is evaluated. The last epoch was fixed beforehand, so that is "
            "fair; the epoch that is best on val would flatter."
        )
    return notes


def _cards(summary: Mapping[str, Any]) -> list[MetricCard]:
    """The best, and LongViT where it is not the best."""
    known = [row for row in summary["systems"] if row["mean"] is not None]
    best = sorted(known, key=lambda row: -row["mean"])[:1]
    shown = best + [row for row in known if row["system"] == LONGVIT and row not in best]
    return [
        MetricCard(
            row["words"],
            number(row["mean"], 3),
            ("highest " if row in best else "") + f"{summary['figure_words']}; {sure_words(row['low'], row['high'])}",
            "" if row["sd"] is None else number(row["sd"], 3),
        )
        for row in shown
    ]


def _table_section(summary: Mapping[str, Any], plots: Path) -> Section:
    ours, (header, texts) = summary["systems"], table(summary)
    rows = [
        Row(cells, "other" if i >= len(ours) else "strong" if ours[i]["system"] == LONGVIT else "")
        for i, cells in enumerate(texts)
    ]
    caption = (
        f"{summary['figure_words']}, SD with {'N − 1' if summary['ddof'] else 'N'} in the denominator, as in the "
        f"published table. Intervals of the mean: the patients of every fold drawn anew, the same ones for all "
        f"systems. Published rows rest on other features and slides."
    )
    whole = Table(header, rows, frozenset(range(2, len(header))), caption, first_stays=True)
    plot = drawn(
        "Systems",
        plots / "systems.png",
        "Dots: folds; bar: their mean; line: its 95 % interval; diamond: as published; dotted: guessing.",
        max_px=760,
    )
    meaning = MEANINGS.get(summary["figure"])
    return Section("All systems", text=(meaning,) if meaning else (), tables=(whole,), plots=(plot,))


def _fold_section(summary: Mapping[str, Any]) -> Section:
    """Each fold of each system; below, the mean of the epoch that was best on val."""
    folds = [fold["fold"] for fold in summary["folds"]]
    has_best = any(row["best_val"]["mean"] is not None for row in summary["systems"])
    rows = []
    for row in summary["systems"]:
        value = {cell["fold"]: "failed" if cell["error"] else number(cell["value"], 3) for cell in row["cells"]}
        best = [plus_minus(row["best_val"]["mean"], row["best_val"]["sd"])] if has_best else []
        rows.append(Row([row["words"], *(value.get(fold, "–") for fold in folds), *best]))
    counts = [sum(fold["bags"].values()) for fold in summary["folds"]]
    sides = ", ".join(
        f"fold {f['fold']}: {f['bags']['train']} / {f['bags']['val']} / {f['bags']['test']}" for f in summary["folds"]
    )
    caption = f"Bags in train / val / test: {sides}." if max(counts, default=0) else ""
    optimistic = " (optimistic)" if summary["evaluated"] == "val" else ""
    columns = ["system", *(f"fold {fold}" for fold in folds), *([f"best epoch on val{optimistic}"] * has_best)]
    table = Table(columns, rows, frozenset(range(1, len(columns))), caption, first_stays=True)
    return Section("Fold by fold", tables=(table,), folded="Show the table")


def _failed_section(summary: Mapping[str, Any]) -> Section:
    points = [
        f"{row['words']}, fold {cell['fold']}: {cell['error'][:_ERROR_CHARS]}"
        for row in summary["systems"]
        for cell in row["cells"]
        if cell["error"]
    ]
    return Section("Cells without a figure", points=points or ["None: every system has a figure in every fold."])


def _made_section(summary: Mapping[str, Any]) -> Section:
    rows = [
        Row([name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)])
        for name, value in summary["settings"].items()
    ]
    files = "As files beside this one: benchmark.csv, benchmark.json, folds/, problems.csv, a folder per system."
    return Section(
        "Settings and versions",
        points=[*summary["notes"], versions_line(summary["versions"]), files],
        tables=(Table(("setting", "value"), rows),),
        folded="How this was made",
    )


@safe_plot
def systems_plot(summary: Mapping[str, Any], path: Path) -> None:
    """A row per system, the highest mean on top: folds, mean, interval, published."""
    rows = sorted(summary["systems"], key=lambda row: -1.0 if row["mean"] is None else row["mean"], reverse=True)
    figure, axes = blank(7.0, 1.1 + 0.36 * len(rows))
    axes.axvline(summary["chance"], color=GREY, linewidth=0.8, linestyle=":")
    for y, row in enumerate(rows):
        shade = COLOURS[1] if row["system"] == LONGVIT else COLOURS[0]
        x = np.array([cell["value"] for cell in row["cells"] if cell["value"] is not None], dtype=np.float64)
        # dots of equal height would hide each other
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
    """Seconds of a fold and peak memory, the numbers beside the bars."""
    rows = [row for row in summary["systems"] if row["seconds"] is not None]
    figure, panels = blank(7.6, 1.1 + 0.3 * len(rows), columns=2)
    shown: Sequence[tuple[str, str]] = (("seconds", "seconds of a fold"), ("peak_memory_mib", "peak memory, MiB"))
    for axes, (key, label), shade in zip(panels, shown, COLOURS, strict=False):
        values = [row[key] or 0.0 for row in rows]
        bars = axes.barh(range(len(rows)), values, color=shade, height=0.62)
        axes.bar_label(bars, [three_digits(row[key]) for row in rows], padding=3, fontsize=8)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=label, xlim=(0, 1.18 * max([*values, 1e-9])))
        axes.set_yticks(range(len(rows)), [row["words"] for row in rows] if key == "seconds" else [""] * len(rows))
        axes.tick_params(axis="y", length=0, labelsize=8)
    save(figure, path)
