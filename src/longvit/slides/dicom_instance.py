"""One DICOM file of a slide: the fields of its header that decide how its frames are read, checked.

Sources: DICOM PS3.3 A.32.8 (the whole-slide image), C.8.12.4 and C.8.12.14 (sizes, focal planes, optical paths),
C.7.6.17 (organisation of the frames), C.7.6.16.1.2 (concatenations).
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from longvit.errors import InputError
from longvit.slides.dicom_dataset import Dataset, read_dataset
from longvit.slides.dicom_frames import Frames, find_frames
from longvit.slides.dicom_header import (
    DIRECTORY_CLASS,
    META_CLASS,
    META_SYNTAX,
    SLIDE_CLASS,
    SOP_CLASS,
    UNREAD_SYNTAXES,
    Element,
    damaged,
    elements,
)
from longvit.slides.dicom_positions import (
    PER_FRAME,
    SHARED,
    Positions,
    Tiles,
    is_sparse,
    positions_in_order,
    stated_positions,
)
from longvit.slides.pixel_reader import MAX_TILE_PX, UnsupportedError, check_side

_IMAGE_TYPE, _SOP_INSTANCE, _PYRAMID = 0x00080008, 0x00080018, 0x00080019
_CONTAINER, _FRAME_OF_REFERENCE = 0x00400512, 0x00200052
_CONCATENATION, _PART, _PARTS, _FRAMES_BEFORE = 0x00209161, 0x00209162, 0x00209163, 0x00209228
_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_BITS = {"BitsAllocated": (0x00280100, 8), "BitsStored": (0x00280101, 8), "HighBit": (0x00280102, 7)}
_SIGNED = 0x00280103
_SPACING, _MEASURES = 0x00280030, 0x00289110
_WIDTH_MM, _HEIGHT_MM, _WIDTH, _HEIGHT = 0x00480001, 0x00480002, 0x00480006, 0x00480007
_LABEL_IN_IMAGE, _ORIENTATION = 0x00480010, 0x00480102
_FRAME_TYPES, _FRAME_TYPE = 0x00400710, 0x00089007
_OPTICAL_PATHS, _IDENTIFIER, _DESCRIPTION, _LENS_POWER = 0x00480105, 0x00480106, 0x00480107, 0x00480112
_SAMPLES_OF = {
    "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3, "MONOCHROME1": 1, "MONOCHROME2": 1,
}  # fmt: skip
_PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")


class Part(NamedTuple):
    """A file's part of a level that is distributed over several files, a concatenation."""

    uid: str
    number: int
    total: int
    """Number of parts; 0 where it is not stated."""
    frames_before: int


@dataclass(frozen=True)
class Instance:
    """Header of one file with pixels of the slide, and the places of its frames."""

    path: Path
    uid: str
    pyramid: tuple[str, str, str]
    """Frame of reference, container and pyramid: equal for all levels of a slide."""
    syntax: str
    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    samples: int
    photometric: str
    planar: bool
    """True if the colours of plain pixels are stored one after another."""
    frames: Frames
    frames_of_level: int
    """Number of frames of all parts of the level; 0 where each frame states its position."""
    positions: Positions
    optical_paths: tuple[tuple[str, str], ...]
    """Identifier and description of each optical path."""
    part: Part | None
    spacing_mm: tuple[float, float] | None
    """Spacing of pixels along x and y."""
    volume_mm: tuple[float, float] | None
    """Width and height of the imaged volume."""
    orientation: str
    """Direction of rows and columns on the glass (ImageOrientationSlide), as text."""
    lens_power: str
    doubt: str
    """Field that contradicts the ImageType VOLUME, as a clause; empty for none."""


