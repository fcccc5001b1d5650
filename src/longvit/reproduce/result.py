"""Result of a reproduction: the measured metric beside the published rows of its column, with the gap to each.

The interval of a gap is that of the measured mean over the folds, resampled by patient within each fold, minus the
published mean, which counts as exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from longvit.comparison.intervals import drawn_means, interval
from longvit.comparison.longvit_run import NAME, read_longvit_run
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.system_spec import system_spec
from longvit.finetuning.paper_tables import PAPER, SYSTEMS, PublishedRow, metric_text, published_rows
from longvit.finetuning.settings import FinetuneSettings
from longvit.reproduce.cells import Cell
from longvit.reproduce.protocol import CellProtocol
from longvit.tasks.settings import TaskSettings


@dataclass(frozen=True)
class Measured:
    """Metric of the cell over its folds."""

    mean: float | None
    sd: float | None
    low: float | None
    """Lower end of the 95 % interval of the mean."""
    high: float | None
    folds: int


@dataclass(frozen=True)
class Gap:
    """Measured minus published mean, with its 95 % interval; None where the metric is not defined."""

    system: str
    inputs: str
    published_mean: float
    published_sd: float | None
    value: float | None
    low: float | None
    high: float | None


def longvit_measured(
    protocol: CellProtocol, settings: FinetuneSettings, summary: Mapping[str, Any], run: Path
) -> Measured:
    """Metric of a cross-validation of LongViT, with the interval of its mean."""
    names = {field.name for field in fields(TaskSettings)} | {"allow_leak", "seed", "bootstrap"}
    shared = {name: getattr(settings, name) for name in names}
    found = read_longvit_run(run, protocol.cohort, protocol.folds, ComparisonSettings(**shared))
    tasks = [found.tasks[fold.name] for fold in protocol.folds]
    rounds = [{NAME: found.predictions[fold.name]} for fold in protocol.folds]
    draws = drawn_means(rounds, tasks, resamples=settings.bootstrap, seed=settings.seed)
    sure = interval(summary["mean"], draws[NAME])
    return Measured(summary["mean"], summary["sd"], sure.low, sure.high, len(summary["folds"]))


def baseline_measured(summary: Mapping[str, Any]) -> Measured:
    """Metric of the only system of a comparison."""
    (system,) = summary["systems"]
    return Measured(system["mean"], system["sd"], system["low"], system["high"], len(summary["folds"]))


def gaps(cell: Cell, measured: Measured) -> tuple[Gap, ...]:
    """Gap to each published row of the column for LongViT, to its own row for a baseline."""
    column = [row for row in published_rows(cell.metric_table) if row.cohort == cell.cohort]
    return tuple(_gap(row, measured) for row in (column if cell.system is None else [cell.published]))


def _gap(row: PublishedRow, measured: Measured) -> Gap:
    def minus(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value - row.mean

    ends = minus(measured.mean), minus(measured.low), minus(measured.high)
    return Gap(SYSTEMS[row.system], row.inputs, row.mean, row.sd, *ends)


def result_json(cell: Cell, measured: Measured, more: Mapping[str, Any]) -> dict[str, Any]:
    """Content of result.json."""
    return {
        "cell": cell.name,
        "run": cell.run_name,
        "figure": cell.published.metric,
        "measured": asdict(measured),
        "gaps": [asdict(gap) for gap in gaps(cell, measured)],
        "longvit_published": PAPER,
        **more,
    }


def table_lines(cell: Cell, measured: Measured) -> list[str]:
    """The table as text: the measured row, then each published row with the gap."""
    if cell.system is None:
        ours = f"LongViT, {cell.side_px:,} px, measured"
    else:
        ours = f"{SYSTEMS[system_spec(cell.system).system]}, measured"
    low, high = _number(measured.low), _number(measured.high)
    header = ["", "inputs", cell.published.metric, "measured − published", "95 % interval"]
    inputs = "image" if cell.system is None else cell.published.inputs
    rows = [header, [ours, inputs, metric_text(measured.mean, measured.sd), "", f"{low} … {high}"]]
    for gap in gaps(cell, measured):
        ends = f"{_number(gap.low, '+')} … {_number(gap.high, '+')}"
        published = metric_text(gap.published_mean, gap.published_sd)
        rows.append([f"{gap.system}, published", gap.inputs, published, _number(gap.value, "+"), ends])
    if cell.system is None:
        rows.append([f"LongViT, published: {PAPER}", "image", "–", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [f"{cell.name}: mean ± SD over {measured.folds} folds", *lines]


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{sign}.3f}"
