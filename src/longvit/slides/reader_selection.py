"""Selection of the reader for a file, made once, with the reason and the file's metadata.

For an SVS, a plain TIFF and an OME-TIFF the fast path (`tiled_tiff`) is used if it agrees with OpenSlide on one tile
per level. DICOM has a separate fast path, which OpenSlide does not confirm: it reads only some layouts, and a damaged
table of frames ends its process. Every other scanner's format is left to OpenSlide. OpenSlide cannot confirm the fast
path where it reads another image of the file (the first one of a plain TIFF) or rotates tiles one by one (the tag
Orientation).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from longvit.errors import InputError
from longvit.files import is_folder
from longvit.slides.file_kind import Kind, kind_of
from longvit.slides.folder import dicom_slide, require_plain_files
from longvit.slides.mpp import Candidate, openslide_candidates
from longvit.slides.oriented import UPRIGHT, orientation_note, upright, upright_candidates
from longvit.slides.pixel_reader import PixelReader, Rgb, UnsupportedError, check_side
from longvit.slides.slide_name import printable

if TYPE_CHECKING:
    from longvit.slides.openslide_reader import OpenSlideReader
    from longvit.slides.tiff_header import TiffHeader
    from longvit.slides.tiled_tiff import TiledTiffReader

ReaderName = Literal["auto", "openslide", "tiff"]

_LOG = logging.getLogger("longvit.slides")
_WHITE: Rgb = (255, 255, 255)
# OpenSlide's names of the formats whose tiles form a plain grid. In others tiles overlap, shift or are left out.
_PLAIN_VENDORS = ("aperio", "generic-tiff", None)
_LARGEST_DIFFERENCE = 1  # grey levels
_COMPARED_PX = 1024  # side of the compared part of a tile: some files are one tile of gigabytes
# Rounding of decoders differs by a few grey levels; more is another image, and which one is right is unknown.
_ANOTHER_IMAGE = 32
_UNKNOWN_FORMAT = "OpenSlide does not know the format"
_COLOURS = {5: "CMYK", 6: "YCbCr", 8: "CIELAB"}  # PhotometricInterpretation
_JPEG = 7
# Formats that are more than the tiles of a TIFF: a file with such a name that OpenSlide does not detect is damaged.
_OWN_FORMATS = {".ndpi": ("hamamatsu",), ".scn": ("leica",), ".bif": ("ventana",)}


_LOGGED: set[tuple[Path, str]] = set()
"""Notes that this process logged; a slide is opened more than once."""


@dataclass(frozen=True)
class Opened:
    """An open file: its reader, the reason for it, and the file's metadata."""

    kind: Kind
    vendor: str
    reader: PixelReader
    reason: str
    files: tuple[Path, ...]
    """All files of the slide."""
    candidates: tuple[Candidate, ...]
    """Candidates for the resolution, in the resolver's order."""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    """OpenSlide's properties; empty where it does not open the file."""
    notes: tuple[str, ...] = ()
    """Notes about this file and its reading, as clauses; each was logged once."""


def open_with_best_reader(path: Path, reader: ReaderName) -> Opened:
    """Opens `path`. Raises `InputError` where no reader can read it, or a forced reader cannot."""
    opened = _opened(path, reader)
    for note in opened.notes:
        if (path, note) not in _LOGGED:
            _LOGGED.add((path, note))
            _LOG.warning("%s: %s", path, note)
    return opened


def _opened(path: Path, reader: ReaderName) -> Opened:
    if reader not in ("auto", "openslide", "tiff"):
        raise InputError(f"reader {reader!r} is unknown; take one of auto, openslide, tiff")
    kind = Kind.DICOM_FOLDER if is_folder(path) else kind_of(path)
    if kind is Kind.TIFF:
        return _open_tiff(path, reader)
    if reader == "tiff":
        raise InputError(f"{path}: the reader tiff reads no {kind.value}; leave --reader at auto")
    if kind in (Kind.PNG, Kind.JPEG):
        if reader == "openslide":
            raise InputError(f"{path}: the reader openslide reads no {kind.value}; leave --reader at auto")
        return _open_image(path, kind)
    if kind in (Kind.DICOM, Kind.DICOM_FOLDER):
        return _open_dicom(path, kind, reader)
    return _open_other(path, kind)


def _open_tiff(path: Path, wanted: ReaderName) -> Opened:
    readers = _tiff_readers(path, wanted)
    reader, reason = _selected(path, readers, wanted)
    if reader is None:
        raise InputError(f"{path}: the reader {wanted} cannot read it: {reason}; leave --reader at auto")
    return _opened_tiff(path, readers, reader, reason)


