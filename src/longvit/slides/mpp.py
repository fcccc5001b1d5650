"""Micrometres per pixel: resolved from ordered, named sources and never guessed.

The sources, first match wins:

1. `explicit`: the user's value (`--mpp`, a CSV column mpp);
2. `openslide.mpp-x`: OpenSlide's value for a scanner's format (not for a plain TIFF, where it only repeats 5);
3. `aperio.MPP`: in the ImageDescription of an SVS;
4. `ome.PhysicalSizeX`: OME-XML, with its unit; `dicom.PixelSpacing`, else `dicom.ImagedVolumeWidth`: millimetres;
  `imagej.unit`: the unit in the description of an ImageJ TIFF, whose pixels per unit are in XResolution;
5. `tiff.XResolution` with ResolutionUnit; `png.pHYs`, `jpeg.density`.

A value outside `PLAUSIBLE` is a print setting (72 dpi is 352.8 µm/px) or an error: it is reported and not used. The
magnification is not a resolution (scanners call 0.17 to 0.26 µm/px "40×"): it is displayed and never used here.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from longvit.errors import InputError
from longvit.slides.ome_xml import pixels_of

# Oil immersion scans at 0.05 µm/px; the coarsest macro images have about 15. 1,200 dpi, the finest print setting in
# use, is 21.2 µm/px, so one range excludes every leftover print setting.
PLAUSIBLE = (0.02, 20.0)

_PER_METRE_UNITS = {
    "m": 1e6,
    "dm": 1e5,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter, as OME writes it; the line above has the micro sign
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "in": 25_400.0,
}
# Spellings that ImageJ users enter.
_IMAGEJ_UNITS = {
    **_PER_METRE_UNITS,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometers": 1.0,
    "micrometre": 1.0,
    "nanometer": 1e-3,
    "millimeter": 1e3,
    "inch": 25_400.0,
}


@dataclass(frozen=True)
class Mpp:
    """Micrometres per level-0 pixel along x and y, and their source.

    >>> import longvit
    >>> longvit.open_slide("examples/CMU-1-Small-Region.svs").mpp
    Mpp(x=0.499, y=0.499, source='openslide.mpp-x')
    """

    x: float
    """µm per pixel along x, above 0."""
    y: float
    """µm per pixel along y, above 0."""
    source: str
    """Field of the file that states it, such as `openslide.mpp-x`; `explicit` for the user's value."""

    @property
    def mean(self) -> float:
        """Geometric mean of both axes."""
        return math.sqrt(self.x * self.y)


@dataclass(frozen=True)
class Candidate:
    """Value from one place in a file: µm/px along x and y, or None with the reason in `note`."""

    source: str
    x: float | None = None
    y: float | None = None
    note: str = "absent"

    @property
    def plausible(self) -> bool:
        low, high = PLAUSIBLE
        return all(value is not None and math.isfinite(value) and low <= value <= high for value in (self.x, self.y))

    def __str__(self) -> str:
        if self.x is None or self.y is None:
            return f"{self.source}: {self.note}"
        if self.plausible:
            return f"{self.source}: {self.x:.4g} µm/px"
        return f"{self.source}: {self.x:.4g} µm/px, {self.note if self.note != 'absent' else 'implausible'}"


@dataclass(frozen=True)
class MppSearch:
    """Result of the search: the value used (None if there is none) and all candidates, in order."""

    mpp: Mpp | None
    candidates: tuple[Candidate, ...]

    def require(self, path: Path) -> Mpp:
        """The value, or an `InputError` with the file, the places searched and the two ways out."""
        if self.mpp is not None:
            return self.mpp
        places = "; ".join(str(candidate) for candidate in self.candidates) or "the format has no field for it"
        raise InputError(
            f"{path}: no resolution in the file (searched: {places}); pass --mpp 0.25 (µm per pixel of the largest "
            f"level) or add a column mpp to the CSV"
        )


def resolve_mpp(explicit: float | None, candidates: Iterable[Candidate]) -> MppSearch:
    """Resolution from `explicit` (µm/px, checked to be positive and finite), else from the first plausible
    candidate."""
    ordered = tuple(candidates)
    if explicit is not None:
        if not (math.isfinite(explicit) and explicit > 0):
            raise InputError(f"a resolution of {explicit} µm/px is not a positive number; pass --mpp 0.25, for example")
        return MppSearch(Mpp(float(explicit), float(explicit), "explicit"), ordered)
    for candidate in ordered:
        if candidate.plausible:
            assert candidate.x is not None
            assert candidate.y is not None
            return MppSearch(Mpp(candidate.x, candidate.y, candidate.source), ordered)
    return MppSearch(None, ordered)


