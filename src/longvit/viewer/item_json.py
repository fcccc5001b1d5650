"""Items and patches as JSON for the page: a slide in the list, a prediction, a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longvit.viewer.heat_map import Patch
from longvit.viewer.items import ViewItem, ViewPrediction
from longvit.viewer.review import Note


def brief(item: ViewItem, note: Note) -> dict[str, Any]:
    """A slide in the list, with its note."""
    first = item.predictions[0] if item.predictions else ViewPrediction()
    wrong = [p.is_wrong for p in item.predictions if p.is_wrong is not None]
    main = first.risk if first.risk is not None else first.probabilities.get(first.predicted)
    return {
        "id": item.slide_id,
        "case": item.case_id,
        "label": item.label,
        "site": item.site,
        "predicted": first.predicted,
        "value": main,
        "is_risk": first.risk is not None,
        "folds": list(dict.fromkeys(p.fold for p in item.predictions if p.fold)),
        "split": first.split,
        "wrong": sum(wrong) if wrong else None,
        "judged": len(wrong),
        "error": item.error,
        "note": next((p.note for p in item.predictions if p.note), ""),
        "problem": without_folder(item.problem, item.path),
        "verdict": note.verdict,
        "comment": note.comment,
    }


def prediction_json(prediction: ViewPrediction) -> dict[str, Any]:
    """A prediction in the panel beside the slide."""
    return {
        "tab": prediction.tab,
        "predicted": prediction.predicted,
        "probabilities": list(prediction.probabilities.items()),
        "risk": prediction.risk,
        "curve": list(prediction.curve),
        "fold": prediction.fold,
        "split": prediction.split,
        "wrong": prediction.is_wrong,
        "note": prediction.note,
        "has_heat": prediction.heat is not None,
    }


def patch_json(patch: Patch) -> list[float]:
    """Left, top, width and height in level-0 px, and the value."""
    box = patch.box
    return [round(box.x, 2), round(box.y, 2), round(box.width, 2), round(box.height, 2), float(f"{patch.value:.4g}")]


def without_folder(text: str, path: Path | None) -> str:
    """A message with the name of the slide's file in place of its path."""
    return text if path is None else text.replace(str(path), path.name)
