"""Sources of the viewer: the kind of run that a folder holds, a table of predictions, or slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longvit.errors import InputError
from longvit.files import is_folder
from longvit.viewer.comparison_items import load_comparison
from longvit.viewer.embedding_items import load_embeddings
from longvit.viewer.finetuning_items import load_crossval, load_finetuning
from longvit.viewer.items import ViewItems
from longvit.viewer.model_heat import Models
from longvit.viewer.prediction_items import load_predictions
from longvit.viewer.prediction_table import is_prediction_table, read_columns
from longvit.viewer.slide_items import load_pretraining, load_slides
from longvit.viewer.slide_places import SlidePlaces


def load_items(
    sources: Sequence[Path],
    *,
    slides_dir: Path | None = None,
    cohort: Path | None = None,
    model: Path | None = None,
    device: str = "auto",
) -> ViewItems:
    """Items of a run's folder, of a table of predictions, or of slides.

    `slides_dir`, `cohort`: places of the slide files that a run does not record. `model`: model folder for heat maps of
    predictions or slides. Raises `InputError` in one line for anything that is none of these, or not finished.
    """
    if not sources:
        raise InputError("name a run's folder, a predictions.csv, or slides")
    first, *others = (Path(source) for source in sources)
    models = Models(device)
    if model is not None and not (model / "config.json").is_file():
        raise InputError(f"--model {model}: no model folder; `longvit train` writes one to RUN/model")
    kind = kind_of_folder(first) if is_folder(first) else ""
    if kind == "demo":
        cohort, first, kind = cohort or first / "cohort.csv", first / "run", "fine-tuning"
    if kind == "pretraining":
        places = SlidePlaces(slides_dir, cohort, first)
        return load_pretraining(first, others, slides_dir, places, models)
    is_table = first.suffix.lower() == ".csv" and first.is_file() and is_prediction_table(read_columns(first))
    if (kind or is_table) and others:
        raise InputError(f"{first}: one run at a time; start another viewer for {others[0]}")
    places = SlidePlaces(slides_dir, cohort, first if kind else first.parent if is_table else None)
    match kind:
        case "fine-tuning":
            return load_finetuning(first, places, models)
        case "cross-validation":
            return load_crossval(first, places, models)
        case "comparison":
            return load_comparison(first, places)
        case "embeddings":
            return load_embeddings(first, places)
        case "predictions":
            return load_predictions(first / "predictions.csv", places, models, model)
    if is_table:
        parent = kind_of_folder(first.parent)
        if first.name == "predictions.csv" and parent == "fine-tuning":
            return load_finetuning(first.parent, places, models)
        if first.name == "predictions.csv" and parent == "cross-validation":
            return load_crossval(first.parent, places, models)
        return load_predictions(first, places, models, model)
    return load_slides([first, *others], slides_dir, places, models, model)


def kind_of_folder(folder: Path) -> str:
    """Kind of run in a folder, by its files; "" where it holds none.

    Raises `InputError` for a run that is not finished.
    """
    has = {name: (folder / name).exists() for name in _FILES}
    if has["demo.json"] and (folder / "run" / "predictions.csv").exists():
        return "demo"
    if has["crossval.json"]:
        return "cross-validation"
    if has["benchmark.json"]:
        return "comparison"
    if has["teacher"] and has["metrics.json"]:
        return "pretraining"
    if has["metrics.json"] and has["predictions.csv"]:
        return "fine-tuning"
    if has["predictions.csv"]:
        return "predictions"
    if has["embeddings.csv"]:
        return "embeddings"
    if has["settings.yaml"] and (has["run.json"] or has["folds"]):
        raise InputError(f"{folder}: this run is not finished; give its command again, then view it")
    return ""


_FILES = (
    *("demo.json", "crossval.json", "benchmark.json", "teacher", "metrics.json", "predictions.csv", "embeddings.csv"),
    *("settings.yaml", "run.json", "folds"),
)
