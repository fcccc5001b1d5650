"""Tile scores of all systems in one format: an HDF5 file per trial, and polygons for QuPath.

    attention.h5   a group per slide (its id): scores float32 (N,), coords int64 (N, 2) in level-0 px where known;
                   attributes: case_id, tile_level0_px where known. Scores are at least 0 and sum to 1 over a bag (a
                   slide, or all slides of a patient)

N tiles.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longvit.comparison.bag_cohort import BagCohort
from longvit.data.cohort import SlideRow
from longvit.errors import InputError
from longvit.files import write_bytes, write_text
from longvit.h5_file import find_dataset, groups_in, open_h5, read_attributes, read_numbers

if TYPE_CHECKING:
    import h5py


@dataclass(frozen=True)
class TileScores:
    """Scores of the tiles of a slide."""

    slide_id: str
    case_id: str
    scores: NDArray[np.float32] = field(repr=False)
    """(N,)."""
    coords: NDArray[np.int64] | None = field(repr=False)
    """(N, 2): top-left corners in level-0 px."""
    tile_level0_px: float | None
    """Side of a tile."""


def write_attention(path: Path, bag_cohort: BagCohort, rows: Sequence[SlideRow], scores: Sequence[np.ndarray]) -> None:
    """Writes the scores of all bags, atomically. `scores`: (N,) for each row, in the order of its tiles."""
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for row, bag_scores in zip(rows, scores, strict=True):
            tiles, start = bag_cohort.tiles(row), 0
            assert len(bag_scores) == len(tiles.features)
            for slide, n in zip(tiles.slides, tiles.slide_tiles, strict=True):
                group = file.create_group(slide)
                group.create_dataset("scores", data=bag_scores[start : start + n].astype(np.float32))
                if tiles.coords is not None:
                    group.create_dataset("coords", data=tiles.coords[start : start + n])
                group.attrs["case_id"] = row.case_id
                if tiles.tile_level0_px is not None:
                    group.attrs["tile_level0_px"] = tiles.tile_level0_px
                start += n
    write_bytes(path, content.getbuffer())


def read_attention(path: str | Path) -> dict[str, TileScores]:
    """Reads the scores by slide_id, in the order of the file; `InputError`: no such file, or damaged."""
    path = Path(path)
    with open_h5(path, "run the comparison again", "attention file") as file:
        return {name: _scores_of(name, group, path) for name, group in groups_in(file, path).items()}


def _scores_of(name: str, group: h5py.Group, path: Path) -> TileScores:
    scores, coords = (find_dataset(group, part, path) for part in ("scores", "coords"))
    if scores is None:
        raise InputError(f"{path}: no scores of {name}; not an attention file, or damaged")
    values = read_numbers(scores, path)
    places = None if coords is None else read_numbers(coords, path)
    if values.ndim != 1 or not len(values) or (places is not None and places.shape != (len(values), 2)):
        raise InputError(f"{path}: scores and coordinates of {name} do not match; run the comparison again")
    attributes = read_attributes(group, path)
    side = attributes.get("tile_level0_px")
    return TileScores(name, str(attributes["case_id"]), values, places, None if side is None else float(side))


def tile_side_px(scores: TileScores) -> float:
    """Side of a tile in level-0 px: as stated, or the smallest step between tiles. `InputError` without coordinates."""
    if scores.coords is None:
        raise InputError(f"slide {scores.slide_id}: no coordinates; extract features that have them (.h5)")
    if scores.tile_level0_px is not None:
        return scores.tile_level0_px
    steps = np.concatenate([np.diff(np.unique(scores.coords[:, axis])) for axis in range(2)])
    return float(steps.min()) if len(steps) else 256.0


def write_geojson(
    path: str | Path, scores: TileScores, name: str = "attention", *, origin: tuple[float, float] = (0, 0)
) -> None:
    """Writes a GeoJSON polygon per tile in level-0 px with its score as a measurement, for QuPath. Atomic.

    `origin`: corner of the slide's bounds, from which QuPath counts.

    `share of the highest` is the score relative to the maximum, since attention over many tiles is small.
    """
    side, coords = tile_side_px(scores), scores.coords
    assert coords is not None
    highest = float(scores.scores.max()) or 1.0
    features = []
    for (x, y), score in zip((coords - np.asarray(origin, int)).tolist(), scores.scores.tolist(), strict=True):
        right, bottom = x + side, y + side
        features.append(
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]],
                },
                "properties": {
                    "objectType": "tile",
                    "measurements": {name: score, f"{name}, share of the highest": score / highest},
                },
            }
        )
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")
