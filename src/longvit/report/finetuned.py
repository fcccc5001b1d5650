"""The report of a fine-tuning run: figures beside the controls, curves, what each patch contributes, predictions."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit import __version__
from longvit.errors import InputError
from longvit.report.page import Figure, Picture, Report, Row, Section, Table, number, thumbnail_of, write_report

if TYPE_CHECKING:
    from longvit.data.cohort import Cohort
    from longvit.tasks.finetune import FinetuneResult
    from longvit.tasks.settings import FinetuneSettings

MAX_THUMBNAILS = 200
MAX_ROWS = 500
MAX_PICTURE_SIDE_PX = 4096  # what each patch contributes is one forward pass: seconds up to here, on a CPU too

_NAMES = {
    "mean_colour": "control: mean colour",
    "random_encoder": "control: random frozen encoder",
    "val": "validation",
    "test": "test",
}


def finetune_report(result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings) -> Path:
    """Writes `index.html` into the run's folder, with what each patch contributes on one or two slides."""
    return write_report(finetune_content(result, cohort, settings), result.folder / "index.html")


def finetune_content(result: FinetuneResult, cohort: Cohort, settings: FinetuneSettings) -> Report:
    """What the report of a fine-tuning run says; the sections can be added to before it is written."""
    metrics = result.metrics
    training = metrics["training"]
    splits = list(metrics["splits"])
    main = "test" if "test" in splits else splits[-1]
    figures = metrics["splits"][main]
    lines = sorted(_predictions(result), key=_surest_mistake_first)
    telling = _telling(lines)
    pictured = telling if len(lines) > MAX_THUMBNAILS else [line["slide_id"] for line in lines]
    canvases = _canvases(pictured, result, cohort, settings)
    lead = (
        f"{training['parameters'] / 1e6:.1f} million parameters, trained on {training['slides']} slides of "
        f"{training['patients']} patients for {training['epochs']} epochs from {training['starts_from']}; the figures "
        f"are those of {figures['slides']} slides of {figures['patients']} other patients ({_NAMES[main]}).",
    )
    return Report(
        title=f"{' or '.join(metrics['classes'])}? A LongViT fine-tuned on {Path(cohort.source).name}",
        lead=lead,
        notes=warnings_of(metrics, main),
        figures=_cards(metrics, main),
        sections=(
            Section("Figures", tables=(_figures_table(metrics),), text=_FIGURES_TEXT),
            Section(
                "Curves",
                side_by_side=True,
                pictures=(
                    Picture("ROC", result.roc_png.read_bytes(), "Sensitivity against 1 − specificity; dotted: chance."),
                    Picture("Loss", result.loss_png.read_bytes(), "Cross-entropy after every step and every epoch."),
                ),
            ),
            *_contributions_section(result, lines, telling, canvases),
            _predictions_section(metrics["classes"], lines, canvases if len(lines) <= MAX_THUMBNAILS else {}),
            *_problems_section(result),
            settings_section(settings, metrics["notes"], training["device"]),
        ),
    )


_FIGURES_TEXT = (
    "AUC: the chance that a slide of the second class gets a higher score than one of the first (with more classes: "
    "the mean of each class against the rest); 0.5 is guessing. Its 95 % interval comes from drawing the patients "
    "anew. Balanced accuracy is the mean of the classes' shares that were recognised. The controls see the same "
    "slides: a logistic regression on the mean colour of each slide, and on the output of an untrained encoder.",
)


def warnings_of(metrics: dict[str, Any], main: str) -> list[str]:
    """What a reader must know before believing the number."""
    figures = metrics["splits"][main]
    notes = []
    if figures["auc"] is None:
        return [f"The {_NAMES[main]} slides are all of one class: no AUC can be stated."]
    low, high = figures["auc_interval"]
    if low is not None and low <= 0.5 <= high:
        notes.append("The interval of the AUC contains 0.5: with so few slides, guessing is not ruled out.")
    as_good = {name: of[main]["auc"] for name, of in metrics["controls"].items() if main in of}
    as_good = {name: auc for name, auc in as_good.items() if auc is not None and auc >= figures["auc"]}
    if as_good:
        controls = " and ".join(
            f"{_NAMES[name].removeprefix('control: ')} ({auc:.2f})" for name, auc in as_good.items()
        )
        notes.append(
            f"On the same slides the AUC of {controls} is no less than the model's {figures['auc']:.2f}: these figures "
            f"do not show that training the model brought more than that."
        )
    if metrics["left_out"]:
        lost = len(metrics["left_out"])
        notes.append(f"{lost} slide{'s' * (lost > 1)} could not be read and count nowhere; see Problems.")
    return notes


