"""Report of a fine-tuning run: metrics beside the controls, curves, patch contributions, predictions."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.errors import InputError
from longvit.metrics.classification import Interval
from longvit.report.contributions import contributions_section, examples_of
from longvit.report.labels import CHANCE, MEANINGS, counted, display_name, listed, metric_label
from longvit.report.page import (
    MetricCard,
    Report,
    ReportImage,
    Row,
    Section,
    Table,
    number,
    settings_table,
    thumbnail_of,
    write_report,
)
from longvit.report.predictions import PredictedSlides, read_predicted
from longvit.report.sections import interval_label, interval_range, problems_table, saved_plot, sections_of
from longvit.report.versions import versions_line
from longvit.report.worst_errors import worst_errors_section
from longvit.tasks.task import task_class

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.finetuning.run import FinetuneResult
    from longvit.finetuning.settings import FinetuneSettings

MAX_THUMBNAILS = 200
MAX_ROWS = 500
MAX_HEATMAP_SIDE_PX = 4096  # patch contributions take one forward pass: seconds up to this size, on a CPU too


def finetune_report(
    result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings, *, more: Sequence[Section] = ()
) -> Path:
    """Writes `index.html` into the run folder, with patch contributions of one or two slides and `more` sections."""
    return write_report(finetune_content(result, cohort, settings), result.folder / "index.html", more)


def finetune_content(result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings) -> Report:
    """Content of the report; a caller can add sections before writing it."""
    metrics = result.metrics
    training = metrics["training"]
    splits = list(metrics["splits"])
    main = "test" if "test" in splits else splits[-1]
    held_out = metrics["splits"][main]
    task = task_class(metrics["task"])
    predicted = read_predicted(result.predictions_csv, task.classes_of(metrics["classes"]), main)
    lines = _predictions(result)
    if predicted.is_classified:
        lines = sorted(lines, key=_confident_errors_first)
    examples = examples_of(predicted, lines, metrics["classes"])
    chosen = [example.slide_id for example in examples]
    shown = chosen if len(lines) > MAX_THUMBNAILS else [line["slide_id"] for line in lines]
    canvases = _canvases(shown, result, cohort, settings)
    lead = (
        f"{training['parameters'] / 1e6:.1f} million parameters, trained on {training['slides']} slides of "
        f"{training['patients']} patients for {training['epochs']} epochs, starting from {training['starts_from']}. "
        f"Metrics are computed on {held_out['slides']} slides of {held_out['patients']} other patients "
        f"({display_name(main)}).",
    )
    question = f"{listed(predicted.classes, 'or')}?" if predicted.is_classified else f"{metrics['task'].capitalize()}:"
    loss = saved_plot("Loss", result.loss_png, "Loss after each step and each epoch.", max_px=640)
    thumbnails = canvases if len(lines) <= MAX_THUMBNAILS else {}
    is_explained = task.outputs_are_classes or predicted.is_followed  # a class, or the risk
    return Report(
        title=f"{question} A LongViT fine-tuned on {Path(cohort.source).name}",
        lead=lead,
        notes=warnings_of(metrics, main),
        cards=_cards(metrics, main),
        sections=(
            Section("Metrics", tables=(_metrics_table(metrics),), points=_metric_points(metrics)),
            *sections_of(predicted, result.folder / "pictures", _interval(metrics, main)),
            Section("Training", plots=(loss,)),
            *contributions_section(result.model_dir, examples, canvases, result.folder),
            *(_deletion_sections(result, cohort, settings, predicted) if is_explained else []),
            *([] if predicted.is_classified else worst_errors_section(predicted, canvases)),
            _predictions_section(predicted.classes if predicted.is_classified else (), lines, thumbnails),
            *_problems_section(result),
            settings_section(settings, metrics["notes"], training["device"]),
        ),
    )


def _main_metric(metrics: dict[str, Any]) -> str:
    return str(metrics.get("figure", "auc"))


def _interval(metrics: dict[str, Any], split: str) -> Interval | None:
    low, high = metrics["splits"][split].get(f"{_main_metric(metrics)}_interval", (None, None))
    return None if low is None else Interval(low, high, 0)


def _metric_points(metrics: dict[str, Any]) -> list[str]:
    shown = {name for split in metrics["splits"].values() for name in split}
    return [
        *(text for name, text in MEANINGS.items() if name in shown),
        "95 % intervals: bootstrap, resampled by patient.",
        "Controls: the same kind of head on the same slides, trained on their mean colour or on the output of an "
        "untrained encoder. For a run that starts from pretrained weights, also on the output of these frozen weights "
        "(a linear probe).",
    ]


def warnings_of(metrics: dict[str, Any], main: str) -> list[str]:
    """Caveats of the report: a likely shortcut, leaks, wide intervals, good controls, skipped steps, lost slides."""
    held_out = metrics["splits"][main]
    name = _main_metric(metrics)
    label = metric_label(name)
    notes = [str(metrics["shortcut"])] if metrics.get("shortcut") else []
    if leaking := (metrics.get("leaks") or {}).get(f"train_{main}"):
        notes.append(
            f"{counted(leaking, 'patient')} with slides both in training and among the {display_name(main)} slides: "
            f"the metrics overestimate the performance on new patients by an unknown amount."
        )
    if held_out[name] is None:
        reasons = {"auc": "all of one class", "c_index": "too few, or all without an event"}
        why = reasons.get(name, "too few, or all alike")
        return [*notes, f"The {display_name(main)} slides are {why}: the {label} is not defined."]
    interval = _interval(metrics, main)
    if name in CHANCE and interval is not None and interval.low <= CHANCE[name] <= interval.high:
        notes.append(
            f"The interval of the {label} contains {CHANCE[name]}: with so few slides, guessing is not ruled out."
        )
    as_good = {control: splits[main][name] for control, splits in metrics["controls"].items() if main in splits}
    as_good = {control: value for control, value in as_good.items() if value is not None and value >= held_out[name]}
    if as_good:
        controls = listed(
            [f"{display_name(control).removeprefix('control: ')} ({value:.2f})" for control, value in as_good.items()]
        )
        notes.append(
            f"On the same slides, the {label} of {controls} is at least as high as the model's {held_out[name]:.2f}. "
            f"These metrics show no benefit of the trained model over {'it' if len(as_good) == 1 else 'them'}."
        )
    if skipped := metrics.get("training", {}).get("skipped_steps"):
        notes.append(f"{counted(len(skipped), 'step')} skipped because of NaN or infinity; the first: {skipped[0]}.")
    if metrics["left_out"]:
        lost = len(metrics["left_out"])
        notes.append(f"{counted(lost, 'slide')} could not be read and were excluded; see Problems.")
    return notes


def _cards(metrics: dict[str, Any], main: str) -> list[MetricCard]:
    held_out = metrics["splits"][main]
    name = _main_metric(metrics)
    label = metric_label(name)
    interval = _interval(metrics, main)
    interval_text = "" if interval is None else f"{interval_label(interval.low, interval.high)}, "
    cards = [
        MetricCard(
            f"{label}, {display_name(main)}", number(held_out[name]), f"{interval_text}{held_out['slides']} slides"
        )
    ]
    cards += [
        MetricCard(display_name(control), number(splits[main][name]), f"{label} on the same slides")
        for control, splits in metrics["controls"].items()
        if main in splits
    ]
    others = ("balanced_accuracy", "uno_c_index", "mae")
    second = next((other for other in _metric_names(metrics) if other in others), None)
    return [
        *cards,
        *([MetricCard(metric_label(second), number(held_out[second]), display_name(main))] if second else []),
        *_optimism_card(metrics, label),
    ]


def _optimism_card(metrics: dict[str, Any], label: str) -> list[MetricCard]:
    """Card with the optimism of choosing the epoch on the reported split; none in runs of older versions."""
    if (optimism := metrics.get("epoch_optimism")) is None:
        return []
    more = (
        f"{label} of the best epoch on {display_name(optimism['split'])} ({optimism['epoch']}: "
        f"{number(optimism['best'])}) minus that of the last ({number(optimism['last'])}); in no other metric"
    )
    return [MetricCard("optimism of choosing the epoch", number(optimism["value"], 3), more)]


def _metric_names(metrics: dict[str, Any]) -> list[str]:
    """Names of the metrics, the main one first, without counts, intervals and loss."""
    main = _main_metric(metrics)
    known = dict.fromkeys(name for split in metrics["splits"].values() for name in split)
    counts = ("slides", "patients", "loss", main)
    return [main, *(name for name in known if name not in counts and not name.endswith("_interval"))]


def _metrics_table(metrics: dict[str, Any]) -> Table:
    main, *others = _metric_names(metrics)
    columns = ("", "slides or patients", metric_label(main), "95 % interval", *(metric_label(name) for name in others))
    rows = []
    for split, held_out in metrics["splits"].items():
        interval = _interval(metrics, split)
        cells = [
            str(held_out["slides"]),
            number(held_out[main]),
            "" if interval is None else interval_range(interval.low, interval.high),
            *(number(held_out.get(name)) for name in others),
        ]
        rows.append(Row([f"LongViT, {display_name(split)}", *cells], "strong"))
        if (patients := metrics.get("patients", {}).get(split)) and patients["patients"] < held_out["slides"]:
            low, high = patients[f"{main}_interval"]
            cells = [str(patients["patients"]), number(patients[main]), interval_range(low, high)]
            cells += [number(patients.get(name)) for name in others]
            name = f"LongViT, {display_name(split)}, patients ({patients['aggregate']} of their slides)"
            rows.append(Row([name, *cells], "strong"))
        for name, splits in metrics["controls"].items():
            if split in splits:
                control = splits[split]
                cells = [number(control[main]), "", *(number(control.get(other)) for other in others)]
                rows.append(Row([f"{display_name(name)}, {display_name(split)}", str(held_out["slides"]), *cells]))
    best = metrics["best_val"]
    label = metric_label(main)
    caption = (
        ""
        if best is None
        else f"Metrics of the last epoch. The epoch with the best validation {label} was {best['epoch']}"
        + (f" (test {label} {number(best['test'].get(main))})." if "test" in best else ".")
    )
    return Table(columns, rows, frozenset(range(1, len(columns))), caption, first_stays=True)


def _predictions(result: FinetuneResult) -> list[dict[str, str]]:
    with result.predictions_csv.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _confident_errors_first(line: dict[str, str]) -> tuple[float, str]:
    return float(line[f"prob_{line['label']}"]), line["slide_id"]


def _canvases(
    slide_ids: Collection[str], result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings
) -> dict[str, Path]:
    """slide_id -> canvas file; empty where canvases are too large to be shown."""
    from longvit.annotations.area_file import find_area_file
    from longvit.data.canvas_cache import canvas_path
    from longvit.slides.reader import open_slide

    if settings.side_px > MAX_HEATMAP_SIDE_PX:
        return {}
    folder = settings.cache_dir or result.folder / "canvases"
    canvas_settings = settings.canvas()
    paths = {}
    for row in cohort.rows:
        if row.slide_id in slide_ids:
            with suppress(InputError), open_slide(row.path) as slide:  # the file may have been removed since
                area_file = find_area_file(settings, row.slide_id)
                identity = slide.identity()
                paths[row.slide_id] = canvas_path(row.slide_id, row.path, identity, canvas_settings, folder, area_file)
    return {slide_id: path for slide_id, path in paths.items() if path.exists()}


def _deletion_sections(
    result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings, predicted: PredictedSlides
) -> list[Section]:
    """Deletion test of some held-out slides, or one sentence where it would take long."""
    from longvit.model.pretrained import load_model
    from longvit.report.deletion import deletion_section, slides_to_test

    if not (predicted.is_classified or predicted.is_followed):
        return []
    if settings.deletion_slides == 0 or settings.side_px > MAX_HEATMAP_SIDE_PX:
        return []
    model = load_model(result.model_dir)
    names = slides_to_test(
        [line["slide_id"] for line in predicted.lines],
        settings.deletion_slides,
        parameters=result.metrics["training"]["parameters"],
        patches=(settings.side_px // model.config.patch_px) ** 2,
    )
    if not names:
        text = "Not run, since it would take more than a few seconds: longvit train … --deletion-slides 8 runs it."
        return [Section("Deletion test", text=(text,))]
    canvases = _canvases(names, result, cohort, settings)
    patients = {line["slide_id"]: line["case_id"] for line in predicted.lines}
    return deletion_section(model, canvases, patients, result.folder / "pictures")


def _predictions_section(classes: Sequence[str], lines: Sequence[dict[str, str]], canvases: dict[str, Path]) -> Section:
    """Section with all predictions; with classes, errors are shaded and the most confident ones come first."""
    names = {"slide_id": "slide", "case_id": "patient", "split": "split"}
    names |= {name: name.replace("_", " ") for name in (lines[0] if lines else ()) if name not in names}
    if classes:
        names = {name: label for name, label in names.items() if not name.startswith("prob_")}
        names |= {f"prob_{name}": f"p({name})" for name in classes}
    texts = ("slide_id", "case_id", "split", "label", "prediction")
    rows = []
    for line in lines[:MAX_ROWS]:
        cells: list[str | ReportImage] = [line[name] if name in texts else _rounded(line[name]) for name in names]
        if canvases:
            path = canvases.get(line["slide_id"])
            cells.insert(0, thumbnail(path, line["slide_id"]) if path else "")
        rows.append(Row(cells, "wrong" if classes and line["label"] != line["prediction"] else ""))
    columns = [*(["canvas"] if canvases else []), *names.values()]
    text = "Also in predictions.csv."
    if classes:
        wrong = sum(line["label"] != line["prediction"] for line in lines)
        text = f"Wrong: {wrong} of {len(lines)} (shaded), the most confident errors first. {text}"
    if len(lines) > MAX_ROWS:
        text += f" The first {MAX_ROWS} rows are shown."
    numbers = frozenset(i + bool(canvases) for i, name in enumerate(names) if name not in texts)
    return Section("Predictions", text=(text,), tables=(Table(columns, rows, numbers),))


def _rounded(text: str) -> str:
    """Decimal fraction rounded to three decimals; any other text unchanged."""
    try:
        return f"{float(text):.3f}" if "." in text or "e-" in text else text
    except ValueError:
        return text


def _problems_section(result: FinetuneResult) -> list[Section]:
    if not result.problems:
        return []
    left_out = sum(problem.is_left_out for problem in result.problems)
    text = (
        f"{counted(left_out, 'slide')} excluded (stages open and read). At stage tiles, missing tiles were filled with "
        f"background."
    )
    return [Section("Problems", text=(text,), tables=(problems_table(result.problems),))]


def settings_section(settings: FinetuneSettings, notes: Sequence[str], device: str) -> Section:
    """Section with assumptions, settings and versions."""
    from dataclasses import fields

    points = [*notes, f"Computed on {device}.", versions_line()]
    values = {field.name: str(getattr(settings, field.name)) for field in fields(settings)}
    table = settings_table(values, "Also in settings.yaml; repeat with longvit train --recipe settings.yaml")
    return Section("Settings and versions", points=points, tables=(table,), folded="Show settings and versions")


def thumbnail(canvas_path: Path, title: str) -> ReportImage:
    """Thumbnail of a canvas file."""
    from longvit.data.canvas_cache import read_pixels

    return thumbnail_of(read_pixels(canvas_path), title)
