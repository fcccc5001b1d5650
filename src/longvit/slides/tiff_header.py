"""What the directories of a TIFF say, before a pixel is read: sizes, descriptions, resolution, the pyramid's pages.

A header that cannot be true (2^31 px on a side, a tile table longer than the file) is refused here.
"""

from __future__ import annotations

import logging
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tifffile

from longvit.errors import InputError
from longvit.slides.mpp import Candidate, aperio_candidate, ome_candidate, resolution_candidate
from longvit.slides.pixel_reader import UnsupportedError, check_side, one_line

_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit: inch, centimetre


@dataclass(frozen=True)
class TiffHeader:
    """The first image's directories; `pages` are its levels, largest first."""

    pages: tuple[tifffile.TiffPage, ...]
    ome_xml: str | None
    planes: int
    """How many images of this size the file holds that may be channels, depths or times of one."""
    candidates: tuple[Candidate, ...]
    """What the file says about its resolution, in the resolver's order."""


def read_tiff_header(path: Path) -> TiffHeader:
    """Reads the directories.

    Raises `InputError` for an impossible size and `UnsupportedError` where a directory cannot be read: OpenSlide may
    read it (Hamamatsu's NDPI bends the format), else the file is damaged.
    """
    with _quiet_tifffile() as messages:
        try:
            with tifffile.TiffFile(path) as tiff:
                first = tiff.pages.first
                check_side(path, first.imagewidth, first.imagelength)
                ome_xml = tiff.ome_metadata if tiff.is_ome else None
                return TiffHeader(
                    pages=tuple(_pyramid(tiff, first)),
                    ome_xml=ome_xml,
                    planes=_planes(tiff, first, ome_xml),
                    candidates=tuple(_candidates(tiff, first)),
                )
        except InputError:
            raise
        # A damaged directory may break any assumption of the parser (struct.error, KeyError, IndexError …).
        except Exception as error:
            reason = messages[0] if messages and not str(error) else one_line(error)
            raise UnsupportedError(f"its TIFF directory cannot be read ({reason})") from error


def _planes(tiff: tifffile.TiffFile, first: tifffile.TiffPage, ome_xml: str | None) -> int:
    """By the OME-XML; without one, a grey image with others of its size beside it is a channel of many."""
    if ome_xml is not None:
        return _ome_planes(ome_xml, first.samplesperpixel)
    if first.samplesperpixel > 1:
        return 1
    size = (first.imagewidth, first.imagelength)
    return sum((page.aspage().imagewidth, page.aspage().imagelength) == size for page in tiff.pages)


def _ome_planes(ome_xml: str, samples: int) -> int:
    try:
        pixels = ElementTree.fromstring(ome_xml).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return 1
    if pixels is None:
        return 1
    size_c, size_z, size_t = (int(pixels.get(f"Size{axis}", "1")) for axis in "CZT")
    return max(1, size_c // samples) * size_z * size_t


def _pyramid(tiff: tifffile.TiffFile, first: tifffile.TiffPage) -> Iterator[tifffile.TiffPage]:
    """The first page and the smaller copies of it: its SubIFDs, or the tiled pages after it (SVS, vips, COG)."""
    yield first
    smallest = first
    following = first.pages if first.subifds else list(tiff.pages)[1:]
    for page in following or ():
        page = page.aspage()
        if _is_smaller_copy(page, smallest, first):
            yield page
            smallest = page


def _is_smaller_copy(page: tifffile.TiffPage, above: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    # (A transparency mask is no copy either: it has one bit.)
    same_kind = (
        page.is_tiled == first.is_tiled and page.samplesperpixel == first.samplesperpixel and page.dtype == first.dtype
    )
    width, height = page.imagewidth, page.imagelength
    smaller = 0 < width < above.imagewidth and 0 < height < above.imagelength
    # Both sides are rounded somehow to whole pixels after one division.
    off_px = abs(height - width * first.imagelength / first.imagewidth)
    return same_kind and smaller and off_px <= 1 + first.imagelength / first.imagewidth


def _candidates(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Iterator[Candidate]:
    if page.description.startswith("Aperio"):
        yield aperio_candidate(page.description)
    if tiff.is_ome and tiff.ome_metadata:
        yield ome_candidate(tiff.ome_metadata)
    x, y = (_rational(page, code) for code in (282, 283))
    unit = page.tags.valueof(296, 2)
    yield resolution_candidate("tiff.XResolution", x, y, _UNIT_UM.get(int(unit)))


def _rational(page: tifffile.TiffPage, code: int) -> float | None:
    value = page.tags.valueof(code)
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return None
    return float(value[0]) / float(value[1])


@contextmanager
def _quiet_tifffile() -> Iterator[list[str]]:
    """Keeps this thread's messages of tifffile's logger off the screen and hands them back: ours is one line."""
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
