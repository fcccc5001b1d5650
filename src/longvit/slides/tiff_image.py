"""Image of a TIFF that is the slide: the one with the most pixels, anywhere in the file, and its smaller copies.

Writers put a macro of the glass, a label or a thumbnail first; OME-TIFFs hold several scans. An Aperio SVS always has
its scan first.
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
# A second image with a quarter of the pixels (half of each side) is more often another scan than a macro.
_COMPARABLE = 4


@dataclass(frozen=True)
class SlideImage:
    """The image used as the slide."""

    pages: tuple[tifffile.TiffPage, ...]
    """Levels, largest first."""
    directory: int
    """Index of level 0 in the file, from 0."""
    notes: tuple[str, ...]
    """Notes about the selection for the user, as clauses."""
    left_out_px: tuple[tuple[int, int], ...]
    """Sizes of reduced copies that are not used."""
    directories: tuple[tifffile.TiffPage, ...]
    """All images of the file, and the reduced copies of the selected one."""
    n_of_its_size: int
    """Number of images with the size of level 0."""

    @property
    def orientation(self) -> int:
        """Tag Orientation of level 0, 1 to 8; 1 where it is absent or invalid."""
        return _orientation(self.pages[0])


def slide_image(pages: list[tifffile.TiffPage]) -> SlideImage:
    """Selects the slide among the images of a file. Raises `UnsupportedError` where a reduced copy is larger than every
    image."""
    index = _largest(pages)
    first = pages[index]
    below = _sub_images(first) if first.subifds else pages[index + 1 :]
    notes: list[str] = []
    left_out_px: list[tuple[int, int]] = []
    for page in [*pages, *below]:
        if _area(page) > _area(first) and page.subfiletype & _REDUCED and not page.subfiletype & _MASK:
            if _is_aperio(first) and not page.is_tiled:
                continue  # its macro or label, larger than a small scan
            raise UnsupportedError(
                f"a directory marked as a reduced copy has {_size(page)}, the largest image {_size(first)}"
            )
    levels = tuple(_pyramid(first, below, notes, left_out_px))
    others = [
        page
        for page in _own_images(pages)
        if page is not first and page not in levels and not _has_same_shape(page, first)
    ]
    note = _selection_note(pages, index, others)
    notes[:0] = [] if note is None else [note]
    n_of_its_size = sum((page.imagewidth, page.imagelength) == (first.imagewidth, first.imagelength) for page in pages)
    return SlideImage(
        levels, index, tuple(notes), tuple(left_out_px), (*pages, *(below if first.subifds else ())), n_of_its_size
    )


def directories_of(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Images of a file in order. Raises `UnsupportedError` where their list is circular."""
    offsets: set[int] = set()
    for page in tiff.pages:
        if page.offset in offsets:
            raise UnsupportedError("its list of directories is circular")
        offsets.add(page.offset)
        yield page.aspage()


def require_images(path: Path, pages: Iterable[tifffile.TiffPage]) -> None:
    """Raises `InputError` where a directory of the list holds no image, since it was zeroed or lost its tags."""
    for index, page in enumerate(pages):
        if page.imagewidth < 1 or page.imagelength < 1:
            raise InputError(
                f"{path}: damaged or cut off: directory {index + 1} of its list describes no image ({len(page.tags)} "
                f"tags, {_size(page)}); copy or download it again"
            )


def _sub_images(page: tifffile.TiffPage) -> list[tifffile.TiffPage]:
    return [sub.aspage() for sub in page.pages or ()]


def _own_images(pages: list[tifffile.TiffPage]) -> list[tifffile.TiffPage]:
    """Images that are neither reduced copies nor masks; all images if every one is marked so."""
    images = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK) and page.bitspersample != 1]
    return images or pages


def _largest(pages: list[tifffile.TiffPage]) -> int:
    if _is_aperio(pages[0]):
        return 0
    return pages.index(max(_own_images(pages), key=_area))  # the first of equals


def _selection_note(pages: list[tifffile.TiffPage], index: int, others: list[tifffile.TiffPage]) -> str | None:
    """One clause where another image could have been the slide."""
    first = pages[index]
    comparable = [page for page in others if _area(page) * _COMPARABLE >= _area(first)]
    if _is_aperio(pages[0]) or not (index or comparable):
        return None
    selected = f"image {index + 1} of {len(pages)}, the largest with {_size(first)}, is used as the slide"
    if not comparable:
        return f"its first image has {_size(pages[0])}; {selected}"
    return f"it holds {len(comparable) + 1} images of comparable size; {selected}; not read: {_sizes(comparable)}"


def _pyramid(
    first: tifffile.TiffPage,
    below: list[tifffile.TiffPage],
    notes: list[str],
    left_out_px: list[tuple[int, int]],
) -> Iterator[tifffile.TiffPage]:
    """The image and its smaller copies: its SubIFDs, or the tiled pages after it (SVS, vips, COG)."""
    yield first
    smallest = first
    for page in below:
        if not _is_smaller_copy(page, smallest, first):
            if _claims_to_be_copy(page, first):
                notes.append(
                    f"its reduced copy of {_size(page)} differs from the slide in shape or kind, and is not used"
                )
                left_out_px.append((page.imagewidth, page.imagelength))
            continue
        if _orientation(page) != _orientation(first):
            notes.append(f"its reduced copy of {_size(page)} has another orientation, and is not used")
            left_out_px.append((page.imagewidth, page.imagelength))
            continue
        yield page
        smallest = page


def _is_smaller_copy(page: tifffile.TiffPage, above: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    # (A transparency mask is not a copy either: it has one bit.)
    same_kind = (
        page.is_tiled == first.is_tiled and page.samplesperpixel == first.samplesperpixel and page.dtype == first.dtype
    )
    same_kind &= page.photometric == first.photometric or {page.photometric, first.photometric} == {_RGB, _YCBCR}
    return same_kind and _is_smaller(page, above) and _has_same_shape(page, first)


def _claims_to_be_copy(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """True if the page is marked as a copy (not in an SVS, which marks labels so), or is tiled and shaped like the
    slide."""
    if page.subfiletype & _MASK or page.bitspersample == 1:
        return False
    is_marked = bool(page.subfiletype & _REDUCED) and not _is_aperio(first)
    return is_marked or (page.is_tiled and first.is_tiled and _has_same_shape(page, first))


def _is_smaller(page: tifffile.TiffPage, above: tifffile.TiffPage) -> bool:
    return bool(0 < page.imagewidth < above.imagewidth and 0 < page.imagelength < above.imagelength)


def _has_same_shape(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    if not _is_smaller(page, first):
        return False
    # Both sides are rounded to whole pixels after one division.
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