@dataclass(frozen=True)
class _TiffReaders:
    """The readers that could open a TIFF, with the reasons of those that could not."""

    header: TiffHeader | None
    vendor: str | None
    properties: Mapping[str, str]
    openslide: OpenSlideReader | None
    """None where OpenSlide cannot read the slide's image."""
    no_openslide: str
    tiled: TiledTiffReader | None
    """None where the fast path cannot read the file."""
    no_tiled: str

    @property
    def is_plain(self) -> bool:
        """True if the header describes all of the file."""
        return self.header is not None and self.vendor in _PLAIN_VENDORS


def _tiff_readers(path: Path, wanted: ReaderName) -> _TiffReaders:
    """Opens a TIFF with both readers. Raises `InputError` where neither reads it, or they disagree on its size."""
    from longvit.slides.openslide_reader import openslide_vendor
    from longvit.slides.tiff_header import read_tiff_header
    from longvit.slides.tiled_tiff import TiledTiffReader

    header: TiffHeader | None = None
    no_tiled = ""
    try:
        header = read_tiff_header(path)  # before OpenSlide: refuses impossible sizes
    except UnsupportedError as error:
        no_tiled = str(error)
    vendor = openslide_vendor(path)
    _check_name(path, vendor)
    openslide, no_openslide = _try_openslide(path, vendor)
    # Properties are those of the whole file, so they hold even where OpenSlide does not read the pixels.
    properties = openslide.properties if openslide is not None else {}
    # Hamamatsu departs from the format. In any other file a broken directory means damage, unless OpenSlide is forced.
    is_trusted = vendor == "hamamatsu" or (vendor not in _PLAIN_VENDORS and wanted == "openslide")
    if header is None and (openslide is None or not is_trusted):
        raise InputError(f"{path}: damaged or cut off: {no_tiled}; copy or download it again")
    tiled: TiledTiffReader | None = None
    if header is not None and vendor not in _PLAIN_VENDORS:
        no_tiled = f"the format {vendor} is more than its tiles"
    elif header is not None:
        if openslide is not None and (difference := _different_image(header, openslide)):
            no_openslide, openslide = difference, None
        try:
            # Also where OpenSlide is forced: it would silently read 16 bits or one channel of many.
            tiled = TiledTiffReader(path, header, openslide.background if openslide is not None else _WHITE)
        except UnsupportedError as error:
            no_tiled = f"the fast path does not read {error}"
    if openslide is None and vendor != "aperio":  # those of another image of a plain TIFF
        properties = {}
    if tiled is None and openslide is None:
        raise InputError(
            f"{path}: no reader can read it: {no_tiled}; {no_openslide}: convert it to a tiled RGB TIFF "
            f"(`vips colourspace a b.tif srgb`, then `vips tiffsave --tile --pyramid`)"
        )
    if tiled is not None and openslide is not None and tiled.levels[0].size_px != openslide.levels[0].size_px:
        tiled_size, openslide_size = ("{} × {} px".format(*r.levels[0].size_px) for r in (tiled, openslide))
        raise InputError(
            f"{path}: damaged, or written wrongly: its directories give {tiled_size}, OpenSlide finds "
            f"{openslide_size}; copy or download it again"
        )
    return _TiffReaders(header, vendor, properties, openslide, no_openslide, tiled, no_tiled)


def _try_openslide(path: Path, vendor: str | None) -> tuple[OpenSlideReader | None, str]:
    """OpenSlide's reader of a TIFF, or None with the reason."""
    from longvit.slides.openslide_reader import OpenSlideReader

    if vendor is None:
        return None, _UNKNOWN_FORMAT
    try:
        reader = OpenSlideReader(path)
        check_side(path, *reader.levels[0].size_px)
    except UnsupportedError as error:
        return None, str(error)
    return reader, _UNKNOWN_FORMAT


def _selected(path: Path, readers: _TiffReaders, wanted: ReaderName) -> tuple[PixelReader | None, str]:
    """The reader to use with the reason, or None with the reason against it."""
    openslide, tiled = readers.openslide, readers.tiled
    if wanted == "tiff":
        return tiled, "requested" if tiled is not None else readers.no_tiled
    if wanted == "auto":
        return _better(path, openslide, tiled, readers.no_openslide, readers.no_tiled)
    if tiled is not None and openslide is not None and openslide.vendor != "aperio" and tiled.left_out_px:
        return None, (*(readers.header.notes if readers.header else ()), *tiled.notes)[0]
    return openslide, "requested" if openslide is not None else readers.no_openslide


