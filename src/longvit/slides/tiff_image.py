"""Which image of a TIFF is the slide: the one with the most pixels, wherever it stands, and its smaller copies.

Writers put a macro of the glass, a label or a thumbnail first; OME-TIFFs hold several scans. An Aperio SVS keeps its
scan first whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tifffile

from longvit.errors import InputError
from longvit.slides.pixel_reader import UnsupportedError

_REDUCED, _MASK = 1, 4  # NewSubfileType
_ORIENTATION = 274
_RGB, _YCBCR = 2, 6
# A second image with a quarter of the pixels (half of each side) is a scan of its own more often than a macro.
_COMPARABLE = 4


@dataclass(frozen=True)
class SlideImage:
    """The image taken for the slide."""

    pages: tuple[tifffile.TiffPage, ...]
    """Its levels, largest first."""
    directory: int
    """The place of level 0 in the file, counted from 0."""
    notes: tuple[str, ...]
    """What a user should know about the choice, as clauses."""
    left_out_px: tuple[tuple[int, int], ...]
    """The sizes of reduced copies that are not used."""
    directories: tuple[tifffile.TiffPage, ...]
    """All images of the file, and what lies below the one taken."""
    n_of_its_size: int
    """How many images of the size of level 0 stand in the file."""

    @property
    def orientation(self) -> int:
        """1 to 8, as the tag Orientation of level 0 has it; 1 where it says nothing that the format knows."""
        return _orientation(self.pages[0])


def slide_image(pages: list[tifffile.TiffPage]) -> SlideImage:
    """Chooses among the images of a file. Raises `UnsupportedError` where a reduced copy is larger than every image."""
    index = _largest(pages)
    first = pages[index]
    below = _sub_images(first) if first.subifds else pages[index + 1 :]
    notes: list[str] = []
    left_out_px: list[tuple[int, int]] = []
    for page in [*pages, *below]:
        if _area(page) > _area(first) and page.subfiletype & _REDUCED and not page.subfiletype & _MASK:
            if _is_aperio(first) and not page.is_tiled:
                continue  # its macro or label beside a small scan
            raise UnsupportedError(
                f"a directory that calls itself a reduced copy has {_size(page)}, the largest image {_size(first)}"
            )
    levels = tuple(_pyramid(first, below, notes, left_out_px))
    others = [
        page
        for page in _own_images(pages)
        if page is not first and page not in levels and not _has_shape_of(page, first)
    ]
    said = _said_of_the_choice(pages, index, others)
    notes[:0] = [] if said is None else [said]
    n_of_its_size = sum((page.imagewidth, page.imagelength) == (first.imagewidth, first.imagelength) for page in pages)
    return SlideImage(
        levels, index, tuple(notes), tuple(left_out_px), (*pages, *(below if first.subifds else ())), n_of_its_size
    )


def directories_of(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """The images of a file in its order. Raises `UnsupportedError` where their list runs in a circle."""
    found: set[int] = set()
    for page in tiff.pages:
        if page.offset in found:
            raise UnsupportedError("its list of directories runs in a circle")
        found.add(page.offset)
        yield page.aspage()


def require_images(path: Path, pages: Iterable[tifffile.TiffPage]) -> None:
    """Raises `InputError` where a directory of the list holds no image: it became zeros, or its tags are lost."""
    for index, page in enumerate(pages):
        if page.imagewidth < 1 or page.imagelength < 1:
            raise InputError(
                f"{path}: damaged or cut off: directory {index + 1} of its list describes no image ({len(page.tags)} "
                f"tags, {_size(page)}); copy or download it again"
            )


def _sub_images(page: tifffile.TiffPage) -> list[tifffile.TiffPage]:
    return [sub.aspage() for sub in page.pages or ()]


def _own_images(pages: list[tifffile.TiffPage]) -> list[tifffile.TiffPage]:
    """Those that are neither reduced copies nor masks; all where every one says it is."""
    images = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK) and page.bitspersample != 1]
    return images or pages


def _largest(pages: list[tifffile.TiffPage]) -> int:
    if _is_aperio(pages[0]):
        return 0
    return pages.index(max(_own_images(pages), key=_area))  # the first of equals


def _said_of_the_choice(pages: list[tifffile.TiffPage], index: int, others: list[tifffile.TiffPage]) -> str | None:
    """One clause where another image than the only one could have been meant."""
    first = pages[index]
    comparable = [page for page in others if _area(page) * _COMPARABLE >= _area(first)]
    if _is_aperio(pages[0]) or not (index or comparable):
        return None
    taken = f"image {index + 1} of {len(pages)}, the largest with {_size(first)}, is taken for the slide"
    if not comparable:
        return f"its first image has {_size(pages[0])}; {taken}"
    return f"it holds {len(comparable) + 1} images of comparable size; {taken}; not read: {_sizes(comparable)}"


def _pyramid(
    first: tifffile.TiffPage,
    below: list[tifffile.TiffPage],
    notes: list[str],
    left_out_px: list[tuple[int, int]],
) -> Iterator[tifffile.TiffPage]:
    """The image and the smaller copies of it: its SubIFDs, or the tiled pages after it (SVS, vips, COG)."""
    yield first
    smallest = first
    for page in below:
        if not _is_smaller_copy(page, smallest, first):
            if _was_meant_as_a_copy(page, first):
                notes.append(f"its reduced copy of {_size(page)} is not of the slide's shape and kind, and is not used")
                left_out_px.append((page.imagewidth, page.imagelength))
            continue
        if _orientation(page) != _orientation(first):
            notes.append(f"its reduced copy of {_size(page)} lies another way round, and is not used")
            left_out_px.append((page.imagewidth, page.imagelength))
            continue
        yield page
        smallest = page


def _is_smaller_copy(page: tifffile.TiffPage, above: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    # (A transparency mask is no copy either: it has one bit.)
    same_kind = (
        page.is_tiled == first.is_tiled and page.samplesperpixel == first.samplesperpixel and page.dtype == first.dtype
    )
    same_kind &= page.photometric == first.photometric or {page.photometric, first.photometric} == {_RGB, _YCBCR}
    return same_kind and _is_smaller(page, above) and _has_shape_of(page, first)


def _was_meant_as_a_copy(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """By its own word (an SVS says so of labels), or tiled as the slide is and of its shape."""
    if page.subfiletype & _MASK or page.bitspersample == 1:
        return False
    says_so = bool(page.subfiletype & _REDUCED) and not _is_aperio(first)
    return says_so or (page.is_tiled and first.is_tiled and _has_shape_of(page, first))


def _is_smaller(page: tifffile.TiffPage, above: tifffile.TiffPage) -> bool:
    return bool(0 < page.imagewidth < above.imagewidth and 0 < page.imagelength < above.imagelength)


def _has_shape_of(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    if not _is_smaller(page, first):
        return False
    # Both sides are rounded somehow to whole pixels after one division.
    ratio = first.imagelength / first.imagewidth
    return bool(abs(page.imagelength - page.imagewidth * ratio) <= 1 + ratio)


def _orientation(page: tifffile.TiffPage) -> int:
    value = page.tags.valueof(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_aperio(page: tifffile.TiffPage) -> bool:
    return str(page.description).startswith("Aperio")


def _area(page: tifffile.TiffPage) -> int:
    return int(page.imagewidth) * int(page.imagelength)


def _size(page: tifffile.TiffPage) -> str:
    return f"{page.imagewidth} × {page.imagelength} px"


def _sizes(pages: list[tifffile.TiffPage]) -> str:
    shown = ", ".join(_size(page) for page in pages[:3])
    return shown if len(pages) <= 3 else f"{shown} and {len(pages) - 3} more"
