"""Comparison table: a row per system as text, and the files benchmark.csv and benchmark.json.

`summary` is the content of benchmark.json, see `summary.ComparisonSummary`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longvit.files import write_csv, write_text

_COLUMNS = (
    "{}, mean ± SD", "95 % interval", "per patient, mean ± SD", "its 95 % interval", "LongViT − system", "published",
    "seconds", "parameters", "MiB",
)  # fmt: skip


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: the systems, then the published rows of other systems.

    The first two columns are text. An empty column is left out."""
    header = ["system", "inputs", *(name.format(summary["figure_words"]) for name in _COLUMNS)]
    rows = _table_rows(summary)
    shown = [i for i in range(len(header)) if i < 4 or any(row[i] not in ("", "–") for row in rows)]
    return [header[i] for i in shown], [[row[i] for i in shown] for row in rows]


def _table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for row in summary["systems"]:
        missing = [trial for trial in row["cells"] if trial["error"]]
        mean = plus_minus(row["mean"], row["sd"])
        if missing:
            mean += f" ({len(row['cells']) - len(missing)} of {len(row['cells'])} folds)"
        gap, published, patients = row["gap"], row["published"], row.get("patients")
        rows.append(
            [
                row["words"],
                row["inputs"],
                mean,
                interval_text(row["low"], row["high"]),
                "" if patients is None else plus_minus(patients["mean"], patients["sd"]),
                "" if patients is None else interval_text(patients["low"], patients["high"]),
                ""
                if not gap or gap["value"] is None
                else f"{gap['value']:+.3f} [{interval_text(gap['low'], gap['high'], '+')}]",
                "" if published is None else plus_minus(published["mean"], published["sd"]),
                three_digits(row["seconds"]),
                "–" if row["parameters"] is None else f"{row['parameters']:,}",
                three_digits(row["peak_memory_mib"]),
            ]
        )
    for row in summary["published"]:
        rows.append(
            [f"{row['words']}, published", row["inputs"], *[""] * 5, plus_minus(row["mean"], row["sd"]), "", "", ""]
        )
    return rows


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes benchmark.csv, then benchmark.json."""
    numbers = ("mean", "sd", "low", "high", "parameters", "seconds", "peak_memory_mib")
    pairs = [("published", "mean"), ("published", "sd"), *(("gap", part) for part in ("value", "low", "high"))]
    folds = [f"fold_{fold['fold']}" for fold in summary["folds"]]
    header = ["system", "inputs", *numbers, *("_".join(pair) for pair in pairs), *folds, "errors"]
    of_patients = ("mean", "sd", "low", "high")
    has_patients = any(row.get("patients") for row in summary["systems"])
    header += [f"patients_{name}" for name in of_patients] if has_patients else []
    rows = []
    for row in summary["systems"]:
        extra = [(row[key] or {}).get(part) for key, part in pairs]
        errors = "; ".join(f"fold {trial['fold']}: {trial['error']}" for trial in row["cells"] if trial["error"])
        values = [*(row[name] for name in numbers), *extra, *(trial["value"] for trial in row["cells"])]
        rows.append([row["system"], row["inputs"], *("" if v is None else f"{v:.9g}" for v in values), errors])
        if has_patients:
            rows[-1] += ["" if (v := (row["patients"] or {}).get(name)) is None else f"{v:.9g}" for name in of_patients]
    write_csv(folder / "benchmark.csv", header, rows)
    write_text(folder / "benchmark.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plus_minus(mean: float | None, sd: float | None) -> str:
    """Mean ± SD as text, `0.858 ± 0.067`; – where not defined."""
    if mean is None:
        return "–"
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def three_digits(value: float | None) -> str:
    """Number with three digits: `0.811`, `12.7`, `1,240`."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def interval_text(low: float | None, high: float | None, sign: str = "") -> str:
    """Interval as text, `0.810 to 0.905`; empty where not defined."""
    return "" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