def openslide_candidates(properties: Mapping[str, str]) -> list[Candidate]:
    """Candidates from OpenSlide's properties. A plain TIFF's value only repeats XResolution, which has its own
    candidate."""
    candidates = []
    if properties.get("openslide.vendor") != "generic-tiff":
        candidates.append(
            _pair("openslide.mpp-x", properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"), 1.0)
        )
    if properties.get("openslide.vendor") == "dicom":
        stem = "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing"
        # DICOM gives the spacing between rows (y) first.
        candidates.append(
            _pair("dicom.PixelSpacing", properties.get(f"{stem}[1]"), properties.get(f"{stem}[0]"), 1e3),
        )
    return candidates


def dicom_candidates(
    spacing_mm: tuple[float, float] | None, volume_mm: tuple[float, float] | None, size_px: tuple[int, int]
) -> tuple[Candidate, ...]:
    """Candidates from the spacing of the pixels of a DICOM slide along x and y, and from its imaged volume."""
    spacing = Candidate("dicom.PixelSpacing", note="absent")
    if spacing_mm is not None:
        x, y = (1e3 * mm for mm in spacing_mm)
        spacing = Candidate("dicom.PixelSpacing", x, y, note="implausible")
    if volume_mm is None:
        return spacing, Candidate("dicom.ImagedVolumeWidth", note="absent")
    across, down = (1e3 * mm / px for mm, px in zip(volume_mm, size_px, strict=True))
    return spacing, Candidate("dicom.ImagedVolumeWidth", across, down, note="implausible")


def aperio_candidate(description: str) -> Candidate:
    """Candidate from the ImageDescription of an SVS: `… |MPP = 0.4990| …`."""
    match = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", description)
    value = match.group(1) if match else None
    return _pair("aperio.MPP", value, value, 1.0)


def ome_candidate(xml_text: str, size_px: tuple[int, int] | None = None, directory: int = 0) -> Candidate:
    """Candidate from OME-XML: PhysicalSizeX and PhysicalSizeY of one image, with units (µm by default).

    `size_px` and `directory` select the image; without them it is the first.
    """
    source = "ome.PhysicalSizeX"
    try:
        pixels = pixels_of(xml_text, size_px, directory)
    except ElementTree.ParseError as error:
        return Candidate(source, note=f"OME-XML is damaged ({error})")
    if pixels is None:
        return Candidate(
            source, note="absent" if size_px is None else f"no Pixels of {size_px[0]} × {size_px[1]} in the OME-XML"
        )
    values = []
    for axis in "XY":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if unit not in _PER_METRE_UNITS:
            return Candidate(source, note=f"unit {unit!r} is not a length")
        text = pixels.get(f"PhysicalSize{axis}")
        value = _number(text)
        if value is None and text is not None:
            return Candidate(source, note=f"{text[:40]!r} is not a number")
        values.append(None if value is None else value * _PER_METRE_UNITS[unit])
    if None in values:
        return Candidate(source, note="absent" if values[0] is None else "no PhysicalSizeY beside it")
    return Candidate(source, values[0], values[1], note="implausible")


def imagej_candidate(description: str, x: float | None, y: float | None) -> Candidate:
    """Candidate from the description of an ImageJ TIFF (`unit=um`, `unit=micron`, `unit=\\u00B5m`) and its pixels per
    unit."""
    match = re.search(r"^unit=(.*)$", description, re.MULTILINE)
    if match is None:
        return Candidate("imagej.unit")
    unit = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code.group(1), 16)), match.group(1)).strip()
    unit_um = _IMAGEJ_UNITS.get(unit, _IMAGEJ_UNITS.get(unit.lower()))
    if unit_um is None:
        return Candidate("imagej.unit", note=f"unit {unit!r} is not a length")
    if not x or not y:
        return Candidate("imagej.unit", note=f"unit {unit!r}, without pixels per unit")
    return Candidate("imagej.unit", unit_um / x, unit_um / y, note="implausible")


def resolution_candidate(source: str, x: float | None, y: float | None, unit_um: float | None) -> Candidate:
    """Candidate from pixels per unit along x and y (TIFF XResolution, PNG pHYs, JPEG density); `unit_um` is the unit in
    µm."""
    if x is None or y is None:
        return Candidate(source)
    if not (x > 0 and y > 0 and math.isfinite(x) and math.isfinite(y)):
        return Candidate(source, note=f"{x:.6g} × {y:.6g} pixels per unit")
    if unit_um is None:
        return Candidate(source, note=f"{x:.6g} pixels per no unit")
    dpi = x * 25_400.0 / unit_um
    return Candidate(
        source, unit_um / x, unit_um / y, note=f"implausible: {dpi:.4g} dpi is a print setting, not a scanner's"
    )


def _pair(source: str, x: str | None, y: str | None, factor: float) -> Candidate:
    x_value, y_value = _number(x), _number(y)
    if x_value is None or y_value is None:
        text = x if x_value is None else y
        if text is not None:
            return Candidate(source, note=f"{text[:40]!r} is not a number")
        return Candidate(source, note="absent" if x is None else f"{x[:40]} along x, nothing along y")
    return Candidate(source, x_value * factor, y_value * factor, note="implausible")


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        # Some European scanners write a decimal comma.
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None
