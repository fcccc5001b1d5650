"""One table of a comparison: mean ± SD over the folds with its interval, gaps, the published rows, what each cost."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longvit.comparison.bag_cohort import BagCohort
from longvit.comparison.intervals import Round, drawn_means, interval, mean_of_folds, only_common
from longvit.comparison.longvit_run import NAME, LongvitRun
from longvit.comparison.settings import ComparisonSettings
from longvit.comparison.system_spec import SystemSpec
from longvit.comparison.trial import FoldSplit
from longvit.errors import InputError
from longvit.files import write_text
from longvit.finetuning.crossval import DDOF
from longvit.finetuning.outputs import read_logits
from longvit.finetuning.paper_tables import COHORTS, METRICS, SYSTEMS, PublishedRow, published_rows
from longvit.finetuning.results import leaks, without_nan
from longvit.tasks.task import task_class

_COLUMNS = ("{}, mean ± SD", "95 % interval", "LongViT − it", "published", "seconds", "parameters", "MiB")
_WORDS = {
    NAME: "LongViT",
    "mean_pooling": "mean pooling",
    "transmil": "TransMIL",
    "longnet": "LongNet on tiles",
    **SYSTEMS,
}


def summarise(
    bag_cohort: BagCohort,
    folds: Sequence[FoldSplit],
    spec: Sequence[SystemSpec],
    settings: ComparisonSettings,
    folder: Path,
    done: Mapping[tuple[str, str], Mapping[str, Any]],
    failed: Mapping[tuple[str, str], str],
    longvit: LongvitRun | None,
) -> dict[str, Any]:
    """What benchmark.json holds:

    task, figure, figure_words, cell, ddof, evaluated. folds: fold, bags (split -> number), leaks.
    systems: system, words, inputs; mean, sd (over the folds that are done), low, high (95 %: patients drawn anew in
        every fold); best_val (mean, sd at the epoch picked on val; None without val); gap (LongViT less the system on
        the patients that both have: value, low, high; None without LongViT); published (mean, sd, or None);
        parameters; seconds and cpu_seconds (mean of a fold: fit, training, evaluation; None where interrupted);
        peak_memory_mib (highest of the folds);
        cells: fold, value, best_val, seconds, or error.
    published: rows of the paper's column that no system here stands for. bags, tiles, width: what was compared on.
    settings, notes, problems, versions.
    """
    kind = task_class(settings.task)
    ddof = DDOF.get(settings.task, 1)
    rounds: list[dict[str, Any]] = []
    for of in folds:
        here: dict[str, Any] = {}
        for each in spec:
            if (each.name, of.fold.name) in done:
                path = folder / each.name / f"fold_{of.fold.name}" / "outputs.csv"
                here[each.name] = read_logits(path, of.cohort)["model"][of.evaluated]
        if longvit is not None:
            here[NAME] = longvit.predictions[of.fold.name]
        rounds.append(here)
    tasks = [of.task if longvit is None else longvit.tasks[of.fold.name] for of in folds]
    draws = drawn_means(rounds, tasks, resamples=settings.bootstrap, seed=settings.seed)
    published = published_column(settings.cell, kind.metric)
    rows = []
    for each in spec:
        metrics = {of.fold.name: done.get((each.name, of.fold.name)) for of in folds}
        costs = [m["training"] for m in metrics.values() if m is not None]
        trials = [
            _cell(name, m, kind.metric, failed.get((each.name, name), "not computed")) for name, m in metrics.items()
        ]
        rows.append(
            {
                "system": each.name,
                "words": words_of(each.name),
                "inputs": each.inputs,
                **_spread_and_interval([c["value"] for c in trials], ddof, draws.get(each.name)),
                "best_val": _spread([c["best_val"] for c in trials], ddof),
                "gap": None if longvit is None else _gap(rounds, tasks, each.name, draws, settings),
                "published": _published_of(published, each),
                "parameters": costs[0]["parameters"] if costs else None,
                **_of_folds(costs),
                "cells": trials,
            }
        )
    if longvit is not None:
        values = [task.main_metric(longvit.predictions[of.fold.name]) for of, task in zip(folds, tasks, strict=True)]
        rows.append(
            {
                "system": NAME,
                "words": words_of(NAME),
                "inputs": "image",
                **_spread_and_interval(values, ddof, draws.get(NAME)),
                "best_val": _spread(list(longvit.best_val.values()), ddof),
                "gap": None,
                "published": None,
                "parameters": longvit.parameters,
                **_of_folds(longvit.costs),
                "cells": [
                    {"fold": of.fold.name, "value": v, "best_val": longvit.best_val.get(of.fold.name), "error": None}
                    for of, v in zip(folds, values, strict=True)
                ],
                "run": str(longvit.folder),
            }
        )
    taken = {(row["words"], row["inputs"]) for row in rows}
    units = {row.slide_id for of in folds for row in of.cohort.rows if row.split is not None}
    notes = [*bag_cohort.notes, *(note for of in folds for note in of.cohort.notes)]
    found = {
        "task": settings.task,
        "figure": kind.metric,
        "figure_words": kind.metric_label,
        "chance": kind.chance,
        "cell": settings.cell,
        "ddof": ddof,
        "evaluated": "test" if all(of.evaluated == "test" for of in folds) else "val",
        "folds": [
            {
                "fold": of.fold.name,
                "bags": {s: len(of.cohort.split(s)) for s in ("train", "val", "test")},
                "leaks": leaks(of.cohort.rows),
            }
            for of in folds
        ],
        "systems": rows,
        "published": [_published_row(r) for r in published if (SYSTEMS[r.system], r.inputs) not in taken],
        "per_patient": bag_cohort.per_patient,
        "bags": len(units),
        "tiles": sum(bag_cohort.tiles_of.values()),
        "width": bag_cohort.width,
        "settings": json.loads(json.dumps(asdict(settings))),
        "notes": list(dict.fromkeys(notes)),
        "problems": len(bag_cohort.problems),
        "versions": _versions(),
    }
    plain: dict[str, Any] = without_nan(found)
    return plain


def words_of(name: str) -> str:
    """What a system is called: `deep_sets+concat` -> Deep Sets (concat)."""
    system, _, fusion = name.partition("+")
    words = _WORDS.get(system, system.replace("_", " "))
    return f"{words} ({fusion})" if fusion else words


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as texts: the systems, then the published rows that none of them stands for. The first two
    columns are words; a column in which nothing stands is left out."""
    header = ["system", "inputs", *(name.format(summary["figure_words"]) for name in _COLUMNS)]
    rows = _table_rows(summary)
    shown = [i for i in range(len(header)) if i < 4 or any(row[i] not in ("", "–") for row in rows)]
    return [header[i] for i in shown], [[row[i] for i in shown] for row in rows]


