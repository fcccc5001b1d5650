"""Viewer of a comparison: a tab per system with its prediction and, where the run stored them, its tile scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longvit.comparison.tile_scores import read_attention, tile_side_px
from longvit.errors import InputError
from longvit.json_file import read_made
from longvit.slide_jobs.job import digest_of
from longvit.tasks.task import task_class
from longvit.viewer.heat_map import HeatMap, Layer, TileHeat, colour_limit
from longvit.viewer.items import HeatRequest, ViewItem, ViewItems, ViewPrediction
from longvit.viewer.prediction_table import predicted_row
from longvit.viewer.slide_places import SlidePlaces

if TYPE_CHECKING:
    from longvit.viewer.open_slides import OpenedSlide

_KINDS = {"systems": list, "folds": list, "task": str, "per_patient": bool}


@dataclass
class _Slide:
    """Predictions of all systems for one slide."""

    case_id: str = ""
    predictions: list[ViewPrediction] = field(default_factory=list)


def load_comparison(folder: Path, places: SlidePlaces) -> ViewItems:
    """Slides of a finished comparison. `places`: the cohort table gives files and labels, which the run does not have.

    Raises `InputError` for a damaged benchmark.json or trial.
    """
    summary = read_made(folder / "benchmark.json", _KINDS)
    slides: dict[str, _Slide] = {}
    for system in summary["systems"]:
        for fold in summary["folds"]:
            trial = folder / str(system["system"]) / f"fold_{fold['fold']}"
            if (trial / "outputs.csv").is_file() and (trial / "metrics.json").is_file():
                _add_trial(trial, str(system.get("words") or system["system"]), str(fold["fold"]), places, slides)
    if not slides:
        raise InputError(f"{folder}: no finished trial of a system in it")
    items = []
    for slide_id, slide in slides.items():
        place = places.find(slide_id)
        items.append(
            ViewItem(
                slide_id,
                path=place.path,
                mpp=place.mpp,
                case_id=slide.case_id or place.case_id,
                label=place.label,
                site=place.site,
                problem=place.problem,
                predictions=tuple(slide.predictions),
            )
        )
    notes: tuple[str, ...] = ()
    if any(item.path is None for item in items):
        notes = ("A comparison has no slide files: --cohort or --slides-dir names them.",)
    return ViewItems("comparison", folder.resolve().name, items, folder, notes)


def _add_trial(trial: Path, system: str, fold: str, places: SlidePlaces, slides: dict[str, _Slide]) -> None:
    """Adds the predictions of one system on one fold; a bag of a patient counts for each of its slides with scores."""
    made = read_made(trial / "metrics.json", {"outputs": list, "task": str, "evaluated": str})
    attention = trial / "attention.h5"
    scores = _scores(attention, _version(attention)) if attention.is_file() else {}
    slides_of_case: dict[str, list[str]] = {}
    for slide_id, case_id in scores.items():
        slides_of_case.setdefault(case_id, []).append(slide_id)
    for name, logits in _outputs(trial / "outputs.csv", made["evaluated"]):
        for slide_id in [name] if name in scores or name not in slides_of_case else slides_of_case[name]:
            slide = slides.setdefault(slide_id, _Slide())
            slide.case_id = scores.get(slide_id, slide.case_id)
            label = places.find(slide_id).label
            heat = _request(attention, slide_id, system) if slide_id in scores else None
            slide.predictions.append(_prediction(made, logits, label, system, fold, heat))


def _prediction(
    made: Mapping[str, object], logits: np.ndarray, label: str, system: str, fold: str, heat: HeatRequest | None
) -> ViewPrediction:
    names = [str(name) for name in made["outputs"]]  # type: ignore[attr-defined]
    if made["task"] == "survival":
        from longvit.tasks.survival import risk_of, survival_of

        ends = [float(name.split("-")[1].split()[0]) for name in names[:-1]]
        curve = zip(ends, survival_of(logits[None])[0, :-1].tolist(), strict=True) if len(logits) > 1 else ()
        risk = float(risk_of(logits[None])[0])
        return ViewPrediction(system, risk=risk, curve=tuple(curve), fold=fold, heat=heat)
    if made["task"] != "subtyping":
        task = task_class(str(made["task"]))
        cells = dict(zip(task.prediction_columns(names), task.prediction_cells(logits, names), strict=True))
        row = predicted_row(system, {**cells, "label": label if label in task.classes_of(names) else ""})
        return replace(row.prediction, tab=system, fold=fold, heat=heat)
    shares = np.exp(logits - logits.max())
    probabilities = dict(zip(names, (shares / shares.sum()).tolist(), strict=True))
    predicted = max(probabilities, key=lambda name: probabilities[name])
    is_wrong = (predicted != label) if label in probabilities else None
    return ViewPrediction(
        system,
        predicted,
        probabilities,
        fold=fold,
        is_wrong=is_wrong,
        error=1 - probabilities[label] if label in probabilities else None,
        note=f"predicted {predicted}, label {label}" if is_wrong else "",
        heat=heat,
    )


def _outputs(path: Path, split: str) -> list[tuple[str, np.ndarray]]:
    """Name of each evaluated bag, and its logits."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.DictReader(file) if line["split"] == split and line["system"] == "model"]
        outputs = [
            (line["slide_id"], np.array([float(v) for k, v in line.items() if k.startswith("output_") and v]))
            for line in lines
        ]
        if not all(len(logits) and np.isfinite(logits).all() for _, logits in outputs):
            raise ValueError("a value is not finite")
        return outputs
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error}); run the comparison again") from error


def _request(attention: Path, slide_id: str, system: str) -> HeatRequest:
    """Heat map of the stored scores of one slide."""

    def make(_: OpenedSlide) -> HeatMap:
        scores = read_attention(attention)[slide_id]
        side = tile_side_px(scores)
        assert scores.coords is not None
        if not np.isfinite(scores.scores).all():
            raise InputError(f"{attention.name}: a score of {slide_id} is not finite")
        meaning = f"attention of {system}: scores of a bag sum to 1"
        layer = Layer(system, meaning, False, colour_limit(scores.scores))
        return TileHeat(scores.coords, side, scores.scores, layer)

    return HeatRequest(digest_of(heat="scores", file=str(attention), version=list(_version(attention))), make)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _scores(path: Path, version: tuple[int, int]) -> dict[str, str]:
    """slide_id -> case_id of the slides with scores at known places."""
    return {name: scores.case_id for name, scores in read_attention(path).items() if scores.coords is not None}