def _opened_tiff(path: Path, readers: _TiffReaders, reader: PixelReader, reason: str) -> Opened:
    from longvit.slides.tile_table import doubts_of

    header, vendor = readers.header, readers.vendor
    candidates = tuple(openslide_candidates(readers.properties))
    notes: tuple[str, ...] = ()
    orientation = UPRIGHT
    if header is not None and readers.is_plain:
        notes = _notes(header, readers.openslide, readers.tiled, reader, reason)
        orientation = header.orientation
        candidates += header.candidates
        if vendor != "aperio":
            vendor = "ome-tiff" if header.ome_xml is not None else "generic-tiff"
    elif header is not None:
        notes = tuple(doubts_of(header.directories))
    return Opened(
        Kind.TIFF,
        str(vendor),
        upright(reader, orientation),
        reason,
        (path,),
        upright_candidates(candidates, orientation),
        readers.properties,
        notes,
    )


def _check_name(path: Path, vendor: str | None) -> None:
    """Raises `InputError` for a scanner's format that OpenSlide does not detect: its tiles alone are another image."""
    expected = _OWN_FORMATS.get(path.suffix.lower())
    if (expected is not None and vendor not in expected) or (path.suffix.lower() == ".svs" and vendor is None):
        detected = "OpenSlide detects no format in it" if vendor is None else f"OpenSlide detects the format {vendor}"
        raise InputError(
            f"{path}: named {path.suffix}, but {detected}: damaged or cut off (copy or download it again); rename it "
            f"to {path.stem}.tif if it is a plain TIFF"
        )


def _different_image(header: TiffHeader, slide: OpenSlideReader) -> str:
    """Reason why OpenSlide's pixels are not those of the slide; empty if they are."""
    if header.orientation != UPRIGHT:
        return "OpenSlide rotates tiles one by one where the tag Orientation is not 1"
    if header.directory:
        return "OpenSlide takes the first image of the file, {} × {} px".format(*slide.levels[0].size_px)
    return ""


def _notes(
    header: TiffHeader,
    openslide: OpenSlideReader | None,
    tiled: TiledTiffReader | None,
    reader: PixelReader,
    reason: str,
) -> tuple[str, ...]:
    notes = list(header.notes)
    if header.orientation != UPRIGHT:
        notes.append(orientation_note(header.orientation))
    if tiled is not None and reader is tiled:
        notes += tiled.notes
    photometric = header.pages[0].photometric
    if tiled is None and photometric in _COLOURS and header.pages[0].compression != _JPEG:
        notes.append(
            f"its colours are {_COLOURS[photometric]}, which OpenSlide converts to RGB without a colour profile"
        )
    if tiled is not None and reader is openslide and reason != "requested":
        notes.append(f"read through OpenSlide, since {reason}")
    return tuple(notes)


def _better(
    path: Path, openslide: OpenSlideReader | None, tiled: TiledTiffReader | None, no_openslide: str, no_tiled: str
) -> tuple[PixelReader | None, str]:
    """Reader for "auto", and the reason."""
    if tiled is None or openslide is None:
        return (openslide, no_tiled) if tiled is None else (tiled, no_openslide)
    if openslide.vendor == "aperio" and tiled.leaves_tiles_out():
        return openslide, "the file leaves tiles out, which OpenSlide fills from another level"
    disagreement = disagreement_with(openslide, tiled)
    if disagreement is None:
        return tiled, "its tiles agree with OpenSlide's"
    if disagreement.grey_levels > _ANOTHER_IMAGE:
        raise InputError(
            f"{path}: the two readers show different images (the fast path {disagreement}); which one is right "
            f"is unknown: view both and pass --reader tiff or --reader openslide, or convert it to a tiled TIFF"
        )
    return openslide, f"the fast path {disagreement}"


@dataclass(frozen=True)
class Disagreement:
    """Difference between the fast path and OpenSlide, as a clause."""

    text: str
    grey_levels: int = 0
    """Largest difference of pixels; 0 where none were compared."""

    def __str__(self) -> str:
        return self.text


