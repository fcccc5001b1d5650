"""Annotations that tests make: random polygons with holes, and GeoJSON as QuPath writes it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from longvit.annotations.area_file import find_area_file
from longvit.annotations.settings import AnnotationSettings
from longvit.annotations.slide_area import SlideArea
from longvit.slides.placement import Box

Ring = NDArray[np.float64]


def star(rng: np.random.Generator, centre: tuple[float, float], radius: tuple[float, float], corners: int) -> Ring:
    """A ring around a centre, not convex, whose corners are between two radii."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    distance = rng.uniform(*radius, corners)
    return np.stack([centre[0] + distance * np.cos(angle), centre[1] + distance * np.sin(angle)], axis=1)


def random_polygon(rng: np.random.Generator, width: float, height: float) -> list[Ring]:
    """A shell and up to three holes within width × height, valid, in random directions."""
    size = min(width, height)
    while True:
        centre = float(rng.uniform(0.3, 0.7) * width), float(rng.uniform(0.3, 0.7) * height)
        rings = [star(rng, centre, (0.15 * size, 0.29 * size), int(rng.integers(5, 60)))]
        for _ in range(rng.integers(0, 4)):
            x, y = (float(c + rng.uniform(-0.1, 0.1) * size) for c in centre)
            rings.append(star(rng, (x, y), (0.01 * size, 0.04 * size), int(rng.integers(3, 12))))
        rings = [ring[::-1] if rng.random() < 0.5 else ring for ring in rings]
        if shapely.Polygon(rings[0], rings[1:]).is_valid:
            return rings


def geometry(rings: Sequence[Ring]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings]}


def feature(rings: Sequence[Ring], class_name: str | None = None, **properties: Any) -> dict[str, Any]:
    """An annotation, with what else QuPath writes."""
    more: dict[str, Any] = {"objectType": "annotation", "isLocked": True, **properties}
    if class_name is not None:
        more["classification"] = {"name": class_name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "c8f8…", "geometry": geometry(rings), "properties": more}


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Ring]:
    return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)]


def write_geojson(path: Path, features: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"type": "FeatureCollection", "features": list(features)}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def area_of(path: Path, bounds: Box, keep: Sequence[str] = (), exclude: Sequence[str] = ()) -> SlideArea:
    """The area of a file for a slide with these bounds."""
    slide_id = path.name.split(".")[0]
    settings = AnnotationSettings(regions=path.parent, region_class=tuple(keep), exclude_class=tuple(exclude))
    file = find_area_file(settings, slide_id)
    assert file is not None
    return file.read(bounds)
