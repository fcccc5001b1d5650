"""Formats of a heat map: their names on the command line, their files, and writing those that a run wants.

A format that cannot be written is a problem of the slide; its other files and its prediction are not affected.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.errors import InputError, describe_error
from longvit.files import file_stem
from longvit.heatmaps.geojson import write_geojson
from longvit.heatmaps.heat_map import HeatMap
from longvit.heatmaps.ome_tiff import write_colours, write_scores
from longvit.heatmaps.parametric_map import require_highdicom, write_parametric_map
from longvit.heatmaps.patches import CONTACT_SHEET, write_patches
from longvit.heatmaps.png import write_groovy, write_png

if TYPE_CHECKING:
    from longvit.slides.reader import Slide

FORMATS = ("geojson", "ome-tiff", "png", "patches", "dicom")
FOLDER = "heatmaps"
STAGE = "heatmap"
"""Stage of a problem: only a heat map of the slide is missing."""
MOST_TOP_K = 99


@dataclass(frozen=True)
class HeatMapSettings:
    """Heat map files of a run.

    >>> from longvit.heatmaps.formats import HeatMapSettings
    >>> HeatMapSettings.parsed(["geojson,png"], top_k=5)
    HeatMapSettings(formats=('geojson', 'png'), top_k=5)
    """

    formats: tuple[str, ...] = ()
    """Names from `FORMATS`; empty: no heat maps."""
    top_k: int = 10
    """Number of patches at each end that are annotations of the GeoJSON and images of `patches`."""

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                near = difflib.get_close_matches(name, FORMATS, 1)
                hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(FORMATS)}"
                raise InputError(f"--heatmaps {name}: no such format; {hint}")
        if "dicom" in self.formats:
            require_highdicom()
        if not 1 <= self.top_k <= MOST_TOP_K:
            raise InputError(f"--top-k {self.top_k}: from 1 to {MOST_TOP_K}")

    @classmethod
    def parsed(cls, texts: Iterable[str], top_k: int = 10) -> HeatMapSettings:
        """Settings from texts with one or more names each, separated by commas. Raises `InputError`."""
        names = [name.strip().lower() for text in texts for name in text.split(",")]
        return cls(tuple(dict.fromkeys(name for name in names if name)), top_k)


@dataclass(frozen=True)
class WrittenHeatMaps:
    """Files of one slide's heat map."""

    files: dict[str, list[str]]
    """Format -> file names in the folder, only of formats that were written whole."""
    patches: list[dict[str, Any]]
    """`ScoredPatch` of every image, as JSON."""
    problems: list[str]
    """One line for each format that could not be written."""


def write_heat_maps(
    heat_map: HeatMap, folder: str | Path, settings: HeatMapSettings, open_slide: Callable[[], Slide]
) -> WrittenHeatMaps:
    """Writes the formats of `settings` to `folder`, each file atomically.

    `open_slide` opens the slide, for `patches` and `dicom` alone.
    """
    folder, stem = Path(folder), file_stem(heat_map.slide_id)
    written = WrittenHeatMaps({}, [], [])

    def write(name: str) -> None:
        if name == "geojson":
            write_geojson(heat_map, folder / f"{stem}.geojson.gz", settings.top_k)
        elif name == "ome-tiff":
            write_scores(heat_map, folder / f"{stem}.scores.ome.tif")
            write_colours(heat_map, folder / f"{stem}.colour.ome.tif")
        elif name == "png":
            write_png(heat_map, folder / f"{stem}.heat.png")
            write_groovy(heat_map, folder / f"{stem}.heat.groovy", folder / f"{stem}.heat.png")
        elif name == "dicom":
            with open_slide() as slide:
                write_parametric_map(heat_map, slide, folder / f"{stem}.scores.dcm")
        else:
            with open_slide() as slide:
                patches = write_patches(heat_map, slide, folder / f"{stem}.patches", settings.top_k)
            written.patches.extend(asdict(patch) for patch in patches)

    for name in settings.formats:
        try:
            write(name)
        except Exception as error:  # a full disk, a slide that was removed: the prediction stays
            written.problems.append(f"heat map {name}: {describe_error(error)}")
        else:
            images = written.patches if name == "patches" else []
            written.files[name] = [*files_of(name, stem), *(f"{stem}.patches/{patch['file']}" for patch in images)]
    return written


def files_of(name: str, stem: str) -> list[str]:
    """File names of a format for a slide, without the images of single patches."""
    suffixes = {
        "geojson": (".geojson.gz",),
        "ome-tiff": (".scores.ome.tif", ".colour.ome.tif"),
        "png": (".heat.png", ".heat.groovy"),
        "dicom": (".scores.dcm",),
        "patches": (f".patches/{CONTACT_SHEET}",),
    }
    return [stem + suffix for suffix in suffixes[name]]


def are_written(record: Mapping[str, Any], folder: str | Path, settings: HeatMapSettings) -> bool:
    """True if a slide's record names all formats of `settings`, with the same `top_k`, and their files exist."""
    if not settings.formats:
        return True
    entry = record.get("heatmaps")
    if not isinstance(entry, dict) or entry.get("top_k") != settings.top_k:
        return False
    files = entry.get("files")
    return isinstance(files, dict) and all(
        name in files and all((Path(folder) / str(file)).exists() for file in files[name]) for name in settings.formats
    )


def record_entry(heat_map: HeatMap, written: WrittenHeatMaps, settings: HeatMapSettings) -> dict[str, Any]:
    """Entry of a slide's record: what was written, and what the scores mean."""
    return {
        "files": written.files,
        "top_k": settings.top_k,
        "measurement": heat_map.measurement,
        "meaning": dict(heat_map.meaning),
        "patches": written.patches,
    }
