"""Report section of the deletion test: whether the patches with the highest contributions move the score most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.errors import InputError
from longvit.heatmaps.deletion import DeletionCurves, DeletionSummary, deletion, forward_passes, summarise
from longvit.plots.deletion import deletion_plot
from longvit.report.labels import counted
from longvit.report.page import Row, Section, Table
from longvit.report.sections import interval_range, saved_plot
from longvit.tasks.survival import Survival

if TYPE_CHECKING:
    from longvit.comparison.tile_deletion import SystemDeletion
    from longvit.model.longvit import LongViT

MOST_SLIDES = 8
MOST_MULTIPLICATIONS = 1.5e11
"""Multiplications of all forward passes of the test: a few seconds on two CPU cores."""
MEANING = (
    "Test of the contributions: patches of each slide are replaced by background, the ones with the highest "
    "contributions first, the lowest first, or in random order. Blank patches are left out. If the contributions show "
    "what the model uses, the score falls further than in random order in the first case, and less in the second. The "
    "area between two curves measures this; 0 is no better than random. An image with holes is unlike the training "
    "slides, so a small area may also mean that the model reacts to the holes.",
)
TILES_MEANING = (
    "Test of the tile scores: tiles are removed from evaluated bags, the ones with the highest scores first, the "
    "lowest first, or in random order, up to nine in ten. If the scores show what a system uses, its score falls "
    "further than in random order in the first case, and less in the second. The area between two curves measures "
    "this; 0 is no better than random. Tile scores have no sign: a tile with a high score may be evidence against the "
    "prediction. Areas of two systems are not comparable, since their logits have no common scale.",
)
RISK_MEANING = "The score is the risk; a high contribution raises it."


def slides_to_test(names: Sequence[str], wanted: int | None, *, parameters: int, patches: int) -> list[str]:
    """Slides for the test, evenly spaced in alphabetical order.

    `wanted`: their number; None: as many, up to 8, as take a few seconds.
    """
    if wanted is None:
        wanted = min(MOST_SLIDES, int(MOST_MULTIPLICATIONS // (parameters * patches * forward_passes())))
    chosen = np.linspace(0, len(names) - 1, min(wanted, len(names))).round().astype(int) if names and wanted else ()
    ordered = sorted(names)
    return [ordered[i] for i in chosen]


def deletion_section(
    model: LongViT, canvases: Mapping[str, Path], patients: Mapping[str, str], folder: Path
) -> list[Section]:
    """Section with the curves and areas over these canvases; empty where none can be tested.

    `canvases`: slide_id -> canvas file. `patients`: slide_id -> case_id. The plot is written to `folder` as
    deletion.png and .svg.
    """
    from longvit.slides.canvas import read_canvas

    curves: list[DeletionCurves] = []
    cases = []
    for slide_id, path in canvases.items():
        try:
            curves.append(deletion(model, read_canvas(path)))
            cases.append(patients[slide_id])
        except InputError:  # a slide without tissue has no patches to replace
            continue
    if not curves:
        return []
    is_risk = model.config.task == Survival.name
    unit = "risk" if is_risk else "log-odds" if model.config.num_classes == 2 else "score"
    first = np.stack([curve.most[0] for curve in curves])[:, None]
    falls = {
        "highest contributions first": first - np.stack([curve.most for curve in curves]),
        "random order": first - np.stack([curve.random.mean(0) for curve in curves]),
        "lowest contributions first": first - np.stack([curve.least for curve in curves]),
    }
    deletion_plot(curves[0].fractions, falls, folder / "deletion.png", unit=unit)
    most, least = (summarise([getattr(curve, name) for curve in curves], cases) for name in ("most_fall", "least_fall"))
    rows = [
        Row(["highest first, below random", *_cells(most)]),
        Row(["lowest first, above random", *_cells(least)]),
    ]
    caption = f"Mean over {counted(len(curves), 'held-out slide')}, in {unit}; intervals resample the patients."
    table = Table(("area between curves", "mean", "95 % interval", "reading"), rows, frozenset({1, 2}), caption)
    plot = saved_plot("Fall of the score", folder / "deletion.png", "Bands: 95 % bootstrap over slides.", max_px=640)
    text = MEANING + ((RISK_MEANING,) if is_risk else ())
    return [Section("Deletion test", text=text, tables=(table,), plots=(plot,))]


def systems_section(tests: Sequence[SystemDeletion]) -> list[Section]:
    """Section with the areas of all systems that have tile scores; empty without any."""
    if not tests:
        return []
    rows = [
        Row([test.system, str(test.most.slides), *_cells(test.most)[:2], *_cells(test.least)[:2], _cells(test.most)[2]])
        for test in tests
    ]
    unit = "risk" if tests[0].is_risk else "logit of the predicted class minus the mean of the others"
    caption = f"Area between curves, mean over the bags, in units of the score ({unit}); intervals resample patients."
    columns = (
        "system", "bags", "highest first, below random", "95 % interval", "lowest first, above random",
        "95 % interval", "reading of highest first",
    )  # fmt: skip
    table = Table(columns, rows, frozenset(range(1, 6)), caption)
    return [Section("Deletion test", text=TILES_MEANING, tables=(table,))]


def _cells(summary: DeletionSummary) -> list[str]:
    if summary.low is None or summary.high is None:
        reading = "one patient: no interval"
    elif summary.low > 0:
        reading = "more than random patches"
    elif summary.high < 0:
        reading = "less than random patches: do not rely on the map"
    else:
        reading = "not distinguished from random patches"
    return [f"{summary.mean:.3f}", interval_range(summary.low, summary.high, 3), reading]
