"""Viewer of fine-tuning runs: one run, and a cross-validation with the model of the fold that tested the slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longvit.config import read_yaml
from longvit.data.canvas_cache import CanvasSettings
from longvit.data.problems import PROBLEMS_CSV, Problem, read_problems
from longvit.errors import InputError
from longvit.files import file_stem
from longvit.viewer.items import ViewItem, ViewItems, ViewPrediction
from longvit.viewer.model_heat import Models, contributions_request, stored_canvas
from longvit.viewer.prediction_table import PredictedRow, read_predictions
from longvit.viewer.slide_places import SlidePlaces

NO_FILES = "Slide files are not recorded in a run: --slides-dir or --cohort names them; else its canvases are shown."


def load_finetuning(folder: Path, places: SlidePlaces, models: Models) -> ViewItems:
    """Slides of val and test of a finished fine-tuning, and the slides that it left out."""
    rows = read_predictions(folder / "predictions.csv")
    problems = read_problems(folder / PROBLEMS_CSV)
    items = run_items(folder, rows, problems, places, models, lambda _: folder / "model")
    return ViewItems("fine-tuning", folder.name or str(folder), items, folder, run_notes(items))


def load_crossval(folder: Path, places: SlidePlaces, models: Models) -> ViewItems:
    """Slides of a cross-validation; a slide that several folds evaluated has a tab for each."""
    rows = read_predictions(folder / "predictions.csv")
    folds = list(dict.fromkeys(row.prediction.fold for row in rows))
    problems: dict[tuple[str, str], Problem] = {}
    for fold in folds:
        for problem in read_problems(folder / f"fold_{file_stem(fold)}" / PROBLEMS_CSV):
            problems.setdefault((problem.slide, problem.stage), problem)
    items = run_items(
        folder, rows, list(problems.values()), places, models, lambda fold: folder / f"fold_{file_stem(fold)}" / "model"
    )
    return ViewItems("cross-validation", folder.name or str(folder), items, folder, run_notes(items))


def run_items(
    folder: Path,
    rows: Sequence[PredictedRow],
    problems: Sequence[Problem],
    places: SlidePlaces,
    models: Models,
    model_of: Callable[[str], Path],
) -> list[ViewItem]:
    """Items of the rows, a slide each, with heat maps of `model_of(fold)`; then the slides that were left out."""
    settings = _canvas_settings(folder)
    canvases = _canvas_folder(folder)
    problem_of = {problem.slide: f"{problem.stage}: {problem.error}" for problem in problems}
    by_slide: dict[str, list[PredictedRow]] = {}
    for row in rows:
        by_slide.setdefault(row.slide_id, []).append(row)
    items = []
    for slide_id in [*by_slide, *(name for name in problem_of if name not in by_slide)]:
        own = by_slide.get(slide_id, [])
        place = places.find(slide_id, own[0].path if own else "")
        canvas = None if settings is None else stored_canvas(canvases, slide_id, settings)
        has_tabs = len(own) > 1
        predictions = tuple(
            replace(
                row.prediction,
                tab=f"fold {row.prediction.fold}" if has_tabs else "",
                heat=contributions_request(models, model_of(row.prediction.fold), canvas),
            )
            for row in own
        )
        first = own[0] if own else PredictedRow(slide_id, ViewPrediction())
        items.append(
            ViewItem(
                slide_id,
                path=place.path or canvas,
                is_canvas=place.path is None and canvas is not None,
                mpp=place.mpp,
                case_id=first.case_id or place.case_id,
                label=first.label or place.label,
                site=first.site or place.site,
                problem=problem_of.get(slide_id, place.problem),
                bad_tiles=first.bad_tiles,
                predictions=predictions,
                canvas=canvas,
            )
        )
    return items


def run_notes(items: Sequence[ViewItem]) -> tuple[str, ...]:
    """Remark on missing slide files."""
    return (NO_FILES,) if any(item.is_canvas or item.path is None for item in items) else ()


def _canvas_settings(folder: Path) -> CanvasSettings | None:
    """Settings of the run's canvases; None where settings.yaml does not have them."""
    settings = _settings(folder)
    try:
        return CanvasSettings(int(settings["side_px"]), settings["fit"])
    except (KeyError, TypeError, ValueError):
        return None


def _canvas_folder(folder: Path) -> Path:
    """Folder of the run's canvases."""
    cache_dir = _settings(folder).get("cache_dir")
    return Path(cache_dir) if isinstance(cache_dir, str) and Path(cache_dir).is_dir() else folder / "canvases"


def _settings(folder: Path) -> dict[str, Any]:
    """Content of settings.yaml; empty where it cannot be read."""
    path = folder / "settings.yaml"
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, InputError):
        return {}
    return values if isinstance(values, dict) else {}
