"""Report of a cross-validation: mean ± SD beside the controls and the published row, every fold, plots.

It reads files only (crossval.json and predictions.csv), so it can be rebuilt anywhere.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longvit.report.labels import CHANCE, MEANINGS, counted, display_name, listed, metric_label
from longvit.report.page import MetricCard, Report, Row, Section, Table, number, settings_table, write_report
from longvit.report.predictions import PredictedSlides, read_predicted
from longvit.report.sections import interval_label, interval_range, saved_plot, sections_of
from longvit.report.versions import versions_line
from longvit.report.worst_errors import worst_errors_section
from longvit.tasks.catalogue import TASKS
from longvit.tasks.task import task_class


def crossval_report(
    summary: Mapping[str, Any],
    folder: str | Path,
    *,
    images: Mapping[str, Path] | None = None,
    more: Sequence[Section] = (),
) -> Path:
    """Writes `folder`/index.html and `folder`/pictures/*.png, *.svg; returns the path of index.html.

    `summary` is the content of `folder`/crossval.json (a metric that is not defined is None):

    - task, `figure`: name of the task and of its main metric
    - classes: their names; cell: a cell of the paper's tables, or None
    - mean, sd, ddof: of the main metric over the folds
    - folds: list of fold; last (metric -> value, last epoch); best_val (the same for the epoch selected on val, or
      None); controls (name -> metric -> value); leaks (train_test, train_val, val_test -> patients in both); slides
      (split -> number)
    - epoch_optimism: mean and sd, or None, or absent in older runs
    - gap: control -> value, low, high of the model's lead
    - pooled: metric -> the same, over all folds' evaluated slides; {} where folds cannot be compared
    - published: row, mean, sd, or None
    - shortcut: sentence on a likely shortcut, or None, or absent in older runs
    - evaluated: test or val; optimistic_best_val: val is the evaluation set
    - settings, notes, commit, and the versions longvit, torch, python, where known

    `folder`/predictions.csv: see `PredictedSlides`. `folder`/fold_<name>/history.csv: losses, optional.
    `images`: slide_id -> a canvas or slide, for the largest errors. `more`: sections at the end.
    `InputError` for a table that cannot be read.
    """
    folder = Path(folder)
    classes = tuple(summary["classes"])
    if summary["task"] in TASKS:
        classes = task_class(summary["task"]).classes_of(classes)
    predicted = read_predicted(folder / "predictions.csv", classes, _evaluated(summary))
    content = crossval_content(summary, predicted, folder / "pictures", images)
    return write_report(content, folder / "index.html", more)


def crossval_content(
    summary: Mapping[str, Any], predicted: PredictedSlides, plots: Path, images: Mapping[str, Path] | None = None
) -> Report:
    """Content of the report; `plots`: the folder of its plots."""
    n = len(summary["folds"])
    slides, patients = (len(set(predicted.column(name))) for name in ("slide_id", "case_id"))
    cell = f" on {summary['cell']}" if summary.get("cell") else ""
    question = f" {listed(predicted.classes, 'or')}?" if predicted.is_classified else ""
    lead = (
        f"{counted(n, 'fold')}: {len(predicted):,} predictions of {counted(slides, 'slide')} of "
        f"{counted(patients, 'patient')}, each by a model trained on other slides. Metrics of the last epoch."
    )
    return Report(
        title=f"{summary['task'].capitalize()}:{question} LongViT in {n}-fold cross-validation{cell}",
        lead=(lead,),
        notes=crossval_warnings(summary, predicted),
        cards=_cards(summary),
        sections=(
            _fold_section(summary, plots),
            *sections_of(predicted, plots),
            _pooled_section(summary),
            *worst_errors_section(predicted, images),
            *_training_section(summary, plots),
            _other_metrics_section(summary),
            _settings_section(summary),
        ),
    )


def crossval_warnings(summary: Mapping[str, Any], predicted: PredictedSlides) -> list[str]:
    """Caveats of the report: undefined folds, leaks, wide intervals, gaps to the controls, overlapping test sets."""
    main = summary["figure"]
    label, mean, chance = metric_label(main), summary["mean"], CHANCE.get(main)
    notes = [str(summary["shortcut"])] if summary.get("shortcut") else []
    if lost := [str(fold["fold"]) for fold in summary["folds"] if _value(fold["last"], main) is None]:
        notes.append(
            f"No {label} in fold{'s' * (len(lost) > 1)} {listed(lost)} (slides of one class, or no event): the mean "
            f"covers the other folds only."
        )
    if leaking := _leaks(summary)[f"train_{_evaluated(summary)}"]:
        notes.append(
            f"Patients with slides both in training and among the evaluated ones: {leaking:,}, summed over "
            f"{counted(len(summary['folds']), 'fold')}. The metrics overestimate the performance on new patients by an "
            f"unknown amount."
        )
    pooled = summary["pooled"].get(main) or {}
    low, high = pooled.get("low"), pooled.get("high")
    if chance is not None and low is not None and high is not None and low <= chance <= high:
        interval = interval_range(low, high)
        notes.append(
            f"The 95 % interval of the {label} pooled over folds ({interval}) contains {chance}: guessing is not ruled "
            f"out."
        )
    for name, gap in _gaps(summary).items():
        control = display_name(name).removeprefix("control: ")
        if gap.mean <= 0:
            notes.append(
                f"The control {control} is at least as good as the model ({label} {gap.control:.3f} against "
                f"{mean:.3f}). These metrics show no benefit of the trained encoder over it."
            )
        elif gap.low is not None and gap.low <= 0:
            notes.append(
                f"The model is ahead of the control {control} by {gap.mean:+.3f}, but the 95 % interval of the "
                f"difference ({gap.interval}) contains 0: it may be due to chance."
            )
    times = len(predicted) / max(1, len(set(predicted.column("slide_id"))))
    if len(predicted.folds) > 1 and times > 1.001 and predicted.is_classified:
        notes.append(
            f"The folds' test sets overlap ({len(predicted):,} predictions of "
            f"{len(set(predicted.column('slide_id'))):,} slides): the folds are repeated splits, not a partition. "
            f"Their SD underestimates the variation of the mean over other slides."
        )
    if summary.get("optimistic_best_val"):
        notes.append(
            "The column 'best epoch on val' is optimistic: these folds have no test set, so the epoch was selected on "
            "the slides that it is evaluated on. Use the last epoch."
        )
    return notes


@dataclass(frozen=True)
class _Gap:
    """Main metric of the model minus that of a control: mean over the folds that have both."""

    mean: float
    low: float | None
    """95 % interval, where known."""
    high: float | None
    control: float
    """Mean of the control."""
    ahead: int
    """Folds in which the model is better, of `folds`."""
    folds: int

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:+.3f} to {self.high:+.3f}".replace("-", "−")


def _gaps(summary: Mapping[str, Any]) -> dict[str, _Gap]:
    """Control -> gap; a control without a value in any fold is absent."""
    main = summary["figure"]
    gaps = {}
    for name in _controls(summary):
        pairs = [(_value(f["last"], main), _value((f["controls"] or {}).get(name), main)) for f in summary["folds"]]
        both = np.array([(model, control) for model, control in pairs if model is not None and control is not None])
        if len(both):
            known = (summary.get("gap") or {}).get(name)
            ahead = both[:, 0] - both[:, 1]
            gaps[name] = _Gap(
                mean=float(ahead.mean()),
                low=_value(known, "low"),
                high=_value(known, "high"),
                control=float(both[:, 1].mean()),
                ahead=int((ahead > 0).sum()),
                folds=len(both),
            )
    return gaps


def _controls(summary: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for fold in summary["folds"] for name in fold["controls"] or {}))


def _value(metrics: Mapping[str, Any] | None, name: str) -> float | None:
    """Value of a metric, None where it is absent or not defined."""
    value = None if metrics is None else metrics.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def _leaks(summary: Mapping[str, Any]) -> dict[str, int]:
    pairs = ("train_test", "train_val", "val_test")
    return {pair: sum((fold.get("leaks") or {}).get(pair, 0) for fold in summary["folds"]) for pair in pairs}


def _evaluated(summary: Mapping[str, Any]) -> str:
    """`test`, or `val` where the folds have no test."""
    has_test = any((fold.get("slides") or {}).get("test") for fold in summary["folds"])
    return str(summary.get("evaluated") or ("test" if has_test else "val"))


def _cards(summary: Mapping[str, Any]) -> list[MetricCard]:
    main, mean, published = summary["figure"], summary["mean"], summary.get("published")
    label = metric_label(main)
    pooled = summary["pooled"].get(main) or {}
    interval = interval_label(pooled.get("low"), pooled.get("high"))
    n = counted(len(summary["folds"]), "fold")
    more = f"mean ± SD of {n}" + (f"; pooled: {interval}" if interval else "")
    cards = [MetricCard(label, number(mean, 3), more, "" if summary["sd"] is None else number(summary["sd"], 3))]
    for name, gap in _gaps(summary).items():
        against = display_name(name).removeprefix("control: ")
        more = f"{label} minus the control's ({gap.control:.3f}); higher in {gap.ahead} of {gap.folds} folds"
        more += f"; 95 % interval {gap.interval}" if gap.interval else ""
        cards.append(MetricCard(f"over {against}", f"{gap.mean:+.3f}".replace("-", "−"), more))
    if published:
        more = f"{label} as published" + (
            "" if mean is None else f"; this run: {mean - published['mean']:+.3f}".replace("-", "−")
        )
        sd = "" if published["sd"] is None else number(published["sd"], 3)
        cards.append(MetricCard(f"published: {published['row']}", number(published["mean"], 3), more, sd))
    if (optimism := summary.get("epoch_optimism")) and optimism["mean"] is not None:
        more = f"{label} of each fold's best epoch on {_evaluated(summary)} minus that of its last; in no other metric"
        sd = "" if optimism["sd"] is None else number(optimism["sd"], 3)
        cards.append(MetricCard("optimism of choosing the epoch", number(optimism["mean"], 3), more, sd))
    leaks = _leaks(summary)
    others = f"train and val {leaks['train_val']}, val and test {leaks['val_test']}; summed over folds"
    if _evaluated(summary) == "test":
        cards.append(MetricCard("patients in train and test", f"{leaks['train_test']:,}", others))
    else:
        cards.append(MetricCard("patients in train and val", f"{leaks['train_val']:,}", "summed over folds"))
    return cards


def _plus_minus(mean: float | None, sd: float | None) -> str:
    return number(mean, 3) + ("" if sd is None or mean is None else f" ± {sd:.3f}")


def _fold_section(summary: Mapping[str, Any], plots: Path) -> Section:
    """Section with each fold as a dot and as a row, beside the controls and the published row."""
    from longvit.plots.classification import fold_dots_plot

    main, folds, published = summary["figure"], summary["folds"], summary.get("published")
    rows = {"LongViT": [_value(fold["last"], main) for fold in folds]}
    for name in _controls(summary):
        rows[display_name(name)] = [_value((fold["controls"] or {}).get(name), main) for fold in folds]
    row = None if published is None else (f"published: {published['row']}", published["mean"], published["sd"] or 0.0)
    fold_dots_plot(
        {name: [math.nan if v is None else v for v in values] for name, values in rows.items()},
        plots / "folds.png",
        metric_name=metric_label(main),
        published=row,
        ddof=summary["ddof"],
        chance=CHANCE.get(main),
    )
    caption = "Dots: folds. Bar and line: mean ± SD. Dotted: chance."
    plot = saved_plot("Folds", plots / "folds.png", caption, max_px=640)
    return Section("Results by fold", plots=(plot,), tables=(_fold_table(summary),))


def _fold_table(summary: Mapping[str, Any]) -> Table:
    """Table with the main metric of each fold beside the controls and the published row."""
    main, folds, published = summary["figure"], summary["folds"], summary.get("published")
    controls = _controls(summary)
    columns = {metric_label(main): [_value(fold["last"], main) for fold in folds]}
    columns |= {display_name(c): [_value((fold["controls"] or {}).get(c), main) for fold in folds] for c in controls}
    if summary.get("patients") and any(fold["patients"].get(main) != fold["last"].get(main) for fold in folds):
        name = f"{metric_label(main)} of patients ({summary['patients']['aggregate']} of their slides)"
        columns[name] = [_value(fold["patients"], main) for fold in folds]
    if any(fold.get("best_val") for fold in folds):
        best = "best epoch on val" + (" (optimistic)" if summary.get("optimistic_best_val") else "")
        columns[best] = [_value(fold.get("best_val"), main) for fold in folds]
    published_rows = []
    if published:
        cells = [f"published: {published['row']}", _plus_minus(published["mean"], published["sd"])]
        published_rows = [Row([*cells, *[""] * (len(columns) - 1)], "other")]
    caption = (
        f"SD with {'N − 1' if summary['ddof'] else 'N'} in the denominator, as in the published tables. Controls: the "
        f"same kind of head on the mean colour of each slide, and on the output of an untrained encoder, on the same "
        f"folds."
    )
    return _table(summary, columns, {}, published_rows, caption if controls else "")


def _other_metrics_section(summary: Mapping[str, Any]) -> Section:
    """Section with the other metrics, slide counts and leaks of each fold."""
    main, folds = summary["figure"], summary["folds"]
    known = dict.fromkeys(name for fold in folds for name in fold["last"])
    others = {metric_label(n): [_value(fold["last"], n) for fold in folds] for n in known if n not in (main, "loss")}
    splits = [split for split in ("train", "val", "test") if any(split in (f.get("slides") or {}) for f in folds)]
    counts = {f"slides, {split}": [(fold.get("slides") or {}).get(split) for fold in folds] for split in splits}
    counts["leaks"] = [sum((fold.get("leaks") or {}).values()) for fold in folds]
    caption = "Leaks: patients with slides in two splits of the fold."
    table = _table(summary, others, counts, [], caption)
    return Section("Other metrics, slides and leaks by fold", tables=(table,), folded="Show the table")


def _table(
    summary: Mapping[str, Any],
    metrics: Mapping[str, Sequence[float | None]],
    counts: Mapping[str, Sequence[int | None]],
    published_rows: Sequence[Row],
    caption: str,
) -> Table:
    """Table with a row per fold, then mean ± SD of `metrics` (not of `counts`), then the published rows."""
    rows = [
        Row(
            [
                str(fold["fold"]),
                *(number(values[i], 3) for values in metrics.values()),
                *("–" if values[i] is None else f"{values[i]:,}" for values in counts.values()),
            ]
        )
        for i, fold in enumerate(summary["folds"])
    ]
    if metrics:
        means = [_spread(values, summary["ddof"]) for values in metrics.values()]
        rows.append(Row(["mean ± SD", *means, *("" for _ in counts)], "strong"))
    columns = ("fold", *metrics, *counts)
    return Table(columns, [*rows, *published_rows], frozenset(range(1, len(columns))), caption, first_stays=True)


def _spread(values: Sequence[float | None], ddof: int) -> str:
    known = np.array([v for v in values if v is not None])
    if not len(known):
        return "–"
    return _plus_minus(float(known.mean()), float(known.std(ddof=ddof)) if len(known) > ddof else None)


def _pooled_section(summary: Mapping[str, Any]) -> Section:
    """Section with every metric pooled over folds, and its explanation."""
    pooled = {name: metric for name, metric in summary["pooled"].items() if metric is not None}
    known = dict.fromkeys([*pooled, *(name for fold in summary["folds"] for name in fold["last"])])
    points = [MEANINGS[name] for name in known if name in MEANINGS]
    if not pooled:
        return Section("Definitions of the metrics", points=points)
    rows = [
        Row([metric_label(name), number(metric["value"], 3), interval_range(metric.get("low"), metric.get("high"), 3)])
        for name, metric in pooled.items()
    ]
    text = (
        "Test slides pooled over folds; 95 % bootstrap intervals, resampled by patient. Outputs of different folds "
        "come from different models, so a pooled metric can be lower than the mean over folds."
    )
    if _evaluated(summary) == "val":
        text = text.replace("Test", "Validation", 1)
    table = Table(("", "pooled", "95 % interval"), rows, frozenset({1, 2}))
    return Section("Metrics pooled over folds", text=(text,), points=points, tables=(table,))


def _training_section(summary: Mapping[str, Any], plots: Path) -> list[Section]:
    """Section with the losses, where the folder has the folds' fold_<name>/history.csv."""
    from longvit.plots.classification import fold_losses_plot

    losses = {}
    for name in (str(fold["fold"]) for fold in summary["folds"]):
        path = plots.parent / f"fold_{name}" / "history.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                lines = list(csv.DictReader(file))
            columns = [column for column in (lines[0] if lines else ()) if column.endswith("_loss")]
            losses[name] = {column: [float(line[column] or "nan") for line in lines] for column in columns}
    if not losses:
        return []
    fold_losses_plot(losses, plots / "loss.png")
    caption = "Loss after each epoch. Thin lines: folds; thick line: mean."
    return [Section("Training", plots=(saved_plot("Loss", plots / "loss.png", caption, max_px=640),))]


def _settings_section(summary: Mapping[str, Any]) -> Section:
    """Section with assumptions, settings, versions and commit."""
    settings = summary.get("settings") or {}
    commit = (
        f"Commit {summary['commit']}." if summary.get("commit") else "Commit unknown (not run from a git checkout)."
    )
    versions = {name: summary[name] for name in ("longvit", "torch", "python") if summary.get(name)}
    points = [*summary.get("notes", ()), versions_line(versions), commit]
    files = "Files in this folder: crossval.json, predictions.csv, pictures/ (PNG and SVG)."
    return Section(
        "Settings and versions",
        points=[*points, files],
        tables=(settings_table(settings),) if settings else (),
        folded="Show settings and versions",
    )