def image_flavour(path: Path) -> tuple[str, tuple[int, int]]:
    """Third value of ImageType ("VOLUME", "LABEL", "OVERVIEW", "THUMBNAIL"), and the size of the matrix in pixels.

    They are empty and (0, 0) where the file does not state them. Raises `InputError` for a file that is no slide.
    """
    found: list[Element] = []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            with contextlib.suppress(ValueError, IndexError, struct.error):  # a label may be cut off
                found.extend(elements(data, _HEIGHT))
            dataset = Dataset(data, iter(found), True)
            if (syntax := dataset.text(META_SYNTAX)) in UNREAD_SYNTAXES:
                raise UnsupportedError(f"the transfer syntax {UNREAD_SYNTAXES[syntax]}")
            _require_slide(path, dataset)
            kinds = dataset.texts(_IMAGE_TYPE)
            size_px = dataset.integer(_WIDTH) or 0, dataset.integer(_HEIGHT) or 0
            return kinds[2] if len(kinds) > 2 else "", size_px
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise _no_slide(path, str(error)) from error


def read_instance(path: Path, *, walk: bool = False) -> Instance:
    """Header of a file of a slide's level, and its frames.

    `walk`: every item of the pixels is visited. Raises `InputError` for a damaged file and for pixels that are not
    8-bit RGB, YCbCr or grey.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            dataset = read_dataset(data)
            _require_slide(path, dataset)
            return _instance(path, dataset, walk)
    except InputError:
        raise
    except (OSError, ValueError, IndexError, struct.error, RecursionError) as error:
        raise _no_slide(path, str(error)) from error


def _require_slide(path: Path, dataset: Dataset) -> None:
    if dataset.text(META_CLASS) == DIRECTORY_CLASS:
        raise InputError(f"{path}: a DICOMDIR, which lists the files of a medium; give the folder of a slide")
    if dataset.text(SOP_CLASS) != SLIDE_CLASS:
        raise _no_slide(path, f"its SOP class is {dataset.text(SOP_CLASS)[:64] or 'not stated'}")


def _instance(path: Path, dataset: Dataset, walk: bool) -> Instance:
    size_px, tile_px = _sizes(path, dataset)
    samples, photometric = _pixel_format(path, dataset)
    frames = _count(path, dataset)
    shared = dataset.first(SHARED)
    part = _part(path, dataset)
    optical_paths = tuple((item.text(_IDENTIFIER), item.text(_DESCRIPTION)) for item in dataset.items(_OPTICAL_PATHS))
    tiles, before = Tiles(size_px, tile_px), None if part is None else part.frames_before
    if is_sparse(path, dataset):
        in_level, positions = 0, stated_positions(path, dataset, frames, tiles, [name for name, _ in optical_paths])
    else:
        in_level, positions = positions_in_order(path, dataset, frames, tiles, before)
    syntax = dataset.text(META_SYNTAX)
    is_halved = photometric == "YBR_FULL_422" and syntax in _PLAIN_SYNTAXES
    frame_bytes = tile_px[0] * tile_px[1] * (2 if is_halved else samples)
    planar = dataset.integer(_PLANAR)
    if samples > 1 and planar not in (0, 1) and syntax in _PLAIN_SYNTAXES:
        raise damaged(path, "it lacks PlanarConfiguration")
    along = dataset.decimals(_ORIENTATION)
    lens = next((item.text(_LENS_POWER) for item in dataset.items(_OPTICAL_PATHS)), "")
    return Instance(
        path=path,
        uid=dataset.text(_SOP_INSTANCE),
        pyramid=(dataset.text(_FRAME_OF_REFERENCE), dataset.text(_CONTAINER), dataset.text(_PYRAMID)),
        syntax=syntax,
        size_px=size_px,
        tile_px=tile_px,
        samples=samples,
        photometric=photometric,
        planar=planar == 1,
        frames=find_frames(path, dataset, frames, frame_bytes, walk=walk),
        frames_of_level=in_level,
        positions=positions,
        optical_paths=optical_paths,
        part=part,
        spacing_mm=_spacing(dataset, shared),
        volume_mm=_pair(dataset.real(_WIDTH_MM), dataset.real(_HEIGHT_MM)),
        orientation="\\".join(f"{value:g}" for value in along) if len(along) == 6 else "",
        lens_power=lens,
        doubt=_doubt(dataset, shared),
    )


def _doubt(dataset: Dataset, shared: Dataset | None) -> str:
    """Field that contradicts the ImageType VOLUME."""
    frame_types = None if shared is None else shared.first(_FRAME_TYPES)
    kinds = [] if frame_types is None else frame_types.texts(_FRAME_TYPE)
    if len(kinds) > 2 and kinds[2] != "VOLUME":
        return f"its FrameType is {kinds[2][:32]}"
    return "its SpecimenLabelInImage is YES" if dataset.text(_LABEL_IN_IMAGE) == "YES" else ""


def _sizes(path: Path, dataset: Dataset) -> tuple[tuple[int, int], tuple[int, int]]:
    (width_px, height_px), (tile_w, tile_h) = (
        (dataset.integer(across) or 0, dataset.integer(down) or 0)
        for across, down in ((_WIDTH, _HEIGHT), (_COLUMNS, _ROWS))
    )
    if 0 in (width_px, height_px, tile_w, tile_h):
        raise damaged(path, f"it states {width_px} × {height_px} px in tiles of {tile_w} × {tile_h}")
    check_side(path, width_px, height_px)
    return (width_px, height_px), (tile_w, tile_h)


def check_tile(instance: Instance) -> None:
    """Raises `InputError` for tiles, which are decoded whole, of gigabytes."""
    tile_w, tile_h = instance.tile_px
    if tile_w * tile_h > MAX_TILE_PX // 2:
        raise InputError(
            f"{instance.path}: its tiles have {tile_w} × {tile_h} px; a tile is decoded whole and may have at most "
            f"{MAX_TILE_PX // 2} px: damaged, or convert it to smaller tiles"
        )


def _pixel_format(path: Path, dataset: Dataset) -> tuple[int, str]:
    for name, (tag, expected) in _BITS.items():
        value = dataset.integer(tag)
        if value is None:
            raise damaged(path, f"it lacks {name}")
        if value != expected:
            raise InputError(
                f"{path}: {name} is {value}; only 8-bit RGB or grey is read, since the range of deeper pixels is not "
                f"known"
            )
    if dataset.integer(_SIGNED):
        raise InputError(f"{path}: its pixels are signed numbers; only 8-bit RGB or grey is read")
    samples, photometric = dataset.integer(_SAMPLES), dataset.text(_PHOTOMETRIC)
    if photometric not in _SAMPLES_OF:
        raise InputError(
            f"{path}: its PhotometricInterpretation is {photometric[:32]!r}; only {', '.join(_SAMPLES_OF)} are read"
        )
    if samples != _SAMPLES_OF[photometric]:
        raise damaged(path, f"{photometric} needs {_SAMPLES_OF[photometric]} samples per pixel, it states {samples}")
    return samples, photometric


def _count(path: Path, dataset: Dataset) -> int:
    text = dataset.text(_FRAMES)
    if not text.isdigit() or not 1 <= int(text) <= len(dataset.data):  # a frame has bytes
        raise damaged(path, f"it states {text[:20] or 'no'} frames")
    return int(text)


def _part(path: Path, dataset: Dataset) -> Part | None:
    uid, number = dataset.text(_CONCATENATION), dataset.integer(_PART)
    if not uid:
        if number is not None:
            raise damaged(path, "it is part of a concatenation without ConcatenationUID")
        return None
    before = dataset.integer(_FRAMES_BEFORE)
    if number is None or before is None:
        raise damaged(path, "it is part of a concatenation without its number or the frames before it")
    return Part(uid, number, dataset.integer(_PARTS) or 0, before)


def _spacing(dataset: Dataset, shared: Dataset | None) -> tuple[float, float] | None:
    for group in (shared, dataset.first(PER_FRAME)):
        measures = None if group is None else group.first(_MEASURES)
        spacing = [] if measures is None else measures.decimals(_SPACING)
        if len(spacing) == 2:
            return spacing[1], spacing[0]  # the spacing between rows, which is along y, comes first
    return None


def _pair(x: float | None, y: float | None) -> tuple[float, float] | None:
    return (x, y) if x and y else None


def _no_slide(path: Path, why: str) -> InputError:
    return InputError(f"{path}: not a whole-slide DICOM, or damaged ({why}); copy or download it again")
