"""Fields of tissue from which synthetic slides are made: real ones of a cohort table, or drawn ones.

A drawn field is a number of dark ellipses (nuclei) on noise. Healthy nuclei are round and tumour nuclei long; their
number and area are the same. The drawing needs no data, so tests and demonstrations run anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.data.table import read_table
from longvit.errors import InputError
from longvit.progress import Progress

_LENGTH = {False: 1.0, True: 3.0}  # long over short axis of a nucleus
_PAPER, _INK = np.array([228.0, 190.0, 214.0]), np.array([96.0, 62.0, 140.0])


@dataclass(frozen=True)
class Field:
    """Field of one tissue."""

    name: str
    patient: str
    source: str
    """Laboratory, scanner or stain."""
    fold: str | None
    is_tumour: bool
    pixels: NDArray[np.uint8] = field(repr=False)
    """(height, width, 3)."""


def read_fields(
    cohort_csv: str | Path,
    tumour: str,
    healthy: str | None = None,
    *,
    reduced: int = 1,
    only: Mapping[str, str] | None = None,
) -> tuple[Field, ...]:
    """Fields of a cohort table with the columns case_id, label and path, and where there are any site and fold.

    - `tumour`, `healthy`: labels of the two tissues; rows with another label are left out. `healthy` None: all others.
    - `reduced`: factor by which the images are reduced.
    - `only`: column -> value that a row must have.

    Without a column site every patient is a source. Raises `InputError`: a missing column, an image that cannot be
    read, a tissue without fields, a patient with fields of two folds or sources.

    >>> from longvit.synthetic import read_fields
    >>> read_fields("no.csv", tumour="OSCC")
    Traceback (most recent call last):
    longvit.errors.InputError: no.csv: cannot be read: No such file or directory
    """
    path = Path(cohort_csv)
    if reduced < 1:
        raise InputError(f"reduced {reduced}: at least 1")
    columns, table = read_table(path)
    for name in ("case_id", "label", "path", *(only or {})):
        if name not in columns:
            raise InputError(f"{path}: no column {name}; it has {', '.join(columns)}")
    chosen = [
        (line, row)
        for line, row in table
        if (row.get("label") == tumour or row.get("label") == healthy or healthy is None)
        and all(row.get(name) == value for name, value in (only or {}).items())
    ]
    fields = []
    with Progress("fields", len(chosen), unit="images", brief=True) as progress:
        for line, row in chosen:
            file = path.parent / row.get("path", "")
            fields.append(
                Field(
                    f"{path}, line {line}",
                    row["case_id"],
                    row.get("site") or row["case_id"],
                    row.get("fold") or None,
                    row["label"] == tumour,
                    _read_image(file, reduced),
                )
            )
            progress.advance()
    check_fields(fields, str(path))
    return tuple(fields)


def check_fields(fields: Sequence[Field], where: str) -> None:
    """Raises `InputError` for a tissue without fields, and for a patient with fields of two folds or sources."""
    for is_tumour, name in ((True, "tumour"), (False, "healthy tissue")):
        if not any(field.is_tumour == is_tumour for field in fields):
            raise InputError(f"{where}: no field of {name}; check the labels and the filter")
    first: dict[str, Field] = {}
    for one in fields:
        other = first.setdefault(one.patient, one)
        if (other.fold, other.source) != (one.fold, one.source):
            raise InputError(
                f"{where}: patient {one.patient} has fields of two folds or sources ({other.name} and {one.name})"
            )


def drawn_fields(
    *, patients: int = 16, fields: int = 2, side_px: int = 128, nucleus_px: float = 9.0, seed: int = 0
) -> tuple[Field, ...]:
    """Drawn fields: `fields` of each tissue for every patient, four patients to a source.

    `nucleus_px`: mean diameter of a nucleus. Stain and diameter differ between patients, not between tissues.

    >>> from longvit.synthetic import drawn_fields
    >>> fields = drawn_fields(patients=2, fields=1, side_px=64)
    >>> [(field.patient, field.is_tumour, field.pixels.shape) for field in fields][:2]
    [('drawn00', False, (64, 64, 3)), ('drawn00', True, (64, 64, 3))]
    """
    made = []
    for patient in range(patients):
        rng = np.random.default_rng([seed, patient])
        diameter_px, ink = nucleus_px * rng.uniform(0.85, 1.15), _INK + rng.uniform(-18, 18, 3)
        for number in range(fields):
            for is_tumour in (False, True):
                pixels = draw_field(rng, side_px, diameter_px, _LENGTH[is_tumour], ink)
                name = f"drawn{patient:02d}"
                made.append(Field(f"{name}_{number}", name, f"source{patient // 4}", None, is_tumour, pixels))
    return tuple(made)


def draw_field(
    rng: np.random.Generator, side_px: int, diameter_px: float, length: float, ink: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Field of ellipses with a long axis of `length` short ones, uint8 (side, side, 3)."""
    density = np.zeros((side_px, side_px), np.float32)
    long_px, short_px = diameter_px / 2 * math.sqrt(length), diameter_px / 2 / math.sqrt(length)
    count = round(0.35 * side_px**2 / (math.pi / 4 * diameter_px**2))
    reach = math.ceil(long_px) + 2
    grid = np.arange(-reach, reach + 1)
    for x, y, angle in zip(*rng.uniform(0, side_px, (2, count)), rng.uniform(0, math.pi, count), strict=True):
        across, down = grid[None] - x % 1, grid[:, None] - y % 1
        along = across * math.cos(angle) + down * math.sin(angle)
        aside = down * math.cos(angle) - across * math.sin(angle)
        radius = np.hypot(along / long_px, aside / short_px)
        drawn = np.clip((1.15 - radius) * 4, 0, 1).astype(np.float32)
        rows, columns = (int(y) + grid) % side_px, (int(x) + grid) % side_px
        density[np.ix_(rows, columns)] = np.maximum(density[np.ix_(rows, columns)], drawn)
    pixels = _PAPER + density[..., None] * (ink - _PAPER) + rng.normal(0, 6, (side_px, side_px, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _read_image(path: Path, reduced: int) -> NDArray[np.uint8]:
    from PIL import Image

    from longvit.slides.reader import open_slide

    with open_slide(path) as image:
        pixels = image.read_region(0, 0, 0, *image.size_px)
    if reduced > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(reduced))
    return pixels
