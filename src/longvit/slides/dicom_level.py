"""One level of a DICOM slide: the frames of its files, put in the places that they show.

A level may be in several files: the parts of a concatenation, one file per optical path or focal plane, or some tiles
in each. Of several optical paths the first is read, of several focal planes the middle one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.slides.dicom_codec import CODECS, frame_decoder, frame_size, jpeg_2000_coding
from longvit.slides.dicom_frames import joined_fragments
from longvit.slides.dicom_header import damaged
from longvit.slides.dicom_instance import Instance
from longvit.slides.jpeg_2000 import decodes_to_rgb
from longvit.slides.jpeg_file import read_jpeg_header
from longvit.slides.pixel_reader import Level
from longvit.slides.slide_name import printable
from longvit.slides.tile_table import TileTable
from longvit.slides.tiled_level import TiledLevel
from longvit.slides.tiled_reader import SharedFile, offset_in


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


def level_of(
    group: list[Instance], index: int, first: Instance, files: tuple[Path, ...], wanted: str, notes: list[str]
) -> TiledLevel:
    """The level of the files in `group`, which are among `files`; `first` is one of level 0.

    `wanted`: identifier of the optical path that is read. What is left out is added to `notes`. Raises `InputError`
    where the files contradict each other, `UnsupportedError` for a codec that is not read.
    """
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
    largest = _largest_frames(frames, files) if one.frames.in_items else []
    _check_frame_size(one, largest)
    header = read_jpeg_header(largest[0]) if largest and CODECS.get(one.syntax) == "jpeg" else None
    colours = None if header is None or one.samples != 3 else header.colours or ("YCbCr" if header.is_jfif else None)
    stated = "RGB" if one.photometric == "RGB" else "YCbCr"
    if colours not in (None, stated):
        notes.append(f"level {index}: its PhotometricInterpretation says {stated}, its JPEG tiles are {colours}")
    if one.photometric in ("YBR_ICT", "YBR_RCT") and largest and not any(map(decodes_to_rgb, largest)):
        notes.append(
            f"level {index}: its PhotometricInterpretation says {one.photometric}, its streams are read as RGB"
        )
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
        decoder=frame_decoder(
            one.syntax,
            one.photometric,
            one.samples,
            one.planar,
            one.tile_px,
            colours,
            jpeg_2000_coding(one.syntax, one.photometric, largest),
        ),
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
        notes.append(f"optical path 1 of {n} is read ({name[:64] or 'not named'})")
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


def _largest_frames(frames: _Frames, files: tuple[Path, ...]) -> list[bytes]:
    """The three frames of a level with the most bytes, of those that can be read; a damaged tile is counted later."""
    found = []
    for largest in np.argsort(-frames.counts, kind="stable")[:3].tolist():
        index, at = divmod(int(frames.offsets[largest]), offset_in(1, 0))
        with contextlib.suppress(ValueError, OSError):
            found.append(joined_fragments(SharedFile(files[index]).read(at, int(frames.counts[largest]))))
    return found


def _check_frame_size(one: Instance, largest: list[bytes]) -> None:
    """Raises `InputError` where the streams state another size than that of the tiles."""
    sizes = {frame_size(one.syntax, data) for data in largest} - {None}
    if len(sizes) == 1 and one.tile_px not in sizes:
        ((width, height),) = (size for size in sizes if size is not None)
        raise damaged(
            one.path, f"its frames have {width} × {height} px, it states tiles of {one.tile_px[0]} × {one.tile_px[1]}"
        )