def _table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for row in summary["systems"]:
        missing = [c for c in row["cells"] if c["error"]]
        mean = plus_minus(row["mean"], row["sd"])
        if missing:
            mean += f" ({len(row['cells']) - len(missing)} of {len(row['cells'])} folds)"
        gap, published = row["gap"], row["published"]
        rows.append(
            [
                row["words"],
                row["inputs"],
                mean,
                interval_text(row["low"], row["high"]),
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
            [f"{row['words']}, published", row["inputs"], "", "", "", plus_minus(row["mean"], row["sd"]), "", "", ""]
        )
    return rows


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """benchmark.csv, then benchmark.json."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("mean", "sd", "low", "high", "parameters", "seconds", "peak_memory_mib")
    pairs = [("published", "mean"), ("published", "sd"), *(("gap", part) for part in ("value", "low", "high"))]
    folds = [f"fold_{fold['fold']}" for fold in summary["folds"]]
    writer.writerow(["system", "inputs", *numbers, *("_".join(pair) for pair in pairs), *folds, "errors"])
    for row in summary["systems"]:
        extra = [(row[key] or {}).get(part) for key, part in pairs]
        errors = "; ".join(f"fold {c['fold']}: {c['error']}" for c in row["cells"] if c["error"])
        trials = [*(row[name] for name in numbers), *extra, *(c["value"] for c in row["cells"])]
        writer.writerow([row["system"], row["inputs"], *("" if v is None else f"{v:.9g}" for v in trials), errors])
    write_text(folder / "benchmark.csv", text.getvalue())
    write_text(folder / "benchmark.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plus_minus(mean: float | None, sd: float | None) -> str:
    """`0.858 ± 0.067`; – where there is no figure."""
    if mean is None:
        return "–"
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def three_digits(value: float | None) -> str:
    """`0.811`, `12.7`, `1,240`."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def gap_text(gap: Mapping[str, float | None]) -> str:
    """`+0.021 (−0.010 to +0.050)`."""
    inner = interval_text(gap["low"], gap["high"], "+")
    return (f"{gap['value']:+.3f}" + (f" ({inner})" if inner else "")).replace("-", "−")


def interval_text(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _cell(fold: str, metrics: Mapping[str, Any] | None, metric: str, reason: str) -> dict[str, Any]:
    if metrics is None:
        return {"fold": fold, "value": None, "best_val": None, "seconds": None, "error": reason}
    of, best = metrics["splits"][metrics["evaluated"]], metrics["best_val"]
    return {
        "fold": fold,
        "value": of[metric],
        "best_val": None if best is None else best.get(metrics["evaluated"], {}).get(metric),
        "figures": {name: value for name, value in of.items() if name not in ("bags", metric)},
        "seconds": metrics["training"]["seconds"],
        "error": None,
    }


def _spread(values: Sequence[float | None], ddof: int) -> dict[str, float | None]:
    defined = [v for v in values if v is not None and math.isfinite(v)]
    if not defined:
        return {"mean": None, "sd": None}
    sd = None
    if len(defined) > ddof:
        sd = statistics.stdev(defined) if ddof == 1 else statistics.pstdev(defined)
    return {"mean": statistics.fmean(defined), "sd": sd}


def _spread_and_interval(values: Sequence[float | None], ddof: int, draws: Any) -> dict[str, float | None]:
    spread = _spread(values, ddof)
    sure = None if draws is None else interval(spread["mean"], draws)
    return {**spread, "low": sure.low if sure else None, "high": sure.high if sure else None}


def _gap(
    rounds: Sequence[Round], tasks: Sequence[Any], name: str, draws: Mapping[str, Any], settings: ComparisonSettings
) -> dict[str, float | None]:
    """LongViT less the system, on the folds and patients that both have."""
    if name not in draws:
        return {"value": None, "low": None, "high": None}
    common = only_common(rounds, NAME, name)
    if any(set(of) != {NAME, name} or len(of[NAME].rows) != len(r[NAME].rows) or len(of[name].rows) != len(r[name].rows)
           for of, r in zip(common, rounds, strict=True)):  # fmt: skip
        kept = [(of, task) for of, task in zip(common, tasks, strict=True) if of]
        common, tasks = [of for of, _ in kept], [task for _, task in kept]
        draws = drawn_means(common, tasks, resamples=settings.bootstrap, seed=settings.seed)
    ours, its = (mean_of_folds(common, tasks, n) for n in (NAME, name))
    value = None if ours is None or its is None else ours - its
    if not draws:
        return {"value": value, "low": None, "high": None}
    return asdict(interval(value, draws[NAME] - draws[name]))


def published_column(trial: str | None, metric: str) -> tuple[PublishedRow, ...]:
    """The rows of a column of the paper's tables, say table1/brca; `InputError`: there is none of this name."""
    if trial is None:
        return ()
    parts = trial.split("/")
    number = {"table1": 1, "table2": 2}.get(parts[0])
    if number is None or len(parts) < 2 or parts[1] not in COHORTS[number] or METRICS[number] != metric:
        known = [f"table{n}/{cohort}" for n, cohorts in COHORTS.items() for cohort in cohorts if METRICS[n] == metric]
        raise InputError(f"cell {trial!r}: choose {', '.join(known)}; or leave it out")
    return tuple(row for row in published_rows(number) if row.cohort == parts[1])


def _published_of(rows: Sequence[PublishedRow], spec: SystemSpec) -> dict[str, float | None] | None:
    """The published row of a system with these inputs; those with genomic features are `concat`."""
    if spec.fusion == "bilinear":
        return None
    return next(
        ({"mean": r.mean, "sd": r.sd} for r in rows if r.system == spec.system and r.inputs == spec.inputs), None
    )


def _published_row(row: PublishedRow) -> dict[str, Any]:
    return {"words": SYSTEMS[row.system], "inputs": row.inputs, "mean": row.mean, "sd": row.sd}


def _of_folds(costs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean time of a fold; the highest memory."""
    return {
        "seconds": _mean([c["seconds"] for c in costs]),
        "cpu_seconds": _mean([c.get("cpu_seconds") for c in costs]),
        "peak_memory_mib": max((c["peak_memory_mib"] for c in costs if c["peak_memory_mib"] is not None), default=None),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    from longvit import __version__

    return {"longvit": __version__, "torch": metadata.version("torch"), "python": platform.python_version()}
