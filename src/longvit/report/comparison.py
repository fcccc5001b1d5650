"""Report of a comparison: a table of all systems, their metrics with intervals, and the cost of each.

It reads the content of benchmark.json only, so it can be rebuilt anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longvit.comparison.longvit_run import NAME as LONGVIT
from longvit.comparison.summary_table import plus_minus, table
from longvit.report.comparison_plots import costs_plot, systems_plot
from longvit.report.labels import MEANINGS, counted, listed
from longvit.report.page import MetricCard, Report, Row, Section, Table, number, settings_table, write_report
from longvit.report.sections import interval_label, saved_plot
from longvit.report.versions import versions_line

_ERROR_CHARS = 300


def comparison_report(summary: Mapping[str, Any], folder: str | Path, *, more: Sequence[Section] = ()) -> Path:
    """Writes `folder`/index.html and `folder`/pictures/systems.*, costs.*; `summary`: content of benchmark.json.

    `more`: sections at the end.
    """
    folder = Path(folder)
    return write_report(comparison_content(summary, folder / "pictures"), folder / "index.html", more)


def comparison_content(summary: Mapping[str, Any], plots: Path) -> Report:
    """Content of the report; `plots`: the folder of its plots."""
    systems, folds = summary["systems"], summary["folds"]
    bags = "patient" if summary["per_patient"] else "slide"
    inputs = f", {summary['tiles']:,} tiles of {summary['width']} features" if summary["width"] else ", omics only"
    paper_cell = f" on {summary['cell']}" if summary["cell"] else ""
    systems_plot(summary, plots / "systems.png")
    sections = [_table_section(summary, plots), _fold_section(summary)]
    if any(row["seconds"] is not None for row in systems):
        costs_plot(summary, plots / "costs.png")
        caption = (
            "Mean seconds per fold (fitting, training, evaluation) and peak memory above that at the start of the "
            "process. Measured on the machine of the run; other processes may have been running."
        )
        if any(row["system"] == LONGVIT for row in systems):
            caption += " LongViT reads the pixels of the slides, the other systems precomputed features."
        plot = saved_plot("Costs", plots / "costs.png", caption, max_px=760)
        sections.append(Section("Time and memory", plots=(plot,)))
    return Report(
        title=f"{summary['task'].capitalize()}: {counted(len(systems), 'system')} on the same folds{paper_cell}",
        lead=(
            f"{counted(summary['bags'], bags)}{inputs}; {counted(len(folds), 'fold')}, evaluated on "
            f"{summary['evaluated']} after the last epoch. All fitting uses the training fold only.",
        ),
        notes=comparison_warnings(summary),
        cards=_cards(summary),
        sections=(*sections, _failed_section(summary), _settings_section(summary)),
    )


def comparison_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Caveats of the report: failed trials, leaks, intervals that contain chance, ties, folds without test."""
    notes, metric = [], summary["figure_words"]
    if names := [row["words"] for row in summary["systems"] if any(trial["error"] for trial in row["cells"])]:
        notes.append(
            f"Failed in at least one fold: {listed(names)}. Their means cover the other folds only and are not "
            f"comparable; see Failed trials."
        )
    pair = f"train_{summary['evaluated']}"
    if leaking := sum(fold["leaks"].get(pair, 0) for fold in summary["folds"]):
        notes.append(
            f"Patients with slides both in training and among the evaluated ones: {leaking:,}, summed over "
            f"{counted(len(summary['folds']), 'fold')}. All metrics overestimate the performance on new patients by an "
            f"unknown amount."
        )
    at_chance = [
        row["words"]
        for row in summary["systems"]
        if row["low"] is not None and row["low"] <= summary["chance"] <= row["high"]
    ]
    if at_chance:
        notes.append(
            f"The 95 % interval of the {metric} contains {summary['chance']} for {listed(at_chance)}: guessing is not "
            f"ruled out."
        )
    compared = [row for row in summary["systems"] if row["gap"] and row["gap"]["low"] is not None]
    if ties := [row["words"] for row in compared if row["gap"]["low"] <= 0 <= row["gap"]["high"]]:
        notes.append(
            f"No significant difference between LongViT and {listed(ties)}: the interval of the difference contains 0."
        )
    if summary["evaluated"] == "val":
        notes.append(
            "These folds have no test set, so systems are evaluated on val. The last epoch was fixed in advance, which "
            "is fair; selecting the best epoch on val would be optimistic."
        )
    return notes