def _cards(metrics: dict[str, Any], main: str) -> list[Figure]:
    figures = metrics["splits"][main]
    low, high = figures["auc_interval"]
    interval = "" if low is None else f"95 % interval {low:.2f}–{high:.2f}, "
    cards = [Figure(f"AUC, {_NAMES[main]}", number(figures["auc"]), f"{interval}{figures['slides']} slides")]
    cards += [
        Figure(_NAMES[name], number(of[main]["auc"]), "AUC on the same slides")
        for name, of in metrics["controls"].items()
        if main in of
    ]
    return [*cards, Figure("balanced accuracy", number(figures["balanced_accuracy"]), _NAMES[main])]


def _figures_table(metrics: dict[str, Any]) -> Table:
    columns = ("", "slides", "AUC", "95 % interval", "balanced accuracy", "accuracy", "F1")
    rows = []
    for split, figures in metrics["splits"].items():
        low, high = figures["auc_interval"]
        interval = "" if low is None else f"{low:.2f}–{high:.2f}"
        rows.append(
            Row(
                [
                    f"LongViT, {_NAMES[split]}",
                    str(figures["slides"]),
                    number(figures["auc"]),
                    interval,
                    *(number(figures[key]) for key in ("balanced_accuracy", "accuracy", "f1")),
                ],
                "strong",
            )
        )
        for name, of in metrics["controls"].items():
            if split in of:
                cells = [number(of[split][key]) for key in ("balanced_accuracy", "accuracy", "f1")]
                label = f"{_NAMES[name]}, {_NAMES[split]}"
                rows.append(Row([label, str(figures["slides"]), number(of[split]["auc"]), "", *cells]))
    best = metrics["best_val"]
    caption = (
        ""
        if best is None
        else f"All figures are those of the last epoch. By validation AUC, epoch {best['epoch']} was the best"
        + (f" (test AUC {number(best['test'].get('auc'))})." if "test" in best else ".")
    )
    return Table(columns, rows, frozenset(range(1, len(columns))), caption)


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

    if settings.side_px > MAX_PICTURE_SIDE_PX:
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
    pictures = []
    for line in shown:
        name = line["slide_id"]
        canvas = read_canvas(canvases[name])
        contributions = class_contributions(model, canvas, result.metrics["classes"].index(line["prediction"]))
        path = result.folder / f"contributions_{canvases[name].stem}.png"
        draw(canvas, contributions, path, title=f"{name}: predicted {line['prediction']}, labelled {line['label']}")
        pictures.append(Picture(f"{name}, {telling[name]}", path.read_bytes()))
    return [Section("What each patch contributes", text=CONTRIBUTIONS_TEXT, pictures=pictures)]


def _predictions_section(classes: Sequence[str], lines: Sequence[dict[str, str]], canvases: dict[str, Path]) -> Section:
    columns = ["slide", "patient", "split", "label", "prediction", *(f"p({name})" for name in classes)]
    rows = []
    for line in lines[:MAX_ROWS]:
        cells: list[str | Picture] = [line[key] for key in ("slide_id", "case_id", "split", "label", "prediction")]
        cells += [f"{float(line[f'prob_{name}']):.3f}" for name in classes]
        if canvases:
            path = canvases.get(line["slide_id"])
            cells.insert(0, thumbnail(path, line["slide_id"]) if path else "")
        rows.append(Row(cells, "" if line["label"] == line["prediction"] else "wrong"))
    if canvases:
        columns.insert(0, "canvas")
    wrong = sum(line["label"] != line["prediction"] for line in lines)
    text = f"{wrong} of {len(lines)} are wrong (shaded); the surest mistakes come first. As a table: predictions.csv."
    if len(lines) > MAX_ROWS:
        text += f" The first {MAX_ROWS} are shown."
    first = len(columns) - len(classes)
    return Section("Predictions", text=(text,), tables=(Table(columns, rows, frozenset(range(first, len(columns)))),))


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
    import platform
    from dataclasses import fields
    from importlib import metadata

    rows = [Row([field.name, str(getattr(settings, field.name))]) for field in fields(settings)]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "tifffile", "openslide-bin"))
    points = [
        *notes,
        f"Computed on {device}.",
        f"longvit {__version__}, Python {platform.python_version()}, {packages}.",
    ]
    table = Table(("setting", "value"), rows, caption="As YAML in settings.yaml: longvit train --recipe settings.yaml")
    return Section("Settings and versions", points=points, tables=(table,), folded="How this was made")


def thumbnail(canvas_path: Path, title: str) -> Picture:
    """A canvas as a small JPEG."""
    from longvit.data.canvas_cache import read_pixels

    return thumbnail_of(read_pixels(canvas_path), title)
