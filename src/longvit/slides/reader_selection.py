"""Which reader reads a file, decided once, with the reason; what the file says about itself comes along.

For an SVS, a plain TIFF and an OME-TIFF the fast path (`tiled_tiff`) is taken after it has agreed with OpenSlide on
one tile per level; every other scanner's format is OpenSlide's. OpenSlide is no witness where it looks at another image
of the file (it takes a plain TIFF's first one) or turns tiles one by one (the tag Orientation).
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

if TYPE_CHECKING:
    from longvit.slides.openslide_reader import OpenSlideReader
    from longvit.slides.tiff_header import TiffHeader
    from longvit.slides.tiled_tiff import TiledTiffReader

ReaderName = Literal["auto", "openslide", "tiff"]

_LOG = logging.getLogger("longvit.slides")
_WHITE: Rgb = (255, 255, 255)
# What OpenSlide calls the formats whose tiles mean nothing but themselves. Others overlap, shift or leave out tiles.
_PLAIN_VENDORS = ("aperio", "generic-tiff", None)
_LARGEST_DIFFERENCE = 1  # grey levels
_COMPARED_PX = 1024  # a side of what is compared of a tile: some files are one tile of gigabytes
# Decoders round differently by a few; more is another picture, and which one is right nobody can tell from here.
_OTHER_IMAGE = 32
_COLOURS = {5: "CMYK", 6: "YCbCr", 8: "CIELAB"}  # PhotometricInterpretation
_JPEG = 7
# Formats that are more than the tiles of a TIFF: a file with such a name that OpenSlide does not know is damaged.
_OWN_FORMATS = {".ndpi": ("hamamatsu",), ".scn": ("leica",), ".bif": ("ventana",)}


_SAID: set[tuple[Path, str]] = set()
"""What this process logged of its slides: one is opened more than once."""


@dataclass(frozen=True)
class Opened:
    """An open file: its reader, why that one, and what the file says."""

    kind: Kind
    vendor: str
    reader: PixelReader
    reason: str
    files: tuple[Path, ...]
    """All files that make the slide."""
    candidates: tuple[Candidate, ...]
    """What the file says about its resolution, in the resolver's order."""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    """OpenSlide's properties; empty where it does not open the file."""
    notes: tuple[str, ...] = ()
    """What a user should know about this file and how it is read, as clauses; each was logged once."""


def open_with_best_reader(path: Path, reader: ReaderName) -> Opened:
    """Opens `path`. Raises `InputError` for what no reader reads and for a forced reader that cannot."""
    opened = _opened(path, reader)
    for note in opened.notes:
        if (path, note) not in _SAID:
            _SAID.add((path, note))
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
        return _open_dicom(path, kind)
    return _open_other(path, kind)


def _open_tiff(path: Path, wanted: ReaderName) -> Opened:
    from longvit.slides.openslide_reader import OpenSlideReader, openslide_vendor
    from longvit.slides.tiff_header import read_tiff_header
    from longvit.slides.tile_table import doubts_of
    from longvit.slides.tiled_tiff import TiledTiffReader

    header: TiffHeader | None = None
    no_tiles = ""
    try:
        header = read_tiff_header(path)  # before OpenSlide: refuses impossible sizes
    except UnsupportedError as error:
        no_tiles = str(error)
    vendor = openslide_vendor(path)
    _check_name(path, vendor)
    slide: OpenSlideReader | None = None
    no_openslide = "OpenSlide does not know the format"
    if vendor is not None:
        try:
            slide = OpenSlideReader(path)
            check_side(path, *slide.levels[0].size_px)
        except UnsupportedError as error:
            no_openslide = str(error)
    # Of the file as a whole, so also where OpenSlide does not read the pixels; not of another image of a plain TIFF.
    facts = slide.properties if slide is not None else {}
    # Hamamatsu bends the format. Of any other file the directory is damaged, or strange enough to be asked for by name.
    trusted = vendor == "hamamatsu" or (vendor not in _PLAIN_VENDORS and wanted == "openslide")
    if header is None and (slide is None or not trusted):
        raise InputError(f"{path}: damaged or cut off: {no_tiles}; copy or download it again")
    tiles: TiledTiffReader | None = None
    if header is not None and vendor not in _PLAIN_VENDORS:
        no_tiles = f"the format {vendor} is more than its tiles"
    elif header is not None:
        if slide is not None and _no_witness(header, slide):
            no_openslide, slide = _no_witness(header, slide), None
        try:
            # Also where OpenSlide is asked for: it would read 16 bits or one channel of many without a word.
            tiles = TiledTiffReader(path, header, slide.background if slide is not None else _WHITE)
        except UnsupportedError as error:
            no_tiles = f"the fast path does not read {error}"
    if tiles is None and slide is None:
        raise InputError(
            f"{path}: no reader takes it: {no_tiles}; {no_openslide}: convert it to a tiled RGB TIFF "
            f"(`vips colourspace a b.tif srgb`, then `vips tiffsave --tile --pyramid`)"
        )
    if tiles is not None and slide is not None and tiles.levels[0].size_px != slide.levels[0].size_px:
        ours, theirs = ("{} × {} px".format(*reader.levels[0].size_px) for reader in (tiles, slide))
        raise InputError(
            f"{path}: damaged, or written wrongly: its directories give {ours}, OpenSlide finds {theirs}; copy or "
            f"download it again"
        )

    if slide is None and vendor != "aperio":
        facts = {}
    reader: PixelReader | None
    if wanted == "openslide":
        reader, reason = slide, "asked for" if slide is not None else no_openslide
        if tiles is not None and slide is not None and slide.vendor != "aperio" and tiles.left_out_px:
            reader, reason = None, (*(header.notes if header else ()), *tiles.notes)[0]
    elif wanted == "tiff":
        reader, reason = tiles, "asked for" if tiles is not None else no_tiles
    else:
        reader, reason = _better(path, slide, tiles, no_openslide, no_tiles)
    if reader is None:
        raise InputError(f"{path}: the reader {wanted} does not take it: {reason}; leave --reader at auto")
    notes: tuple[str, ...] = ()
    if header is not None and vendor in _PLAIN_VENDORS:
        notes = _notes(header, slide, tiles, reader, reason)
    elif header is not None:
        notes = tuple(doubts_of(header.directories))
    name, candidates = vendor, tuple(openslide_candidates(facts))
    orientation = UPRIGHT
    if header is not None and vendor in _PLAIN_VENDORS:
        orientation = header.orientation
        candidates += header.candidates
        if vendor != "aperio":
            name = "ome-tiff" if header.ome_xml is not None else "generic-tiff"
    return Opened(
        Kind.TIFF,
        str(name),
        upright(reader, orientation),
        reason,
        (path,),
        upright_candidates(candidates, orientation),
        facts,
        notes,
    )


def _check_name(path: Path, vendor: str | None) -> None:
    """Refuses a scanner's own format that OpenSlide does not know as such: its tiles alone are another picture."""
    expected = _OWN_FORMATS.get(path.suffix.lower())
    if (expected is not None and vendor not in expected) or (path.suffix.lower() == ".svs" and vendor is None):
        found = "OpenSlide knows no format in it" if vendor is None else f"OpenSlide finds the format {vendor}"
        raise InputError(
            f"{path}: named {path.suffix}, but {found}: damaged or cut off (copy or download it again); rename it to "
            f"{path.stem}.tif if it is a plain TIFF"
        )


