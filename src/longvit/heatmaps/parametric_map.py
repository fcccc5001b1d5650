"""DICOM Parametric Map of a heat map: float32 scores in the frame of reference of the slide, for archives and viewers.

    <slide>.scores.dcm    the raster as a tiled matrix; NaN where there is no score

The map spans the slide's bounds exactly: columns × spacing is the width of the slide in mm. It is in the slide's study,
in a separate series, and refers to every file of the slide's series. Spacing and orientation are those that level 0
of the slide states, whatever resolution a command was given.

The position is the corner of the matrix, on which all levels of a DICOM pyramid lie: for a map over the whole slide it
is the slide's. DICOM describes the Parametric Map in PS3.3 A.75, the slide's coordinates in C.8.12.2.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit import __version__
from longvit.errors import InputError
from longvit.files import atomic_path, printable
from longvit.heatmaps.colours import colour_limit
from longvit.heatmaps.heat_map import HeatMap
from longvit.slides.folder import dicom_slide

if TYPE_CHECKING:
    from longvit.slides.reader import Slide

_TILE_PX = 512
_PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Elements that may be empty; files that went through anonymisation often lack them."""
_PLACE = ("FrameOfReferenceUID", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence", "StudyInstanceUID")


def require_highdicom() -> None:
    """Raises `InputError` where the package highdicom is absent."""
    if find_spec("highdicom") is None:
        raise InputError("--heatmaps dicom: needs highdicom; pip install 'longvit[dicom]'")


def write_parametric_map(heat_map: HeatMap, slide: Slide, path: str | Path) -> None:
    """Writes the map of a DICOM slide atomically.

    Raises `InputError` for another slide, for one that states no place, spacing or orientation, and without highdicom.
    """
    if slide.vendor != "dicom":
        raise InputError(f"{slide.path}: {slide.vendor}, not DICOM; a parametric map refers to a DICOM series")
    require_highdicom()
    levels = _levels(slide.path)
    content = _parametric_map(heat_map, levels, slide.path)
    with atomic_path(path) as temporary:
        content.save_as(temporary)


def _levels(path: Path) -> list[Any]:
    """Headers of the slide's pyramid levels, the largest first."""
    from pydicom import dcmread

    headers = [dcmread(file, stop_before_pixels=True) for file in dicom_slide(path).files]
    levels = [header for header in headers if "VOLUME" in header.get("ImageType", ())]
    return sorted(levels or headers, key=lambda header: -int(header.get("TotalPixelMatrixColumns", 0)))


def _measures(level0: Any) -> Any:
    """Pixel measures that all frames share; empty where the file has none."""
    groups = level0.get("SharedFunctionalGroupsSequence") or [{}]
    return (groups[0].get("PixelMeasuresSequence") or [{}])[0]


def _spacing_mm(level0: Any, path: Path) -> tuple[float, float]:
    """Spacing of level 0 between rows and between columns, in mm."""
    spacing = _measures(level0).get("PixelSpacing")
    if not spacing:
        raise InputError(f"{path}: a DICOM slide without PixelSpacing, which places a parametric map")
    return float(spacing[0]), float(spacing[1])


def _corner_mm(heat_map: HeatMap, level0: Any, spacing_mm: tuple[float, float]) -> list[float]:
    """Corner of the map's matrix in the slide coordinate system (x, y, z)."""
    origin = level0.TotalPixelMatrixOriginSequence[0]
    place = [float(origin.get(f"{axis}OffsetInSlideCoordinateSystem") or 0) for axis in "XYZ"]
    along_row, along_column = np.asarray(level0.ImageOrientationSlide, np.float64).reshape(2, 3)
    moved: list[float] = (
        place
        + along_row * heat_map.bounds.x * spacing_mm[1]  # a step along a row changes the column
        + along_column * heat_map.bounds.y * spacing_mm[0]
    ).tolist()
    return moved


def _parametric_map(heat_map: HeatMap, levels: list[Any], path: Path) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    level0 = levels[0]
    if lacking := [name for name in _PLACE if name not in level0]:
        raise InputError(f"{path}: a DICOM slide without {lacking[0]}, which places a parametric map")
    for name in _PATIENT_AND_STUDY:
        if name not in level0:
            setattr(level0, name, None)
    raster = np.ascontiguousarray(heat_map.raster, np.float32)
    rows, columns = raster.shape
    spacing_mm = _spacing_mm(level0, path)
    measures = hd.PixelMeasuresSequence(
        pixel_spacing=(
            spacing_mm[0] * heat_map.bounds.height / rows,
            spacing_mm[1] * heat_map.bounds.width / columns,
        ),
        slice_thickness=_measures(level0).get("SliceThickness"),
    )
    position = hd.PlanePositionSequence(
        hd.CoordinateSystemNames.SLIDE,
        image_position=_corner_mm(heat_map, level0, spacing_mm),
        pixel_matrix_position=(1, 1),
    )
    finite = raster[np.isfinite(raster)]
    text = printable(heat_map.measurement)
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="score",
        lut_explanation=text[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0),
        slope=1.0,
        intercept=0.0,
    )
    limit = colour_limit(heat_map)
    window = hd.VOILUTTransformation(
        window_center=0.0 if heat_map.is_signed else limit / 2,
        window_width=2 * limit if heat_map.is_signed else limit,
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,
    )
    content = hd.pm.ParametricMap(
        source_images=[level0],
        further_source_images=levels[1:] or None,
        pixel_array=raster,
        series_instance_uid=_uid(level0, heat_map, raster, "series"),
        series_number=1,
        sop_instance_uid=_uid(level0, heat_map, raster, "instance"),
        instance_number=1,
        manufacturer="longvit",
        manufacturer_model_name="longvit",
        software_versions=__version__,
        device_serial_number=__version__,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label="HEAT_MAP",
        content_description=text[:64],
        pixel_measures=measures,
        plane_positions=[position],
        tile_pixel_array=True,
        tile_size=(min(_TILE_PX, rows), min(_TILE_PX, columns)),
        specific_character_set="ISO_IR 192",
        series_description=text[:64],
    )
    content.FloatPixelPaddingValue = float("nan")
    return content


def _uid(level0: Any, heat_map: HeatMap, raster: NDArray[np.float32], kind: str) -> str:
    """UID that depends on the slide and the scores alone, so that the same map has it again."""
    from pydicom.uid import generate_uid

    scores = hashlib.sha256(raster.tobytes()).hexdigest()
    return str(generate_uid(entropy_srcs=[level0.SeriesInstanceUID, heat_map.measurement, scores, kind]))