def _cards(summary: Mapping[str, Any]) -> list[MetricCard]:
    """Cards of the best system, and of LongViT where it is not the best."""
    known = [row for row in summary["systems"] if row["mean"] is not None]
    best = sorted(known, key=lambda row: -row["mean"])[:1]
    shown = best + [row for row in known if row["system"] == LONGVIT and row not in best]
    metric = summary["figure_words"]
    return [
        MetricCard(
            row["words"],
            number(row["mean"], 3),
            ("highest " if row in best else "") + f"{metric}; {interval_label(row['low'], row['high'])}",
            "" if row["sd"] is None else number(row["sd"], 3),
        )
        for row in shown
    ]


def _table_section(summary: Mapping[str, Any], plots: Path) -> Section:
    systems, (header, texts) = summary["systems"], table(summary)
    rows = [
        Row(cells, "other" if i >= len(systems) else "strong" if systems[i]["system"] == LONGVIT else "")
        for i, cells in enumerate(texts)
    ]
    caption = (
        f"{summary['figure_words']}, SD with {'N − 1' if summary['ddof'] else 'N'} in the denominator, as in the "
        f"published table. 95 % intervals of the mean: bootstrap, resampled by patient within each fold, with the same "
        f"resamples for all systems. Published rows used other features and slides."
    )
    if any(row.get("patients") for row in systems):
        caption += " Per patient: the mean of the predictions of its slides."
    systems_table = Table(header, rows, frozenset(range(2, len(header))), caption, first_stays=True)
    plot = saved_plot(
        "Systems",
        plots / "systems.png",
        "Dots: folds. Bar: mean. Line: 95 % interval of the mean. Diamond: published. Dotted: chance.",
        max_px=760,
    )
    meaning = MEANINGS.get(summary["figure"])
    return Section("All systems", text=(meaning,) if meaning else (), tables=(systems_table,), plots=(plot,))


def _fold_section(summary: Mapping[str, Any]) -> Section:
    """Section with each fold of each system, and the mean at the best epoch on val."""
    folds = [fold["fold"] for fold in summary["folds"]]
    has_best = any(row["best_val"]["mean"] is not None for row in summary["systems"])
    rows = []
    for row in summary["systems"]:
        value = {trial["fold"]: "failed" if trial["error"] else number(trial["value"], 3) for trial in row["cells"]}
        best = [plus_minus(row["best_val"]["mean"], row["best_val"]["sd"])] if has_best else []
        rows.append(Row([row["words"], *(value.get(fold, "–") for fold in folds), *best]))
    counts = [sum(fold["bags"].values()) for fold in summary["folds"]]
    splits = ", ".join(
        f"fold {f['fold']}: {f['bags']['train']} / {f['bags']['val']} / {f['bags']['test']}" for f in summary["folds"]
    )
    caption = f"Bags in train / val / test: {splits}." if max(counts, default=0) else ""
    optimistic = " (optimistic)" if summary["evaluated"] == "val" else ""
    columns = ["system", *(f"fold {fold}" for fold in folds), *([f"best epoch on val{optimistic}"] * has_best)]
    table = Table(columns, rows, frozenset(range(1, len(columns))), caption, first_stays=True)
    return Section("Results by fold", tables=(table,), folded="Show the table")


def _failed_section(summary: Mapping[str, Any]) -> Section:
    points = [
        f"{row['words']}, fold {trial['fold']}: {trial['error'][:_ERROR_CHARS]}"
        for row in summary["systems"]
        for trial in row["cells"]
        if trial["error"]
    ]
    return Section("Failed trials", points=points or ["None: every system finished every fold."])


def _settings_section(summary: Mapping[str, Any]) -> Section:
    files = "Files in this folder: benchmark.csv, benchmark.json, folds/, problems.csv, a folder per system."
    return Section(
        "Settings and versions",
        points=[*summary["notes"], versions_line(summary["versions"]), files],
        tables=(settings_table(summary["settings"]),),
        folded="Show settings and versions",
    )
