"""Data set of a DICOM file: the values of its elements and sequences, read from the mapped file where they are asked
for."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator

from longvit.slides.dicom_header import (
    IMPLICIT,
    META_SYNTAX,
    UNDEFINED,
    Element,
    elements,
    elements_of_item,
    items_of,
    text_of,
)

PIXELS = 0x7FE00010


class Dataset:
    """Elements of a file, or of an item of one of its sequences, by tag.

    Values of absent elements are None, as are empty ones and those that are no number. Damaged lengths raise
    `ValueError`, `IndexError` or `struct.error`.
    """

    def __init__(self, data: mmap.mmap, found: Iterator[Element], explicit: bool) -> None:
        self.data = data
        self._explicit = explicit
        self._by_tag = {element.tag: element for element in found}

    def __contains__(self, tag: int) -> bool:
        return tag in self._by_tag

    def element(self, tag: int) -> Element | None:
        return self._by_tag.get(tag)

    def text(self, tag: int) -> str:
        """Text of an element, with ? for what cannot be printed; empty where it is absent."""
        element = self._by_tag.get(tag)
        text = "" if element is None else text_of(element.value)
        return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)

    def texts(self, tag: int) -> list[str]:
        return [part.strip() for part in self.text(tag).split("\\")] if tag in self._by_tag else []

    def integer(self, tag: int) -> int | None:
        """An unsigned short or long."""
        element = self._by_tag.get(tag)
        return int.from_bytes(element.value, "little") if element is not None and element.length in (2, 4) else None

    def signed(self, tag: int) -> int | None:
        """A signed long."""
        element = self._by_tag.get(tag)
        return None if element is None or element.length != 4 else int.from_bytes(element.value, "little", signed=True)

    def real(self, tag: int) -> float | None:
        """A float of four bytes."""
        element = self._by_tag.get(tag)
        return None if element is None or element.length != 4 else float(struct.unpack("<f", element.value)[0])

    def decimals(self, tag: int) -> list[float]:
        """Numbers that are stored as text; empty where one of them is none."""
        try:
            numbers = [float(part) for part in self.texts(tag)]
        except ValueError:
            return []
        return numbers if all(map(math.isfinite, numbers)) else []

    def first(self, tag: int) -> Dataset | None:
        """First item of a sequence; None where there is none."""
        return next(self.items(tag), None)

    def items(self, tag: int) -> Iterator[Dataset]:
        element = self._by_tag.get(tag)
        if element is None:
            return
        for start, end, explicit in items_of(self.data, element, self._explicit):
            yield Dataset(self.data, elements_of_item(self.data, start, end, explicit), explicit)


def read_dataset(data: mmap.mmap) -> Dataset:
    """Data set of a file up to its pixels. Raises `ValueError`, `IndexError` or `struct.error` for a damaged one."""
    found = list(elements(data, PIXELS))
    syntax = next((text_of(element.value) for element in found if element.tag == META_SYNTAX), "")
    return Dataset(data, iter(found), syntax != IMPLICIT)


def is_encapsulated(element: Element) -> bool:
    """True if pixels are in items, one or more per frame."""
    return element.length == UNDEFINED
