"""Outline of a tissue mask as GeoJSON for QuPath: one unlocked annotation of the class `Tissue` per piece.

The outline follows the edges of the mask's pixels, so the mask is restored exactly when it is read again. Coordinates
are those of QuPath: level-0 pixels from the corner of the scanned area.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.annotations.polygons import Ring, signed_area
from longvit.annotations.slide_area import TISSUE
from longvit.files import write_text
from longvit.slides.tissue import Tissue

_COLOUR = (0, 168, 80)
_NAMESPACE = uuid.UUID("6f0b8a4e-3d0c-5d5e-9a53-0f4f7a0c2b11")


def write_tissue_outline(path: Path, tissue: Tissue, slide_id: str) -> Path:
    """Writes the outline of a tissue mask as a GeoJSON FeatureCollection, atomically; a blank slide has no features."""
    height, width = tissue.mask.shape
    scale = np.array([tissue.bounds.width / width, tissue.bounds.height / height])
    features = []
    for number, rings in enumerate(mask_polygons(tissue.mask), 1):
        corners = [np.round(ring * scale, 3).tolist() for ring in rings]
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{slide_id!a} {number}")),
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in corners]},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": TISSUE, "color": _COLOUR},
                    "isLocked": False,
                },
            }
        )
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    write_text(path, text + "\n")
    return path


def mask_polygons(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Outlines of the 4-connected pieces of a mask, in pixels: of each piece the shell, then its holes.

    They are valid polygons: no ring passes a corner twice.
    """
    from scipy.ndimage import label

    pieces, n_pieces = label(mask)
    polygons: list[list[Ring]] = [[] for _ in range(n_pieces)]
    for piece, ring in _rings(pieces):
        is_shell = signed_area(ring) > 0
        polygons[piece - 1].insert(0 if is_shell else len(polygons[piece - 1]), ring)
    return polygons


def _rings(pieces: NDArray[np.int32]) -> Iterator[tuple[int, Ring]]:
    """Rings around the pieces of a labelled mask, each with its piece; shells clockwise on the screen."""
    width = pieces.shape[1]
    edges, owner = _edges(pieces)
    order = np.argsort(edges)
    edges, owner = edges[order], owner[order]
    place, direction = np.divmod(edges, 4)
    step = np.array([1, width + 1, -1, -(width + 1)])  # right, down, left, up
    end = place + step[direction]
    after = np.full(len(edges), -1)
    # Two pieces that touch at a corner: the right turn stays on the same pixel. It is written last, so it wins.
    for turn in (3, 0, 1):
        key = end * 4 + (direction + turn) % 4
        found = np.minimum(np.searchsorted(edges, key), len(edges) - 1)
        after = np.where(edges[found] == key, found, after)
    is_corner = direction[after] != direction
    following, corners = after.tolist(), is_corner.tolist()
    is_used = bytearray(len(edges))
    for first in range(len(edges)):
        if is_used[first]:
            continue
        ring, edge = [], first
        while not is_used[edge]:
            is_used[edge] = 1
            if corners[edge]:
                ring.append(edge)
            edge = following[edge]
        for loop in _simple_loops(end[ring].tolist()):
            y, x = np.divmod(np.array(loop), width + 1)
            yield int(owner[first]), np.stack([x, y], axis=1).astype(np.float64)


def _edges(pieces: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Edges between a piece and the rest: start corner · 4 + direction, and the piece, which is to their right."""
    padded = np.pad(pieces, 1)
    inner, width = padded[1:-1, 1:-1], pieces.shape[1]
    sides = (
        (padded[:-2, 1:-1], 0, 0),  # the upper side leads to the right from the upper left corner
        (padded[1:-1, 2:], 0, 1),
        (padded[2:, 1:-1], 1, 1),
        (padded[1:-1, :-2], 1, 0),
    )
    edges, owners = [], []
    for direction, (beside, down, right) in enumerate(sides):
        row, column = np.nonzero((inner > 0) & (beside == 0))
        edges.append(((row + down) * (width + 1) + column + right) * 4 + direction)
        owners.append(inner[row, column])
    return np.concatenate(edges), np.concatenate(owners)


def _simple_loops(corners: list[int]) -> Iterator[list[int]]:
    """Cuts a closed path where it passes a corner twice."""
    if len(set(corners)) == len(corners):
        yield corners
        return
    path: list[int] = []
    position: dict[int, int] = {}
    for corner in corners:
        if corner in position:
            first = position[corner]
            yield path[first:]
            for old in path[first:]:
                del position[old]
            del path[first:]
        position[corner] = len(path)
        path.append(corner)
    yield path
