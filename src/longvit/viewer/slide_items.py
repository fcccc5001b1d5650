"""Viewer of slides without predictions: plain slides, and a pretraining run with its patch tokens as colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longvit.data.slide_list import ListedSlide, find_slides
from longvit.errors import InputError
from longvit.viewer.items import HeatRequest, ViewItem, ViewItems, ViewPrediction
from longvit.viewer.model_heat import Models, colours_request, contributions_request
from longvit.viewer.slide_places import SlidePlaces


def load_slides(
    sources: Sequence[Path], slides_dir: Path | None, places: SlidePlaces, models: Models, model: Path | None
) -> ViewItems:
    """Slides named by files, folders, globs or a CSV. `model`: model folder for heat maps."""
    listed = find_slides(sources, slides_dir=slides_dir, note=lambda _: None)
    request = None if model is None else contributions_request(models, model) or colours_request(models, model)
    items = _items(listed, places, request)
    title = str(sources[0]) if len(sources) == 1 else f"{len(listed)} slides"
    return ViewItems("slides", Path(title).name, items)


def load_pretraining(
    folder: Path, sources: Sequence[Path], slides_dir: Path | None, places: SlidePlaces, models: Models
) -> ViewItems:
    """Slides with the tokens of the run's teacher as colours. Raises `InputError` where no slides are named."""
    named = [*sources, *([slides_dir] if slides_dir is not None and not sources else [])]
    if not named and not places.rows:
        raise InputError(f"{folder}: a pretraining run has no slide files; name them: longvit view {folder} SLIDES…")
    listed = find_slides(named, slides_dir=slides_dir, leave_out=folder, note=lambda _: None) if named else ()
    if not named:
        listed = tuple(ListedSlide(row.slide_id, row.path, row.mpp) for row in places.rows.values())
    items = _items(listed, places, colours_request(models, folder / "teacher"))
    return ViewItems("pretraining", folder.resolve().name, items, folder)


def _items(listed: Sequence[ListedSlide], places: SlidePlaces, heat: HeatRequest | None) -> list[ViewItem]:
    items = []
    for slide in listed:
        place = places.find(slide.slide_id)
        items.append(
            ViewItem(
                slide.slide_id,
                path=slide.path,
                mpp=slide.mpp or place.mpp,
                case_id=place.case_id,
                label=place.label,
                site=place.site,
                problem=slide.fault or "",
                predictions=(ViewPrediction(heat=heat),) if heat is not None else (),
            )
        )
    return items
