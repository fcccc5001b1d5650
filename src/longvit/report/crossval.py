"""The report of a cross-validation: mean ± SD beside the controls and the published row, every fold, every picture.

Made from files only, crossval.json and predictions.csv, so it can be made again anywhere.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longvit.report.labels import CHANCE, MEANINGS, counted, listed, metric_label, name_words
from longvit.report.page import MetricCard, Report, Row, Section, Table, number, write_report
from longvit.report.predictions import PredictedSlides, read_predicted
from longvit.report.sections import drawn, interval_words, sections_of, sure_words
from longvit.report.versions import versions_line
from longvit.report.worst_errors import mistakes_section


def crossval_report(
    summary: Mapping[str, Any], folder: str | Path, *, images: Mapping[str, Path] | None = None
) -> Path:
    """Writes `folder`/index.html and `folder`/pictures/*.png, *.svg; returns the path of the former.

    `summary` is what `folder`/crossval.json holds (a figure that is not defined is None):

    task, figure: name of the task and of its main figure. classes: their names. cell: a published cell or None.
    mean, sd, ddof: of the main figure over the folds.
    folds: fold; last (figure -> value, last epoch); best_val (the same for the epoch picked on val, or None); controls
        (name -> figure -> value); leaks (train_test, train_val, val_test -> patients in both); slides (split ->
        number).
    gap: control -> value, low, high of how far the model is ahead. pooled: figure -> the same, over all folds'
        evaluated slides; {} where outputs of different folds cannot be compared. published: row, mean, sd, or None.
    evaluated: test or val. optimistic_best_val: val is the evaluation set.
    settings, notes, commit, and the versions longvit, torch, python, as far as they are known.

    `folder`/predictions.csv: see `PredictedSlides`. `folder`/fold_<name>/history.csv: the losses, where they are there.
    `images`: slide_id -> a canvas or slide, for the largest errors.
    `InputError` for a table that cannot be read.
    """
    folder = Path(folder)
    predicted = read_predicted(folder / "predictions.csv", summary["classes"], _evaluated(summary))
    return write_report(crossval_content(summary, predicted, folder / "pictures", images), folder / "index.html")


def crossval_content(
    summary: Mapping[str, Any], predicted: PredictedSlides, plots: Path, images: Mapping[str, Path] | None = None
) -> Report:
    """What the report of a cross-validation says; `pictures` is the folder they are drawn into."""
    n = len(summary["folds"])
    slides, patients = (len(set(predicted.column(name))) for name in ("slide_id", "case_id"))
    where = f" on {summary['cell']}" if summary.get("cell") else ""
    asked = f" {listed(summary['classes'], 'or')}?" if predicted.is_classified else ""
    lead = (
        f"{counted(n, 'fold')}: {len(predicted):,} predictions of {counted(slides, 'slide')} of "
        f"{counted(patients, 'patient')}, each by a model that was trained on other slides. Figures are those of the "
        f"last epoch."
    )
    return Report(
        title=f"{summary['task'].capitalize()}:{asked} LongViT in {n}-fold cross-validation{where}",
        lead=(lead,),
        notes=crossval_warnings(summary, predicted),
        cards=_cards(summary),
        sections=(
            _fold_section(summary, plots),
            *sections_of(predicted, plots),
            _pooled_section(summary),
            *mistakes_section(predicted, images),
            *_training_section(summary, plots),
            _other_metrics_section(summary),
            _made_section(summary),
        ),
    )


def crossval_warnings(summary: Mapping[str, Any], predicted: PredictedSlides) -> list[str]:
    """What a reader must know before believing the number, in plain words."""
    main = summary["figure"]
    words, mean, chance = metric_label(main), summary["mean"], CHANCE.get(main)
    notes = []
    if lost := [str(fold["fold"]) for fold in summary["folds"] if _value(fold["last"], main) is None]:
        notes.append(
            f"No {words} in fold{'s' * (len(lost) > 1)} {listed(lost)} (slides of one class, or no event): the mean is "
            f"that of the other folds."
        )
    if leaking := _leaks(summary)[f"train_{_evaluated(summary)}"]:
        notes.append(
            f"Patients with slides both in training and among the evaluated ones: {leaking:,}, added over "
            f"{counted(len(summary['folds']), 'fold')}. The model has seen other slides of them, so the figures are "
            f"better than for new patients by an unknown amount."
        )
    pooled = summary["pooled"].get(main) or {}
    low, high = pooled.get("low"), pooled.get("high")
    if chance is not None and low is not None and high is not None and low <= chance <= high:
        interval = interval_words(low, high)
        notes.append(
            f"The 95 % interval of the {words} over all folds ({interval}) contains {chance}: guessing is not ruled "
            f"out."
        )
    for name, gap in _gaps(summary).items():
        control = name_words(name).removeprefix("control: ")
        if gap.mean <= 0:
            notes.append(
                f"The control {control} is as good as the model or better ({words} {gap.control:.3f} against "
                f"{mean:.3f}): these figures do not show that the trained encoder brought anything beyond it."
            )
        elif gap.low is not None and gap.low <= 0:
            notes.append(
                f"The model is ahead of the control {control} by {gap.mean:+.3f}, but the 95 % interval of that gap "
                f"({gap.interval}) contains 0: it may be chance."
            )
    times = len(predicted) / max(1, len(set(predicted.column("slide_id"))))
    if len(predicted.folds) > 1 and times > 1.001 and predicted.is_classified:
        notes.append(
            f"The folds' test sets overlap ({len(predicted):,} predictions of "
            f"{len(set(predicted.column('slide_id'))):,} slides): the folds are repeated splits, no partition, and "
            f"their SD understates how much the mean would move with other slides."
        )
    if summary.get("optimistic_best_val"):
        notes.append(
            "The column 'best epoch on val' is optimistic: these folds have no test set of their own, so the epoch was "
            "picked on the slides that it is evaluated on. Believe the last epoch."
        )
    return notes


@dataclass(frozen=True)
class _Gap:
    """The model's main figure less a control's, the mean over the folds that have both."""

    mean: float
    low: float | None
    """Its 95 % interval, where it is known."""
    high: float | None
    control: float
    """The control's mean."""
    ahead: int
    """Folds in which the model is the better one, of `folds`."""
    folds: int

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:+.3f} to {self.high:+.3f}".replace("-", "−")


def _gaps(summary: Mapping[str, Any]) -> dict[str, _Gap]:
    """Control -> gap; a control without a figure in any fold is absent."""
    main = summary["figure"]
    gaps = {}
    for name in _controls(summary):
        pairs = [(_value(f["last"], main), _value((f["controls"] or {}).get(name), main)) for f in summary["folds"]]
        both = np.array([(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None])
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
    """A figure, None where it is absent or not defined."""
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
    words = metric_label(main)
    pooled = summary["pooled"].get(main) or {}
    interval = sure_words(pooled.get("low"), pooled.get("high"))
    n = counted(len(summary["folds"]), "fold")
    more = f"mean ± SD of {n}" + (f"; all folds together: {interval}" if interval else "")
    cards = [MetricCard(words, number(mean, 3), more, "" if summary["sd"] is None else number(summary["sd"], 3))]
    for name, gap in _gaps(summary).items():
        against = name_words(name).removeprefix("control: ")
        more = f"{words} above the control (its mean: {gap.control:.3f}); ahead in {gap.ahead} of {gap.folds} folds"
        more += f"; 95 % interval {gap.interval}" if gap.interval else ""
        cards.append(MetricCard(f"over {against}", f"{gap.mean:+.3f}".replace("-", "−"), more))
    if published:
        more = f"{words} as published" + (
            "" if mean is None else f"; this run: {mean - published['mean']:+.3f}".replace("-", "−")
        )
        sd = "" if published["sd"] is None else number(published["sd"], 3)
        cards.append(MetricCard(f"published: {published['row']}", number(published["mean"], 3), more, sd))
    leaks = _leaks(summary)
    others = f"train and val {leaks['train_val']}, val and test {leaks['val_test']}; all folds added"
    if _evaluated(summary) == "test":
        cards.append(MetricCard("patients in train and test", f"{leaks['train_test']:,}", others))
    else:
        cards.append(MetricCard("patients in train and val", f"{leaks['train_val']:,}", "all folds added"))
    return cards


def _plus_minus(mean: float | None, sd: float | None) -> str:
    return number(mean, 3) + ("" if sd is None or mean is None else f" ± {sd:.3f}")


def _fold_section(summary: Mapping[str, Any], plots: Path) -> Section:
    """Each fold as dots and as a row, beside the controls and the published row."""
    from longvit.plots.classification import fold_dots_plot

    main, folds, published = summary["figure"], summary["folds"], summary.get("published")
    rows = {"LongViT": [_value(fold["last"], main) for fold in folds]}
    for name in _controls(summary):
        rows[name_words(name)] = [_value((fold["controls"] or {}).get(name), main) for fold in folds]
    row = None if published is None else (f"published: {published['row']}", published["mean"], published["sd"] or 0.0)
    fold_dots_plot(
        {name: [math.nan if v is None else v for v in values] for name, values in rows.items()},
        plots / "folds.png",
        metric_name=metric_label(main),
        published=row,
        ddof=summary["ddof"],
        chance=CHANCE.get(main),
    )
    caption = "A dot per fold; bar and line: mean ± SD; dotted: guessing."
    plot = drawn("Fold by fold", plots / "folds.png", caption, max_px=640)
    return Section("Fold by fold", plots=(plot,), tables=(_fold_table(summary),))


def _fold_table(summary: Mapping[str, Any]) -> Table:
    """The main figure beside the controls and the published row."""
    main, folds, published = summary["figure"], summary["folds"], summary.get("published")
    controls = _controls(summary)
    columns = {metric_label(main): [_value(fold["last"], main) for fold in folds]}
    columns |= {name_words(c): [_value((fold["controls"] or {}).get(c), main) for fold in folds] for c in controls}
    if any(fold.get("best_val") for fold in folds):
        best = "best epoch on val" + (" (optimistic)" if summary.get("optimistic_best_val") else "")
        columns[best] = [_value(fold.get("best_val"), main) for fold in folds]
    last = []
    if published:
        cells = [f"published: {published['row']}", _plus_minus(published["mean"], published["sd"])]
        last = [Row([*cells, *[""] * (len(columns) - 1)], "other")]
    caption = (
        f"SD with {'N − 1' if summary['ddof'] else 'N'} in the denominator, as in the published tables. Controls: the "
        f"same kind of head on the mean colour of each slide, and on the output of an untrained encoder, on the same "
        f"folds."
    )
    return _table(summary, columns, {}, last, caption if controls else "")


def _other_metrics_section(summary: Mapping[str, Any]) -> Section:
    """What else is known of each fold."""
    main, folds = summary["figure"], summary["folds"]
    known = dict.fromkeys(name for fold in folds for name in fold["last"])
    others = {metric_label(n): [_value(fold["last"], n) for fold in folds] for n in known if n not in (main, "loss")}
    splits = [split for split in ("train", "val", "test") if any(split in (f.get("slides") or {}) for f in folds)]
    counts = {f"slides, {split}": [(fold.get("slides") or {}).get(split) for fold in folds] for split in splits}
    counts["leaks"] = [sum((fold.get("leaks") or {}).values()) for fold in folds]
    caption = "Leaks: patients with slides in two splits of the fold."
    table = _table(summary, others, counts, [], caption)
    return Section("Other figures of each fold, slides, leaks", tables=(table,), folded="Show the table")


def _table(
    summary: Mapping[str, Any],
    metrics: Mapping[str, Sequence[float | None]],
    counts: Mapping[str, Sequence[int | None]],
    last: Sequence[Row],
    caption: str,
) -> Table:
    """A row per fold, then mean ± SD of `figures`; `counts` have neither."""
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
    return Table(columns, [*rows, *last], frozenset(range(1, len(columns))), caption, first_stays=True)


def _spread(values: Sequence[float | None], ddof: int) -> str:
    known = np.array([v for v in values if v is not None])
    if not len(known):
        return "–"
    return _plus_minus(float(known.mean()), float(known.std(ddof=ddof)) if len(known) > ddof else None)


def _pooled_section(summary: Mapping[str, Any]) -> Section:
    """Every figure over all folds' slides, with what it means."""
    pooled = {name: of for name, of in summary["pooled"].items() if of is not None}
    known = dict.fromkeys([*pooled, *(name for fold in summary["folds"] for name in fold["last"])])
    points = [MEANINGS[name] for name in known if name in MEANINGS]
    if not pooled:
        return Section("What the figures mean", points=points)
    rows = [
        Row([metric_label(name), number(of["value"], 3), interval_words(of.get("low"), of.get("high"), 3)])
        for name, of in pooled.items()
    ]
    text = (
        "The evaluated slides of all folds in one heap; the intervals come from drawing the patients anew, with all "
        "their slides. Outputs of different folds come from different models, so a figure here may be lower than the "
        "mean of the folds."
    )
    table = Table(("", "all folds", "95 % interval"), rows, frozenset({1, 2}))
    return Section("All folds together", text=(text,), points=points, tables=(table,))


def _training_section(summary: Mapping[str, Any], plots: Path) -> list[Section]:
    """How the loss fell, where the folds' runs lie beside the table: fold_<name>/history.csv."""
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
    caption = "The loss after every epoch; thin: each fold; thick: their mean."
    return [Section("Training", plots=(drawn("Loss", plots / "loss.png", caption, max_px=640),))]


def _made_section(summary: Mapping[str, Any]) -> Section:
    """Assumptions, settings, versions, commit."""
    rows = [Row([name, _text(value)]) for name, value in (summary.get("settings") or {}).items()]
    commit = (
        f"Commit {summary['commit']}." if summary.get("commit") else "No commit known (not run from a git checkout)."
    )
    versions = {name: summary[name] for name in ("longvit", "torch", "python") if summary.get(name)}
    points = [*summary.get("notes", ()), versions_line(versions), commit]
    files = "As files beside this one: crossval.json, predictions.csv, pictures/ (PNG and SVG)."
    return Section(
        "Settings and versions",
        points=[*points, files],
        tables=(Table(("setting", "value"), rows),) if rows else (),
        folded="How this was made",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
