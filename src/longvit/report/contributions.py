"""Report section with the patch contributions of one or two slides: the best and the worst prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvit.report.page import ReportImage, Section
from longvit.report.predictions import PredictedSlides

TEXT = (
    "The model's score is an exact sum over the patches, plus a constant: red patches raise it, blue patches lower it. "
    "Each patch token has attended to the others. Its contribution is its term of the sum, not the change of the score "
    "if the patch were removed; the deletion test measures that change.",
)
"""Explanation of a plot of patch contributions."""


@dataclass(frozen=True)
class Example:
    """Slide whose contributions are shown."""

    slide_id: str
    description: str
    title: str
    output: int | None
    """Number of the output that is decomposed; None: that which the task shows."""


def examples_of(
    predicted: PredictedSlides, lines: Sequence[Mapping[str, str]], outputs: Sequence[str]
) -> list[Example]:
    """At most two slides. Classes and grades: the most confident correct prediction, and the most confident error.

    Numbers: the nearest and the farthest prediction. Several labels: the most confident correct and wrong label.
    `lines`: rows of the predictions, of classes with the most confident errors first. `outputs`: names of the model's
    outputs. None of survival.
    """
    if predicted.is_classified:
        return _of_classes(lines, outputs)
    if predicted.is_measured:
        return _of_numbers(predicted)
    return _of_labels(predicted) if predicted.label_columns else []


def contributions_section(
    model_dir: Path, examples: Sequence[Example], canvases: Mapping[str, Path], folder: Path
) -> list[Section]:
    """Section with the plots, which are also written to `folder`; none without a canvas."""
    from longvit.interpret import draw, predicted_contributions
    from longvit.model.pretrained import load_model
    from longvit.slides.canvas import read_canvas

    shown = [example for example in examples if example.slide_id in canvases]
    if not shown:
        return []
    model = load_model(model_dir)
    images = []
    for example in shown:
        canvas = read_canvas(canvases[example.slide_id])
        contributions = predicted_contributions(model, canvas, example.output)
        path = folder / f"contributions_{canvases[example.slide_id].stem}.png"
        draw(canvas, contributions, path, title=example.title)
        images.append(ReportImage(f"{example.slide_id}, {example.description}", path.read_bytes()))
    return [Section("Patch contributions", text=TEXT, plots=images)]


def _of_classes(lines: Sequence[Mapping[str, str]], outputs: Sequence[str]) -> list[Example]:
    right = [line for line in lines if line["label"] == line["prediction"]]
    wrong = [line for line in lines if line["label"] != line["prediction"]]
    chosen = [
        *((line, "the most confident correct prediction") for line in right[-1:]),
        *((line, "the most confident error") for line in wrong[:1]),
    ]
    return [
        Example(
            line["slide_id"],
            description,
            f"{line['slide_id']}: predicted {line['prediction']}, labelled {line['label']}",
            outputs.index(line["prediction"]) if line["prediction"] in outputs else None,
        )
        for line, description in chosen
    ]


def _of_numbers(predicted: PredictedSlides) -> list[Example]:
    truth, guess = predicted.numbers("value"), predicted.numbers("predicted_value")
    distance = np.abs(guess - truth)
    found = {
        int(distance.argmin()): "the prediction nearest to its label",
        int(distance.argmax()): "the prediction farthest from its label",
    }
    names = predicted.column("slide_id").tolist()
    return [
        Example(names[i], text, f"{names[i]}: predicted {guess[i]:.4g}, labelled {truth[i]:.4g}", None)
        for i, text in found.items()
    ]


def _of_labels(predicted: PredictedSlides) -> list[Example]:
    labels, p = predicted.label_table()
    distance = np.where(np.isfinite(labels), np.abs(labels - p), np.nan)
    if not np.isfinite(distance).any():
        return []
    found = []
    best = np.unravel_index(int(np.nanargmin(distance)), distance.shape)
    worst = np.unravel_index(int(np.nanargmax(distance)), distance.shape)
    if distance[best] <= 0.5:
        found.append((best, "the most confident correct label"))
    if distance[worst] > 0.5 and worst[0] != best[0]:
        found.append((worst, "the most confident wrong label"))
    names, columns = predicted.column("slide_id").tolist(), predicted.label_columns
    return [
        Example(
            names[i],
            f"{text} ({columns[c]})",
            f"{names[i]}: {columns[c]} {labels[i, c]:g}, predicted {p[i, c]:.2f}",
            int(c),
        )
        for (i, c), text in found
    ]
