"""QuPath's GeoJSON: annotations of a slide with their classes, read defensively.

A FeatureCollection, a list of features, one feature or one geometry. Coordinates are pixels of the image as QuPath
shows it, so those of the scanned area where the slide states one (`Slide.bounds`). Polygons and multipolygons are
areas; lines and points are ignored, and so are cells, detections, tiles and cores of a tissue microarray.
"""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longvit.annotations.polygons import Ring, signed_area
from longvit.errors import InputError
from longvit.json_file import parse_json
from longvit.slides.placement import Box

MOST_BYTES = 64 * 2**20
"""Largest GeoJSON, uncompressed."""
MOST_VERTICES = 1_000_000
_OTHER_OBJECTS = ("cell", "detection", "tile", "tmaCore", "root")
# Part of the longer side that a vertex may lie outside: strokes of a brush end there.
_MARGIN = 0.02


@dataclass(frozen=True)
class Annotation:
    """One annotation of a file."""

    number: int
    """Position in the file, from 1."""
    class_name: str
    """Name of its class; "" where it has none."""
    polygons: tuple[Any, ...] = field(repr=False)
    """Coordinates of its polygons, as in the file: rings, the shell first."""

    def __str__(self) -> str:
        return f"annotation {self.number}" + (f" ({self.class_name})" if self.class_name else "")


def unpacked(data: bytes, source: str) -> bytes:
    """Content of a gzip file; other data as they are. Raises `InputError` for a damaged or too large one."""
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{source}: damaged gzip file ({error}); export it again") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{source}: more than {MOST_BYTES / 2**20:g} MB of GeoJSON; export annotations only, no cells")
    return data


def read_annotations(data: bytes, source: str) -> tuple[Annotation, ...]:
    """Annotations with an area, in the order of the file; their coordinates are not yet checked.

    Raises `InputError` in one line for anything but GeoJSON.
    """
    content = parse_json(unpacked(data, source), source, nan=False)
    return tuple(_annotations(content, source))


def _annotations(content: Any, source: str) -> Iterator[Annotation]:
    for number, feature in enumerate(_features(content, source), 1):
        if not isinstance(feature, dict):
            raise InputError(f"{source}: feature {number} is a {type(feature).__name__}, not a GeoJSON feature")
        is_feature = feature.get("type") == "Feature"
        geometry: Any = (feature.get("geometry") or {}) if is_feature else feature
        properties: Any = (feature.get("properties") or {}) if is_feature else {}
        if not isinstance(properties, dict) or not isinstance(geometry, dict):
            raise InputError(f"{source}: feature {number} is damaged: properties and geometry are names and values")
        kind: Any = properties.get("objectType", properties.get("object_type"))
        if kind in _OTHER_OBJECTS:
            continue
        coordinates = geometry.get("coordinates")
        if geometry.get("type") == "Polygon":
            polygons = [coordinates]
        elif geometry.get("type") == "MultiPolygon":
            polygons = coordinates if isinstance(coordinates, list) else [coordinates]
        else:
            continue
        yield Annotation(number, _class_of(properties, number, source), tuple(polygons))


def _features(content: Any, source: str) -> list[Any]:
    if isinstance(content, list):
        return content
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        return list(content["features"])
    if kind in ("Feature", "Polygon", "MultiPolygon"):
        return [content]
    raise InputError(f"{source}: no GeoJSON of annotations; in QuPath, export objects as GeoJSON")


def _class_of(properties: dict[str, Any], number: int, source: str) -> str:
    given = properties.get("classification")
    if isinstance(given, dict):
        names = given.get("names")
        given = given.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else None)
    if given is not None and not isinstance(given, str):
        raise InputError(f"{source}: the class of annotation {number} is a {type(given).__name__}, not a name")
    return given or ""


def checked_polygons(annotations: Sequence[Annotation], bounds: Box, source: str) -> list[list[Ring]]:
    """Polygons of annotations in level-0 pixels, each a shell and its holes.

    `bounds`: scanned area of the slide (`Slide.bounds`), whose corner is added. Raises `InputError`, naming the
    annotation, for coordinates that are no finite numbers, an empty area, an outline that crosses itself, and an area
    outside the slide. It also refuses more than `MOST_VERTICES`.
    """
    polygons, vertices, corner = [], 0, np.array([bounds.x, bounds.y])
    for annotation in annotations:
        for rings in annotation.polygons:
            polygon = _rings(rings, annotation, source)
            vertices += sum(map(len, polygon))
            if vertices > MOST_VERTICES:
                raise InputError(f"{source}: more than {MOST_VERTICES:,} vertices; simplify the annotations in QuPath")
            _require_on_slide(polygon[0], annotation, bounds, source)
            _require_valid(polygon, annotation, source)
            polygons.append([ring + corner for ring in polygon])
    return polygons


def _rings(rings: Any, annotation: Annotation, source: str) -> list[Ring]:
    if not isinstance(rings, list) or not rings:
        raise InputError(f"{source}: {annotation} is empty; delete it")
    result = []
    for ring in rings:
        try:
            array = np.array(ring)
        except (ValueError, OverflowError):  # lists of different length
            array = np.array(None)
        if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "fiu":
            raise InputError(f"{source}: {annotation} is damaged: an outline is a list of [x, y]")
        points = array[:, :2].astype(np.float64)
        if not np.isfinite(points).all():
            raise InputError(f"{source}: {annotation} has a coordinate that is not finite")
        if len(points) > 1 and (points[0] == points[-1]).all():
            points = points[:-1]
        if len(points) < 3 or signed_area(points) == 0:
            raise InputError(f"{source}: {annotation} is empty: an outline of {len(points)} points has no area")
        result.append(points)
    return result


def _require_on_slide(shell: Ring, annotation: Annotation, bounds: Box, source: str) -> None:
    low, high = shell.min(0), shell.max(0)
    margin = _MARGIN * max(bounds.width, bounds.height)
    size = np.array([bounds.width, bounds.height])
    if (low < -margin).any() or (high > size + margin).any() or (high <= 0).any() or (low >= size).any():
        raise InputError(
            f"{source}: {annotation} extends from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}), outside the "
            f"slide of {bounds.width:g} × {bounds.height:g} px; is it of another slide, or of a smaller copy?"
        )


def _require_valid(polygon: list[Ring], annotation: Annotation, source: str) -> None:
    try:
        import shapely
    except ImportError as error:
        raise InputError("polygons need shapely: pip install 'longvit[regions]' (a mask PNG does not)") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        reason = shapely.is_valid_reason(shapely.Polygon(polygon[0], polygon[1:]))
    if reason != "Valid Geometry":
        text, _, where = reason.partition("[")
        at = f" at ({where.rstrip(']').replace(' ', ', ')})" if where else ""
        raise InputError(f"{source}: {annotation} crosses itself ({text}{at}); repair it in QuPath, or draw it again")
