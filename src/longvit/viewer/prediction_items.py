"""Viewer of predictions: the folder of `longvit predict`, or any table with `prob_<class>` or `risk`."""

from __future__ import annotations

from pathlib import Path

from longvit.data.problems import PROBLEMS_CSV, read_problems
from longvit.viewer.finetuning_items import run_items, run_notes
from longvit.viewer.items import ViewItems
from longvit.viewer.model_heat import Models
from longvit.viewer.prediction_table import read_predictions
from longvit.viewer.slide_places import SlidePlaces


def load_predictions(table: Path, places: SlidePlaces, models: Models, model: Path | None) -> ViewItems:
    """Slides of a table of predictions. `model`: model folder for heat maps, which the table does not name."""
    folder = table.parent
    rows = read_predictions(table)
    problems = read_problems(folder / PROBLEMS_CSV)
    items = run_items(folder, rows, problems, places, models, lambda _: model or folder / "model")
    notes = run_notes(items)
    if not any(p.heat for item in items for p in item.predictions):
        notes += ("Heat maps need the model of these predictions: --model names its folder.",)
    return ViewItems("predictions", folder.resolve().name, items, folder, notes)
