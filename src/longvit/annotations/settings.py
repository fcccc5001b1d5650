"""Settings of annotations: the folder of their files, and the classes that are kept and excluded.

Types are evaluated here (no `from __future__ import annotations`): settings of other modules inherit these fields.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@dataclass(frozen=True, kw_only=True)
class AnnotationSettings:
    """Annotations that limit the slides; without `regions` whole slides are used."""

    regions: Path | None = None
    """Folder with the annotations of each slide, which limit it to these areas: <slide_id>.geojson (also .geojson.gz)
    from QuPath, or a mask <slide_id>.png. A slide without a file becomes a problem."""
    region_class: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = ()
    """Keep the annotations of these classes only, e.g. Tumor."""
    exclude_class: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = ()
    """Leave out the annotations of these classes, e.g. Artefact, also inside the others."""
