"""The report of a fine-tuning run: figures beside the controls, curves, what each patch contributes, predictions."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.errors import InputError
from longvit.metrics.classification import Interval
from longvit.report.labels import CHANCE, MEANINGS, counted, listed, metric_label, name_words
from longvit.report.page import MetricCard, Report, ReportImage, Row, Section, Table, number, thumbnail_of, write_report
from longvit.report.predictions import read_predicted
from longvit.report.sections import drawn, interval_words, sections_of, sure_words
from longvit.report.versions import versions_line
from longvit.report.worst_errors import mistakes_section

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.finetuning.run import FinetuneResult
    from longvit.tasks.settings import FinetuneSettings

MAX_THUMBNAILS = 200
MAX_ROWS = 500
MAX_HEATMAP_SIDE_PX = 4096  # what each patch contributes is one forward pass: seconds up to here, on a CPU too


def finetune_report(result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings) -> Path:
    """Writes `index.html` into the run's folder, with what each patch contributes on one or two slides."""
    return write_report(finetune_content(result, cohort, settings), result.folder / "index.html")


def finetune_content(result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings) -> Report:
    """What the report of a fine-tuning run says; the sections can be added to before it is written."""
    metrics = result.metrics
    training = metrics["training"]
    splits = list(metrics["splits"])
    main = "test" if "test" in splits else splits[-1]
    held_out = metrics["splits"][main]
    predicted = read_predicted(result.predictions_csv, metrics["classes"], main)
    lines = _predictions(result)
    if predicted.is_classified:
        lines = sorted(lines, key=_surest_mistake_first)
    telling = _telling(lines) if predicted.is_classified else {}
    pictured = telling if len(lines) > MAX_THUMBNAILS else [line["slide_id"] for line in lines]
    canvases = _canvases(pictured, result, cohort, settings)
    lead = (
        f"{training['parameters'] / 1e6:.1f} million parameters, trained on {training['slides']} slides of "
        f"{training['patients']} patients for {training['epochs']} epochs from {training['starts_from']}; the figures "
        f"are those of {held_out['slides']} slides of {held_out['patients']} other patients ({name_words(main)}).",
    )
    question = f"{listed(metrics['classes'], 'or')}?" if predicted.is_classified else f"{metrics['task'].capitalize()}:"
    loss = drawn("Loss", result.loss_png, "The loss after every step and every epoch.", max_px=640)
    thumbnails = canvases if len(lines) <= MAX_THUMBNAILS else {}
    return Report(
        title=f"{question} A LongViT fine-tuned on {Path(cohort.source).name}",
        lead=lead,
        notes=warnings_of(metrics, main),
        cards=_cards(metrics, main),
        sections=(
            Section("Figures", tables=(_metrics_table(metrics),), points=_metric_points(metrics)),
            *sections_of(predicted, result.folder / "pictures", _interval(metrics, main)),
            Section("Training", plots=(loss,)),
            *_contributions_section(result, lines, telling, canvases),
            *([] if predicted.is_classified else mistakes_section(predicted, canvases)),
            _predictions_section(metrics["classes"] if predicted.is_classified else (), lines, thumbnails),
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
    shown = {name for of in metrics["splits"].values() for name in of}
    return [
        *(text for name, text in MEANINGS.items() if name in shown),
        "The 95 % interval comes from drawing the patients anew.",
        "The controls see the same slides: the same kind of head on the mean colour of each slide, on the output of an "
        "untrained encoder, and, where the run starts from weights, on the output of these as they were (a linear "
        "probe).",
    ]


def warnings_of(metrics: dict[str, Any], main: str) -> list[str]:
    """What a reader must know before believing the number."""
    held_out = metrics["splits"][main]
    name = _main_metric(metrics)
    words = metric_label(name)
    notes = []
    if leaking := (metrics.get("leaks") or {}).get(f"train_{main}"):
        notes.append(
            f"{counted(leaking, 'patient')} with slides both in training and among the {name_words(main)} slides: the "
            f"figures are better than for new patients by an unknown amount."
        )
    if held_out[name] is None:
        why = "all of one class" if name == "auc" else "too few, or all without an event"
        return [*notes, f"The {name_words(main)} slides are {why}: no {words} can be stated."]
    interval = _interval(metrics, main)
    if name in CHANCE and interval is not None and interval.low <= CHANCE[name] <= interval.high:
        notes.append(f"The interval of the {words} contains 0.5: with so few slides, guessing is not ruled out.")
    as_good = {control: of[main][name] for control, of in metrics["controls"].items() if main in of}
    as_good = {control: value for control, value in as_good.items() if value is not None and value >= held_out[name]}
    if as_good:
        controls = listed(
            [f"{name_words(control).removeprefix('control: ')} ({value:.2f})" for control, value in as_good.items()]
        )
        notes.append(
            f"On the same slides the {words} of {controls} is no less than the model's {held_out[name]:.2f}: these "
            f"figures do not show that training the model brought more than that."
        )
    if skipped := metrics.get("training", {}).get("skipped_steps"):
        notes.append(f"{counted(len(skipped), 'step')} skipped for a NaN or an infinity; the first: {skipped[0]}.")
    if metrics["left_out"]:
        lost = len(metrics["left_out"])
        notes.append(f"{counted(lost, 'slide')} could not be read and count nowhere; see Problems.")
    return notes


def _cards(metrics: dict[str, Any], main: str) -> list[MetricCard]:
    held_out = metrics["splits"][main]
    name = _main_metric(metrics)
    words = metric_label(name)
    interval = _interval(metrics, main)
    sure = "" if interval is None else f"{sure_words(interval.low, interval.high)}, "
    cards = [MetricCard(f"{words}, {name_words(main)}", number(held_out[name]), f"{sure}{held_out['slides']} slides")]
    cards += [
        MetricCard(name_words(control), number(of[main][name]), f"{words} on the same slides")
        for control, of in metrics["controls"].items()
        if main in of
    ]
    second = next((other for other in _metric_names(metrics) if other in ("balanced_accuracy", "uno_c_index")), None)
    return [
        *cards,
        *([MetricCard(metric_label(second), number(held_out[second]), name_words(main))] if second else []),
    ]


def _metric_names(metrics: dict[str, Any]) -> list[str]:
    """The main figure, then the others, without counts, intervals and loss."""
    main = _main_metric(metrics)
    known = dict.fromkeys(name for of in metrics["splits"].values() for name in of)
    counts = ("slides", "patients", "loss", main)
    return [main, *(name for name in known if name not in counts and not name.endswith("_interval"))]


def _metrics_table(metrics: dict[str, Any]) -> Table:
    main, *others = _metric_names(metrics)
    columns = ("", "slides", metric_label(main), "95 % interval", *(metric_label(name) for name in others))
    rows = []
    for split, held_out in metrics["splits"].items():
        interval = _interval(metrics, split)
        sure = "" if interval is None else interval_words(interval.low, interval.high)
        cells = [
            str(held_out["slides"]),
            number(held_out[main]),
            sure,
            *(number(held_out.get(name)) for name in others),
        ]
        rows.append(Row([f"LongViT, {name_words(split)}", *cells], "strong"))
        for name, of in metrics["controls"].items():
            if split in of:
                cells = [number(of[split][main]), "", *(number(of[split].get(other)) for other in others)]
                rows.append(Row([f"{name_words(name)}, {name_words(split)}", str(held_out["slides"]), *cells]))
    best = metrics["best_val"]
    words = metric_label(main)
    caption = (
        ""
        if best is None
        else f"All figures are those of the last epoch. By validation {words}, epoch {best['epoch']} was the best"
        + (f" (test {words} {number(best['test'].get(main))})." if "test" in best else ".")
    )
    return Table(columns, rows, frozenset(range(1, len(columns))), caption, first_stays=True)


def _predictions(result: FinetuneResult) -> list[dict[str, str]]:
    with result.predictions_csv.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _surest_mistake_first(line: dict[str, str]) -> tuple[float, str]:
    return float(line[f"prob_{line['label']}"]), line["slide_id"]


def _telling(lines: Sequence[dict[str, str]]) -> dict[str, str]:
    """slide_id -> why it is worth a look: the surest right prediction and the surest mistake."""
    right = [line["slide_id"] for line in lines if line["label"] == line["prediction"]]
    wrong = [line["slide_id"] for line in lines if line["label"] != line["prediction"]]
    return {
        **dict.fromkeys(right[-1:], "the surest right prediction"),
        **dict.fromkeys(wrong[:1], "the surest mistake"),
    }


def _canvases(
    slide_ids: Collection[str], result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings
) -> dict[str, Path]:
    """slide_id -> canvas file; empty where looking at one would take long."""
    from longvit.data.canvas_cache import CanvasSettings, canvas_name
    from longvit.slides.reader import open_slide

    if settings.side_px > MAX_HEATMAP_SIDE_PX:
        return {}
    folder = settings.cache_dir or result.folder / "canvases"
    made = CanvasSettings(settings.side_px, settings.fit, settings.reader, settings.max_bad_tiles)
    paths = {}
    for row in cohort.rows:
        if row.slide_id in slide_ids:
            with suppress(InputError), open_slide(row.path) as slide:  # it may be gone since
                paths[row.slide_id] = folder / canvas_name(row.slide_id, slide.identity(), made)
    return {slide_id: path for slide_id, path in paths.items() if path.exists()}


def _contributions_section(
    result: FinetuneResult, lines: Sequence[dict[str, str]], telling: dict[str, str], canvases: dict[str, Path]
) -> list[Section]:
    """The telling slides, patch by patch; their pictures also lie in the run's folder."""
    from longvit.interpret import class_contributions, draw
    from longvit.model.pretrained import load_model
    from longvit.slides.canvas import read_canvas

    shown = [line for line in reversed(lines) if line["slide_id"] in telling and line["slide_id"] in canvases]
    if not shown:
        return []
    model = load_model(result.model_dir)
    plots = []
    for line in shown:
        name = line["slide_id"]
        canvas = read_canvas(canvases[name])
        contributions = class_contributions(model, canvas, result.metrics["classes"].index(line["prediction"]))
        path = result.folder / f"contributions_{canvases[name].stem}.png"
        draw(canvas, contributions, path, title=f"{name}: predicted {line['prediction']}, labelled {line['label']}")
        plots.append(ReportImage(f"{name}, {telling[name]}", path.read_bytes()))
    return [Section("What each patch contributes", text=CONTRIBUTIONS_TEXT, plots=plots)]


def _predictions_section(classes: Sequence[str], lines: Sequence[dict[str, str]], canvases: dict[str, Path]) -> Section:
    """Every prediction; with classes, the surest mistakes first and the mistakes shaded."""
    names = {"slide_id": "slide", "case_id": "patient", "split": "split"}
    names |= {name: name.replace("_", " ") for name in (lines[0] if lines else ()) if name not in names}
    if classes:
        names = {name: words for name, words in names.items() if not name.startswith("prob_")}
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
    text = "As a table: predictions.csv."
    if classes:
        wrong = sum(line["label"] != line["prediction"] for line in lines)
        text = f"{wrong} of {len(lines)} are wrong (shaded); the surest mistakes come first. {text}"
    if len(lines) > MAX_ROWS:
        text += f" The first {MAX_ROWS} are shown."
    numbers = frozenset(i + bool(canvases) for i, name in enumerate(names) if name not in texts)
    return Section("Predictions", text=(text,), tables=(Table(columns, rows, numbers),))


def _rounded(text: str) -> str:
    """Three decimals of a decimal fraction, of which the table has nine digits; whatever else as it is."""
    try:
        return f"{float(text):.3f}" if "." in text or "e-" in text else text
    except ValueError:
        return text


CONTRIBUTIONS_TEXT = (
    "The model's score is an exact sum over the patches, plus a constant: red patches raise it, blue ones lower it. A "
    "patch has seen the others through attention, so its share is what its position brings to the sum, not what would "
    "change if it were cut out.",
)


def _problems_section(result: FinetuneResult) -> list[Section]:
    if not result.problems:
        return []
    rows = [Row([problem.slide, problem.stage, problem.error]) for problem in result.problems]
    left_out = sum(problem.is_left_out for problem in result.problems)
    text = f"{left_out} slides were left out (stages open and read); at stage tiles, holes were filled with background."
    return [Section("Problems", text=(text,), tables=(Table(("slide", "stage", "what"), rows),))]


def settings_section(settings: FinetuneSettings, notes: Sequence[str], device: str) -> Section:
    """How it was made: assumptions, settings, versions."""
    from dataclasses import fields

    rows = [Row([field.name, str(getattr(settings, field.name))]) for field in fields(settings)]
    points = [
        *notes,
        f"Computed on {device}.",
        versions_line(),
    ]
    table = Table(("setting", "value"), rows, caption="As YAML in settings.yaml: longvit train --recipe settings.yaml")
    return Section("Settings and versions", points=points, tables=(table,), folded="How this was made")


def thumbnail(canvas_path: Path, title: str) -> ReportImage:
    """A canvas as a small JPEG."""
    from longvit.data.canvas_cache import read_pixels

    return thumbnail_of(read_pixels(canvas_path), title)
