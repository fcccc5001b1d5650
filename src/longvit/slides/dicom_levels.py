"""Levels of a DICOM slide: the files of a series told apart, by what they show and by size."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from longvit.errors import InputError
from longvit.slides.dicom_header import damaged
from longvit.slides.dicom_instance import Instance, check_tile, image_flavour, read_instance
from longvit.slides.dicom_level import level_of
from longvit.slides.slide_name import printable
from longvit.slides.tiled_level import TiledLevel, written_levels

_VOLUME = "VOLUME"
_OTHER_IMAGES = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
_NOTED_RATIO = 1.1
"""Ratio of two statements of one length that is more than rounding."""
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


def read_levels(path: Path, files: Sequence[Path], *, walk: bool = False) -> DicomLevels:
    """Levels of the slide that `path`, one of `files` or their folder, names.

    `walk`: every item of the pixels is visited. Raises `InputError` for files that are no slide, that contradict each
    other or themselves, and for several slides in one series; `UnsupportedError` for a codec that is not read.
    """
    notes: list[str] = []
    volumes = _volumes(path, files, notes)
    instances = _one_pyramid(path, [read_instance(file, walk=walk) for file in volumes], notes)
    instances = _without_other_images(_without_copies(instances, notes), notes)
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
        notes += _doubts_of_spacing(group[0], first)
        levels.append(level_of(group, len(levels), first, used, wanted, notes))
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
        notes.append(f"{printable(file.name)} is not used: its ImageType is {flavour[:32]}")
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
        if not filecmp.cmp(other.path, instance.path, shallow=False):
            raise InputError(
                f"{instance.path}: the SOPInstanceUID of {printable(other.path.name)}, but another content; keep the "
                f"whole one of both"
            )
        notes.append(f"{printable(instance.path.name)} is not used: a copy of {printable(other.path.name)}")
    return list(by_uid.values())


def _without_other_images(instances: list[Instance], notes: list[str]) -> list[Instance]:
    """Files without the labels and overviews that are called VOLUME; all of them where that would leave none."""
    doubtful = [instance for instance in instances if instance.doubt]
    is_kept = len(doubtful) == len(instances)
    for instance in doubtful:
        what = "read" if is_kept else "not used"
        notes.append(f"{printable(instance.path.name)} is {what}: its ImageType is VOLUME, but {instance.doubt}")
    return instances if is_kept else [instance for instance in instances if not instance.doubt]


def _unlike(group: list[Instance], first: Instance, wanted: str) -> str | None:
    """Reason why a level does not show the same as level 0; None if it does."""
    (width, height), (width0, height0) = group[0].size_px, first.size_px
    difference = abs(height - height0 * width / width0)
    if difference > 2 + _SHAPE_TOLERANCE * height and abs(width - width0 * height / height0) > 2:
        return "its shape differs from that of level 0"
    if (fault := _spacing_fault(group[0], first)) is not None:
        return fault
    for instance in group:
        if instance.orientation and first.orientation and instance.orientation != first.orientation:
            return f"its orientation on the glass ({instance.orientation}) differs from that of level 0"
    if wanted and not any(wanted == name or not name for one in group for name, _ in one.optical_paths or (("", ""),)):
        return f"it lacks the optical path {wanted[:16]!r}"
    return None


def _spacing_fault(one: Instance, first: Instance) -> str | None:
    """Statement that a level shows another area of the glass than level 0; None for none.

    A writer may have copied the spacing of level 0 to all levels, so that one is no such statement.
    """
    if one.volume_mm and first.volume_mm:
        if _differ(one.volume_mm, first.volume_mm):
            return "its ImagedVolumeWidth and Height differ from those of level 0"
    elif one.spacing_mm and first.spacing_mm and one.spacing_mm != first.spacing_mm:
        return _spacing_clause(one, first)
    return None


def _doubts_of_spacing(one: Instance, first: Instance) -> list[str]:
    """Note about the spacing of a level that is used all the same."""
    clause = _spacing_clause(one, first) if one.spacing_mm and first.spacing_mm else None
    return [] if clause is None else [f"its level of {one.size_px[0]} × {one.size_px[1]} px: {clause}"]


def _spacing_clause(one: Instance, first: Instance) -> str | None:
    if one.spacing_mm is None or first.spacing_mm is None:
        return None
    ratios = [px0 / px for px0, px in zip(first.size_px, one.size_px, strict=True)]
    expected = first.spacing_mm[0] * ratios[0], first.spacing_mm[1] * ratios[1]
    if not _differ(one.spacing_mm, expected):
        return None
    return f"its PixelSpacing is {one.spacing_mm[0] * 1e3:.4g} µm, its size gives {expected[0] * 1e3:.4g} µm"


def _differ(values: tuple[float, float], others: tuple[float, float]) -> bool:
    return any(not 1 / _NOTED_RATIO < abs(a / b) < _NOTED_RATIO for a, b in zip(values, others, strict=True) if b)


def _unwritten(levels: Sequence[TiledLevel], kept: Sequence[TiledLevel]) -> list[str]:
    sizes = {tiled.level.size_px for tiled in kept}
    return [
        f"{int(tiled.table.empty.sum())} of {len(tiled.table.counts)} tiles of its level of {tiled.level.size_px[0]} × "
        f"{tiled.level.size_px[1]} px were never written, though the finer level has pixels there: that level is not "
        f"used"
        for tiled in levels
        if tiled.level.size_px not in sizes
    ]