def _no_witness(header: TiffHeader, slide: OpenSlideReader) -> str:
    """Why OpenSlide's pixels are not those of the slide, or ""."""
    if header.orientation != UPRIGHT:
        return "OpenSlide turns tiles one by one where the tag Orientation is not 1"
    if header.directory:
        return "OpenSlide takes the first image of the file, {} × {} px".format(*slide.levels[0].size_px)
    return ""


def _notes(
    header: TiffHeader,
    slide: OpenSlideReader | None,
    tiles: TiledTiffReader | None,
    reader: PixelReader,
    reason: str,
) -> tuple[str, ...]:
    notes = list(header.notes)
    if header.orientation != UPRIGHT:
        notes.append(orientation_note(header.orientation))
    if tiles is not None and reader is tiles:
        notes += tiles.notes
    photometric = header.pages[0].photometric
    if tiles is None and photometric in _COLOURS and header.pages[0].compression != _JPEG:
        notes.append(
            f"its colours are {_COLOURS[photometric]}, which OpenSlide turns into RGB without a colour profile"
        )
    if tiles is not None and reader is slide and reason != "asked for":
        notes.append(f"read through OpenSlide, since {reason}")
    return tuple(notes)


def _better(
    path: Path, slide: OpenSlideReader | None, tiles: TiledTiffReader | None, no_openslide: str, no_tiles: str
) -> tuple[PixelReader | None, str]:
    """The reader that auto takes, and why."""
    if tiles is None or slide is None:
        return (slide, no_tiles) if tiles is None else (tiles, no_openslide)
    if slide.vendor == "aperio" and tiles.leaves_tiles_out():
        return slide, "the file leaves tiles out, which OpenSlide fills from another level"
    disagreement = disagreement_with(slide, tiles)
    if disagreement is None:
        return tiles, "its tiles agree with OpenSlide's"
    if disagreement.grey_levels > _OTHER_IMAGE:
        raise InputError(
            f"{path}: the two readers show different pictures (the fast path {disagreement}); which one is right "
            f"cannot be told: look at both and pass --reader tiff or --reader openslide, or convert it to a tiled TIFF"
        )
    return slide, f"the fast path {disagreement}"


