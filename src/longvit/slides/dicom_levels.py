"""Levels of a DICOM slide: the files of a series told apart, their frames put in the places that they show.

A level may be in several files: the parts of a concatenation, one file per optical path or focal plane, or some tiles
in each. Of several optical paths the first is read, of several focal planes the middle one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.dicom_codec import CODECS, frame_decoder
from longvit.slides.dicom_frames import joined_fragments
from longvit.slides.dicom_header import damaged
from longvit.slides.dicom_instance import Instance, check_tile, image_flavour, read_instance
from longvit.slides.jpeg_file import read_jpeg_header
from longvit.slides.pixel_reader import Level
from longvit.slides.slide_name import printable
from longvit.slides.tile_table import TileTable
from longvit.slides.tiled_level import TiledLevel, written_levels
from longvit.slides.tiled_reader import SharedFile, offset_in

_VOLUME = "VOLUME"
_OTHER_IMAGES = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
_SHAPE_TOLERANCE = 0.02
"""Relative difference in shape between a level and level 0, beside two pixels."""


class DicomLevels(NamedTuple):
    """Levels of a slide and what its files say about them."""

    levels: tuple[TiledLevel, ...]
    """Offsets are those of `tiled_reader.offset_in`."""
    files: tuple[Path, ...]
    in_items: tuple[bool, ...]
    """True for each file whose frames are in items."""
    level0: Instance
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Frames:
    """Frames of all files of one level."""

    columns: NDArray[np.int64]
    rows: NDArray[np.int64]
    z_mm: NDArray[np.float64]
    path_of: NDArray[np.int64]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    def kept(self, mask: NDArray[np.bool_]) -> _Frames:
        return _Frames(*(values[mask] for values in vars(self).values()))


def read_levels(path: Path, files: Sequence[Path], *, walk: bool = False) -> DicomLevels:
    """Levels of the slide that `path`, one of `files` or their folder, names.

    `walk`: every item of the pixels is visited. Raises `InputError` for files that are no slide, that contradict each
    other or themselves, and for several slides in one series; `UnsupportedError` for a codec that is not read.
    """
    notes: list[str] = []
    volumes = _volumes(path, files, notes)
    instances = _one_pyramid(path, [read_instance(file, walk=walk) for file in volumes], notes)
    instances = _without_copies(instances, notes)
    by_size: dict[tuple[int, int], list[Instance]] = {}
    for instance in instances:
        check_tile(instance)
        by_size.setdefault(instance.size_px, []).append(instance)
    sizes = sorted(by_size, key=lambda size: -size[0] * size[1])
    first = by_size[sizes[0]][0]
    used = tuple(instance.path for instance in instances)
    wanted = first.optical_paths[0][0] if first.optical_paths else ""
    levels: list[TiledLevel] = []
    for size in sizes:
        group = by_size[size]
        if (why := _unlike(group, first, wanted)) is not None:
            notes.append(f"its level of {size[0]} × {size[1]} px is not used: {why}")
            continue
        levels.append(_level(group, len(levels), first, used, wanted, notes))
    kept = written_levels(path, levels)
    notes += _unwritten(levels, kept)
    return DicomLevels(
        tuple(kept), used, tuple(instance.frames.in_items for instance in instances), first, tuple(notes)
    )


def _volumes(path: Path, files: Sequence[Path], notes: list[str]) -> list[Path]:
    """Files of the pyramid, without labels, overviews and thumbnails."""
    flavours = {file: image_flavour(file) for file in sorted(files)}
    volumes = [file for file, (flavour, _) in flavours.items() if flavour == _VOLUME]
    if not volumes:
        found = ", ".join(sorted({flavour.lower()[:32] or "not stated" for flavour, _ in flavours.values()}))
        raise InputError(
            f"{path}: not a whole-slide DICOM: no file of its series is a level of the slide (ImageType VOLUME); "
            f"found: {found}"
        )
    largest = max(width * height for file, (_, (width, height)) in flavours.items() if file in volumes)
    for file, (flavour, (width, height)) in flavours.items():
        if flavour == _VOLUME or flavour in _OTHER_IMAGES:
            continue
        if width * height >= largest or not flavour:
            raise damaged(file, f"its ImageType is {flavour[:32] or 'missing'!r}, so its place in the slide is unknown")
        notes.append(f"{printable(file.name)} is not used: its ImageType is {printable(flavour[:32])}")
    return volumes


def _one_pyramid(path: Path, instances: list[Instance], notes: list[str]) -> list[Instance]:
    """Files of the pyramid of the file that was given. Raises `InputError` for a folder of several."""
    fields = zip(*(instance.pyramid for instance in instances), strict=True)
    compared = [all(values) for values in fields]
    keys = [tuple(value for value, is_used in zip(one.pyramid, compared, strict=True) if is_used) for one in instances]
    if len(set(keys)) == 1:
        return instances
    given = next((key for instance, key in zip(instances, keys, strict=True) if instance.path == path), None)
    if given is None:
        names = [str(instances[keys.index(key)].path) for key in dict.fromkeys(keys)]
        raise InputError(
            f"{path}: {len(names)} slides or pyramids in one series; name one of their files "
            f"({', '.join(map(printable, names[:3]))}{', …' if names[3:] else ''})"
        )
    notes.append(f"its series has {len(set(keys))} slides or pyramids: that of {printable(path.name)} is read")
    return [instance for instance, key in zip(instances, keys, strict=True) if key == given]


def _without_copies(instances: list[Instance], notes: list[str]) -> list[Instance]:
    by_uid: dict[str, Instance] = {}
    for instance in instances:
        other = by_uid.setdefault(instance.uid or str(instance.path), instance)
        if other is instance:
            continue
        if other.path.stat().st_size != instance.path.stat().st_size:
            raise InputError(
                f"{instance.path}: the SOPInstanceUID of {printable(other.path.name)}, but another size; keep the "
                f"whole one of both"
            )
        notes.append(f"{printable(instance.path.name)} is not used: a copy of {printable(other.path.name)}")
    return list(by_uid.values())


def _unlike(group: list[Instance], first: Instance, wanted: str) -> str | None:
    """Reason why a level does not show the same as level 0; None if it does."""
    (width, height), (width0, height0) = group[0].size_px, first.size_px
    difference = abs(height - height0 * width / width0)
    if difference > 2 + _SHAPE_TOLERANCE * height and abs(width - width0 * height / height0) > 2:
        return "its shape differs from that of level 0"
    for instance in group:
        if instance.orientation and first.orientation and instance.orientation != first.orientation:
            return f"its orientation on the glass ({instance.orientation}) differs from that of level 0"
    if wanted and not any(wanted == name or not name for one in group for name, _ in one.optical_paths or (("", ""),)):
        return f"it lacks the optical path {wanted[:16]!r}"
    return None


def _level(
    group: list[Instance], index: int, first: Instance, files: tuple[Path, ...], wanted: str, notes: list[str]
) -> TiledLevel:
    one = group[0]
    (width_px, height_px), (tile_w, tile_h) = one.size_px, one.tile_px
    columns, rows = -(-width_px // tile_w), -(-height_px // tile_h)
    for other in group[1:]:
        for what in ("tile_px", "syntax", "photometric", "samples", "planar"):
            if getattr(other, what) != getattr(one, what):
                raise InputError(
                    f"{other.path}: of the size of {printable(one.path.name)}, {width_px} × {height_px} px, with other "
                    f"tiles or another codec; keep one of both in the folder"
                )
    _check_parts(group)
    frames = _one_path(_frames_of(group, files, wanted), group, index, notes)
    frames = _one_plane(frames, columns, index, notes)
    at = frames.rows * columns + frames.columns
    _check_once(at, frames, columns, group)
    offsets, counts = (np.zeros(columns * rows, np.int64) for _ in range(2))
    offsets[at], counts[at] = frames.offsets, frames.counts
    missing = columns * rows - len(at)
    if missing and index == 0:
        notes.append(f"{missing} of {columns * rows} tiles of level 0 were never written: they are background")
    colours = _jpeg_colours(one, frames, files)
    stated = "RGB" if one.photometric == "RGB" else "YCbCr"
    if colours not in (None, stated):
        notes.append(f"level {index}: its PhotometricInterpretation says {stated}, its JPEG tiles are {colours}")
    return TiledLevel(
        level=Level(
            index=index,
            size_px=one.size_px,
            downsample=(first.size_px[0] / width_px + first.size_px[1] / height_px) / 2,
            tile_px=one.tile_px,
            compression=CODECS.get(one.syntax, ""),
        ),
        columns=columns,
        rows=rows,
        planes=1,
        table=TileTable(offsets, counts, np.zeros(columns * rows, np.uint8)),
        decoder=frame_decoder(one.syntax, one.photometric, one.samples, one.planar, one.tile_px, colours),
    )


def _check_parts(group: list[Instance]) -> None:
    """Raises `InputError` where a concatenation lacks a part, or its parts overlap."""
    by_uid: dict[str, list[Instance]] = {}
    for instance in group:
        if instance.part is not None:
            by_uid.setdefault(instance.part.uid, []).append(instance)
    for parts in by_uid.values():
        next_frame, total = 0, max(instance.part.total for instance in parts if instance.part is not None)
        for number, instance in enumerate(sorted(parts, key=_frames_before), 1):
            if instance.part is None or instance.part.frames_before != next_frame or instance.part.number != number:
                raise damaged(instance.path, f"part {number} of its concatenation is missing, or two parts overlap")
            next_frame += len(instance.positions.columns)
        expected = parts[0].frames_of_level
        if (total and total != len(parts)) or (expected and expected != next_frame):
            raise damaged(
                parts[0].path,
                f"{len(parts)} of {total or 'an unknown number of'} parts of its concatenation are there, with "
                f"{next_frame} of {expected or 'an unknown number of'} frames",
            )


def _frames_before(instance: Instance) -> int:
    return -1 if instance.part is None else instance.part.frames_before


def _frames_of(group: list[Instance], files: tuple[Path, ...], wanted: str) -> _Frames:
    """Frames of all files of a level; `path_of` is 0 for the wanted optical path."""
    parts = []
    for instance in group:
        file, positions = files.index(instance.path), instance.positions
        identifiers = [name for name, _ in instance.optical_paths]
        index = identifiers.index(wanted) if wanted in identifiers else 0
        path_of = (positions.path_of - index) % max(1, len(identifiers), int(positions.path_of.max()) + 1)
        if wanted and identifiers and wanted not in identifiers:
            path_of = path_of + 1
        offsets = instance.frames.offsets + offset_in(file, 0)
        parts.append((positions.columns, positions.rows, positions.z_mm, path_of, offsets, instance.frames.counts))
    return _Frames(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _one_path(frames: _Frames, group: list[Instance], index: int, notes: list[str]) -> _Frames:
    paths = dict.fromkeys(path for instance in group for path in instance.optical_paths)
    n = max(len(paths), len(np.unique(frames.path_of)))
    if n == 1 or not frames.path_of.any():
        return frames
    if index == 0:
        name = next((" ".join(part for part in path if part) for path in paths), "")
        notes.append(f"optical path 1 of {n} is read ({printable(name[:64]) or 'not named'})")
    return frames.kept(frames.path_of == 0)


def _one_plane(frames: _Frames, columns: int, index: int, notes: list[str]) -> _Frames:
    """Frames of the middle focal plane; all of them where each place has one."""
    at = frames.rows * columns + frames.columns
    planes = np.unique(frames.z_mm)
    if len(planes) == 1 or len(np.unique(at)) == len(at):
        return frames
    middle = (len(planes) - 1) // 2
    if index == 0:
        notes.append(f"focal plane {middle + 1} of {len(planes)} is read (z = {planes[middle] * 1e3:.4g} µm)")
    return frames.kept(frames.z_mm == planes[middle])


def _check_once(at: NDArray[np.int64], frames: _Frames, columns: int, group: list[Instance]) -> None:
    """Raises `InputError` where two frames show one place."""
    places, counts = np.unique(at, return_counts=True)
    if len(places) == len(at):
        return
    row, column = divmod(int(places[counts.argmax()]), columns)
    width_px, height_px = group[0].size_px
    names = ", ".join(printable(instance.path.name) for instance in group[:3])
    raise InputError(
        f"{group[0].path}: two frames show tile ({column}, {row}) of its level of {width_px} × {height_px} px: damaged"
        f", or two images of one size in a series ({names}): keep one of them in the folder"
    )


def _jpeg_colours(one: Instance, frames: _Frames, files: tuple[Path, ...]) -> str | None:
    """Colours that the largest JPEG stream of a level states itself; None where it states none."""
    if CODECS.get(one.syntax) != "jpeg" or one.samples == 1 or not len(frames.counts):
        return None
    largest = int(frames.counts.argmax())
    index, at = divmod(int(frames.offsets[largest]), offset_in(1, 0))
    try:
        data = SharedFile(files[index]).read(at, int(frames.counts[largest]))
        header = read_jpeg_header(joined_fragments(data))
    except (ValueError, OSError):
        return None  # a damaged tile: it is counted when it is read
    return None if header is None else header.colours


def _unwritten(levels: Sequence[TiledLevel], kept: Sequence[TiledLevel]) -> list[str]:
    sizes = {tiled.level.size_px for tiled in kept}
    return [
        f"{int(tiled.table.empty.sum())} of {len(tiled.table.counts)} tiles of its level of {tiled.level.size_px[0]} × "
        f"{tiled.level.size_px[1]} px were never written, though the finer level has pixels there: that level is not "
        f"used"
        for tiled in levels
        if tiled.level.size_px not in sizes
    ]
