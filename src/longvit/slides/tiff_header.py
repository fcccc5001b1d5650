"""Directories of a TIFF, read before any pixel: sizes, descriptions, resolution, the pages of the pyramid.

An impossible header (2^31 px on a side, a tag of a type that it never has) is refused here.
"""

from __future__ import annotations

import logging
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tifffile

from longvit.errors import InputError, one_line
from longvit.slides.mpp import Candidate, aperio_candidate, imagej_candidate, ome_candidate, resolution_candidate
from longvit.slides.ome_xml import pixels_of, planes_of
from longvit.slides.pixel_reader import UnsupportedError, check_side
from longvit.slides.tiff_image import SlideImage, directories_of, require_images, slide_image
from longvit.slides.tiff_tags import check_tags, check_unread, is_in_order, number_of
from longvit.slides.tile_table import check_directories

_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit: inch, centimetre
_NO_UNIT = 1
_COLOUR_MAP = 320


@dataclass(frozen=True)
class TiffHeader:
    """Directories of the image that is the slide; `pages` are its levels, largest first."""

    pages: tuple[tifffile.TiffPage, ...]
    ome_xml: str | None
    planes: int
    """Number of images of this size that may be channels, depths or times of one."""
    candidates: tuple[Candidate, ...]
    """Candidates for the resolution, in the resolver's order."""
    directory: int = 0
    """Index of level 0 in the file, from 0."""
    orientation: int = 1
    """Tag Orientation: 1 as stored, 2 to 8 mirrored or rotated."""
    notes: tuple[str, ...] = ()
    """Notes for the user, as clauses."""
    left_out_px: tuple[tuple[int, int], ...] = ()
    """Sizes of reduced copies that are not used."""
    directories: tuple[tifffile.TiffPage, ...] = ()
    """All images of the file."""


def read_tiff_header(path: Path) -> TiffHeader:
    """Header of a TIFF file.

    Raises `InputError` for an impossible size or tag, and `UnsupportedError` where a directory cannot be read.
    OpenSlide may still read such a file (Hamamatsu's NDPI departs from the format); otherwise it is damaged.
    """
    with _quiet_tifffile() as messages:
        try:
            with tifffile.TiffFile(path) as tiff:
                pages: list[tifffile.TiffPage] = []
                for page in directories_of(tiff):
                    check_tags(path, page)
                    if not pages:
                        check_side(path, page.imagewidth, page.imagelength)
                    pages.append(page)
                if not tiff.is_ndpi:
                    for page in pages:
                        check_unread(path, tiff, page)
                image = slide_image(pages)
                if not tiff.is_ndpi:
                    require_images(path, image.directories)
                for page in image.directories[len(pages) :]:
                    check_tags(path, page)
                check_directories(path, image.directories, tiff.filehandle.size)
                for page in image.pages:
                    check_side(path, page.imagewidth, page.imagelength)
                    page.tags.valueof(_COLOUR_MAP)  # read now, before the file is closed
                ome_xml = tiff.ome_metadata if tiff.is_ome else None
                return TiffHeader(
                    pages=image.pages,
                    ome_xml=ome_xml,
                    planes=_planes(image, ome_xml),
                    candidates=tuple(_candidates(tiff, image, ome_xml)),
                    directory=image.directory,
                    orientation=image.orientation,
                    notes=(*image.notes, *_doubts(image, messages)),
                    left_out_px=image.left_out_px,
                    directories=image.directories,
                )
        except (InputError, UnsupportedError):
            raise
        # A damaged directory breaks the parser in many ways (struct.error, KeyError, IndexError …).
        except Exception as error:
            reason = messages[0] if messages and not str(error) else one_line(error)
            raise UnsupportedError(f"its TIFF directory cannot be read ({reason})") from error


def _planes(image: SlideImage, ome_xml: str | None) -> int:
    """Number of planes from the OME-XML. Without it, a grey image among others of its size is one of many channels."""
    first = image.pages[0]
    if ome_xml is not None:
        try:
            pixels = pixels_of(ome_xml, (first.imagewidth, first.imagelength), image.directory)
        except ElementTree.ParseError:
            return 1
        return 1 if pixels is None else planes_of(pixels, first.samplesperpixel)
    return 1 if first.samplesperpixel > 1 else image.n_of_its_size


def _doubts(image: SlideImage, messages: list[str]) -> Iterator[str]:
    """Notes about possible damage that does not prevent reading."""
    if any("invalid page offset" in message or "page list" in message for message in messages):
        yield "its list of images is incomplete, so levels may be missing: possibly damaged"
    if not all(is_in_order(page) for page in image.directories):
        yield "the tags of a directory are out of order: written that way, or damaged"
    first = image.pages[0]
    size = f"{first.imagewidth}x{first.imagelength}"
    sizes = re.findall(r"\d+x\d+", first.description) if first.description.startswith("Aperio") else []
    if sizes and size not in sizes:
        yield f"its description states {sizes[0]} px, the image has {size}: cropped or resized, or damaged"


def _candidates(tiff: tifffile.TiffFile, image: SlideImage, ome_xml: str | None) -> Iterator[Candidate]:
    page = image.pages[0]
    if page.description.startswith("Aperio"):
        yield aperio_candidate(page.description)
    if ome_xml:
        yield ome_candidate(ome_xml, (page.imagewidth, page.imagelength), image.directory)
    (x, x_note), (y, y_note) = (number_of(page, code) for code in (282, 283))
    if tiff.pages.first.description.startswith("ImageJ="):
        yield imagej_candidate(tiff.pages.first.description, x, y)
    if x is None or y is None:
        note = x_note if x is None else f"no YResolution with it ({y_note})"
        yield Candidate("tiff.XResolution", note=note)
        return
    unit, unit_note = number_of(page, 296)
    if unit is None:
        unit = 2 if unit_note == "absent" else _NO_UNIT  # the format's default is the inch
    yield resolution_candidate("tiff.XResolution", x, y, _UNIT_UM.get(int(unit)))


@contextmanager
def _quiet_tifffile() -> Iterator[list[str]]:
    """Collects this thread's messages of tifffile's logger instead of printing them."""
    messages: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        messages.append(" ".join(record.getMessage().split()))
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)