@dataclass(frozen=True)
class Disagreement:
    """How the fast path differs from OpenSlide, as a clause."""

    text: str
    grey_levels: int = 0
    """The largest difference of pixels; 0 where none were compared."""

    def __str__(self) -> str:
        return self.text


def disagreement_with(slide: PixelReader, tiles: TiledTiffReader) -> Disagreement | None:
    """Compares one tile per level with OpenSlide; says how they differ by more than one grey level, or None.

    On level 0 it is the tile with the most bytes; below, the tile at the corner, the only one whose place OpenSlide
    takes exactly. A tile that one of them cannot decode is no witness: the next fullest is taken, up to three. Where
    level 0 has no more tiles than that, they are damaged rather than of a kind that only OpenSlide decodes. Levels that
    are in the file and that the fast path leaves out (never written, another shape) are not asked for.
    """
    sizes = [level.size_px for level in tiles.levels]
    for level in slide.levels:
        if level.size_px in tiles.left_out_px:
            continue
        if level.size_px not in sizes:
            return Disagreement(f"has no level of {level.size_px[0]} × {level.size_px[1]} px")
        index = sizes.index(level.size_px)
        tile_w, tile_h = tiles.levels[index].tile_px
        places = tiles.fullest_tiles(index, 3) if index == 0 else [(0, 0)]
        failures = []
        for column, row in places:
            x_px, y_px = column * tile_w, row * tile_h
            height_px, width_px = min(tile_h, level.size_px[1] - y_px), min(tile_w, level.size_px[0] - x_px)
            shape = (min(height_px, _COMPARED_PX), min(width_px, _COMPARED_PX), 4)
            theirs, ours = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
            their_fault = slide.read_block(level.index, x_px, y_px, theirs)
            our_fault = tiles.read_block(index, x_px, y_px, ours)
            if our_fault and not their_fault:
                failures.append(our_fault[0].message)
            if our_fault or their_fault:
                continue
            difference = int(np.abs(theirs[..., :3].astype(np.int16) - ours[..., :3]).max())
            if difference > _LARGEST_DIFFERENCE:
                return Disagreement(
                    f"differs from OpenSlide by {difference} grey levels in tile ({column}, {row}) of level {index}",
                    difference,
                )
            failures = []
            break
        if index == 0 and len(failures) == len(places) < tiles.n_tiles(0):
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


def _open_dicom(path: Path, kind: Kind) -> Opened:
    from longvit.slides.dicom_frames import check_frames
    from longvit.slides.openslide_reader import OpenSlideReader

    slide = dicom_slide(path)
    file = path
    if kind is Kind.DICOM_FOLDER:
        file = slide.path
        kind_of(file)  # says what is wrong with a file that is none
    for part in slide.files:
        check_frames(part)
    try:
        reader = OpenSlideReader(file)
    except UnsupportedError as error:
        raise InputError(f"{path}: no whole-slide DICOM that OpenSlide reads ({error})") from error
    check_side(path, *reader.levels[0].size_px)
    candidates = tuple(openslide_candidates(reader.properties))
    files = tuple(sorted(slide.files))
    return Opened(kind, reader.vendor, reader, "the only reader of DICOM", files, candidates, reader.properties)


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
