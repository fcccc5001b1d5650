"""Heat maps of tile scores for other programs, in the formats of `longvit.heatmaps`.

    fold_<name>/attention/<slide_id>.geojson.gz, .scores.ome.tif, …    from attention.h5 and the slide file
    fold_<name>/attention/<slide_id>.heatmaps.json                     the record: digest of the scores, files

A slide whose record has the present digest, formats and number of patches is finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from longvit.comparison.tile_scores import TileScores, read_attention, tile_side_px
from longvit.data.problems import Problem
from longvit.errors import InputError
from longvit.files import file_stem, write_text
from longvit.heatmaps.formats import STAGE, HeatMapSettings, are_written, record_entry, write_heat_maps
from longvit.heatmaps.heat_map import of_tiles
from longvit.json_file import read_json_object
from longvit.progress import Progress
from longvit.slides.mpp import Mpp
from longvit.slides.placement import Box
from longvit.slides.reader import open_slide

FOLDER = "attention"


def write_trials(
    trials: Iterable[Path], slides: Mapping[str, Path], settings: HeatMapSettings, progress: Progress
) -> tuple[int, tuple[Problem, ...]]:
    """Writes the heat maps of all slides with scores; returns the number of maps and the problems.

    `trials`: folders `<system>/fold_<name>`. `slides`: slide_id -> file. A slide without file or coordinates is a
    problem at stage `heatmap`, as is a format that cannot be written. A trial without scores has none.
    """
    maps, problems = 0, []
    places: dict[str, tuple[Box, Mpp | None]] = {}
    for trial in trials:
        progress.advance(note=trial.parent.name)
        path = trial / "attention.h5"
        if not path.exists():
            continue
        name = f"{trial.parent.name}, {trial.name.replace('_', ' ')}"
        try:
            found = read_attention(path)
        except InputError as error:
            problems.append(Problem(trial.parent.name, STAGE, f"{name}: {error}"))
            continue
        for slide_id, scores in found.items():
            try:
                reason = _write(trial, scores, slides.get(slide_id), settings, places)
            except InputError as error:
                reason = str(error)
            if reason:
                problems.append(Problem(slide_id, STAGE, f"{name}: {reason}"))
                progress.log(f"problem: {slide_id}: {name}: {reason}")
            maps += not reason
    return maps, tuple(problems)


def _write(
    trial: Path,
    scores: TileScores,
    path: Path | None,
    settings: HeatMapSettings,
    places: dict[str, tuple[Box, Mpp | None]],
) -> str:
    """Writes the maps of one slide unless they exist; returns the problem, or ""."""
    folder, slide_id = trial / FOLDER, scores.slide_id
    if path is None:
        raise InputError(f"slide {slide_id}: no file of it; add a column path, or --slides-dir")
    side_px = tile_side_px(scores)
    assert scores.coords is not None
    record_path = folder / f"{file_stem(slide_id)}.heatmaps.json"
    content = scores.scores.tobytes() + scores.coords.tobytes() + str(side_px).encode()
    digest = hashlib.sha256(content).hexdigest()[:32]
    try:
        record = read_json_object(record_path)
    except (OSError, ValueError):
        record = {}
    if record.get("digest") == digest and are_written(record, folder, settings):
        return ""
    if slide_id not in places:
        with open_slide(path) as slide:
            places[slide_id] = (slide.bounds, slide.mpp)
    system = trial.parent.name
    heat_map = of_tiles(
        slide_id,
        scores.scores,
        scores.coords,
        side_px,
        *places[slide_id],
        measurement=f"attention of {system}",
        meaning={"system": system, "trial": trial.name, "case_id": scores.case_id, "tile_level0_px": side_px},
    )
    written = write_heat_maps(heat_map, folder, settings, lambda: open_slide(path))
    record = {"slide_id": slide_id, "digest": digest, "heatmaps": record_entry(heat_map, written, settings)}
    write_text(record_path, json.dumps(record, indent=1) + "\n")
    return "; ".join(written.problems)