def disagreement_with(openslide: PixelReader, tiled: TiledTiffReader) -> Disagreement | None:
    """Compares one tile per level with OpenSlide; a difference of more than one grey level is returned, else None.

    On level 0 it is the tile with the most bytes. On lower levels it is the corner tile, the only one whose position
    OpenSlide reads exactly. A tile that either reader cannot decode is skipped for the next largest, up to three. If
    only the fast path fails on all of them, and level 0 has more tiles, the codec is probably one that only OpenSlide
    decodes. Levels that the fast path leaves out (never written, another shape) are not compared.
    """
    sizes = [level.size_px for level in tiled.levels]
    for level in openslide.levels:
        if level.size_px in tiled.left_out_px:
            continue
        if level.size_px not in sizes:
            return Disagreement(f"has no level of {level.size_px[0]} × {level.size_px[1]} px")
        index = sizes.index(level.size_px)
        tile_w, tile_h = tiled.levels[index].tile_px
        positions = tiled.fullest_tiles(index, 3) if index == 0 else [(0, 0)]
        failures = []
        for column, row in positions:
            x_px, y_px = column * tile_w, row * tile_h
            height_px, width_px = min(tile_h, level.size_px[1] - y_px), min(tile_w, level.size_px[0] - x_px)
            shape = (min(height_px, _COMPARED_PX), min(width_px, _COMPARED_PX), 4)
            openslide_pixels, tiled_pixels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
            openslide_faults = openslide.read_block(level.index, x_px, y_px, openslide_pixels)
            tiled_faults = tiled.read_block(index, x_px, y_px, tiled_pixels)
            if tiled_faults and not openslide_faults:
                failures.append(tiled_faults[0].message)
            if tiled_faults or openslide_faults:
                continue
            difference = int(np.abs(openslide_pixels[..., :3].astype(np.int16) - tiled_pixels[..., :3]).max())
            if difference > _LARGEST_DIFFERENCE:
                return Disagreement(
                    f"differs from OpenSlide by {difference} grey levels in tile ({column}, {row}) of level {index}",
                    difference,
                )
            failures = []
            break
        if index == 0 and len(failures) == len(positions) < tiled.n_tiles(0):
            return Disagreement(f"cannot decode what OpenSlide can ({failures[0]})")
    return None


def _open_image(path: Path, kind: Kind) -> Opened:
    from longvit.slides.image_file import ImageFileReader

    reader = ImageFileReader(path, kind, _WHITE)
    notes = () if reader.orientation == UPRIGHT else (orientation_note(reader.orientation),)
    return Opened(
        kind,
        kind.value.lower(),
        upright(reader, reader.orientation),
        "a plain image",
        (path,),
        upright_candidates(reader.candidates, reader.orientation),
        notes=notes,
    )


def _open_dicom(path: Path, kind: Kind, wanted: ReaderName) -> Opened:
    from longvit.slides.dicom_reader import DicomReader
    from longvit.slides.openslide_reader import OpenSlideReader

    slide = dicom_slide(path)
    file = path
    if kind is Kind.DICOM_FOLDER:
        file = slide.path
        kind_of(file)  # reports why the file is not DICOM
    files = tuple(sorted(slide.files))
    try:
        # Also before OpenSlide, which a damaged table of frames ends: then every item is visited.
        ours = DicomReader(path, files, walk=wanted == "openslide")
        if wanted == "auto":
            reason = "its frames are read from their places"
            notes = (*ours.notes, *_unread_notes(slide.unread))
            return Opened(kind, "dicom", ours, reason, files, ours.candidates, ours.properties, notes)
        reader = OpenSlideReader(file)
    except UnsupportedError as error:
        raise InputError(f"{path}: no reader reads this DICOM: {error}; convert it (wsidicomizer)") from error
    check_side(path, *reader.levels[0].size_px)
    candidates = tuple(openslide_candidates(reader.properties))
    return Opened(kind, reader.vendor, reader, "requested", files, candidates, reader.properties, ours.notes)


def _unread_notes(unread: tuple[Path, ...]) -> list[str]:
    if not unread:
        return []
    names = ", ".join(printable(path.name) for path in unread[:3])
    more = ", …" if unread[3:] else ""
    return [f"DICOM files beside it cannot be read ({names}{more}): it is incomplete if they are its parts"]


def _open_other(path: Path, kind: Kind) -> Opened:
    from longvit.slides.openslide_reader import OpenSlideReader, openslide_vendor

    if kind is Kind.MIRAX:
        require_plain_files(path.with_suffix(""))
    if openslide_vendor(path) is None:
        raise InputError(f"{path}: not a slide in a known format (see `longvit doctor` for the list)")
    try:
        reader = OpenSlideReader(path)
    except UnsupportedError as error:
        raise InputError(f"{path}: damaged or incomplete: {error}") from error
    check_side(path, *reader.levels[0].size_px)
    folder = path.with_suffix("")
    files = [path, *(sorted(f for f in folder.iterdir() if f.is_file()) if folder.is_dir() else [])]
    candidates = tuple(openslide_candidates(reader.properties))
    return Opened(
        kind, reader.vendor, reader, "the only reader of this format", tuple(files), candidates, reader.properties
    )
