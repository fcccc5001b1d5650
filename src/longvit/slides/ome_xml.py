"""OME-XML of a TIFF: the `Pixels` element of an image."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree


def pixels_of(xml_text: str, size_px: tuple[int, int] | None = None, directory: int = 0) -> ElementTree.Element | None:
    """`Pixels` of the image of `size_px` (width, height) in a directory of the file; without a size, the first.

    None where no element has the size. Where several have it, the one whose TiffData names the directory is used.
    Raises `ElementTree.ParseError` for invalid XML.
    """
    candidates = ElementTree.fromstring(xml_text).findall(".//{*}Pixels")
    if size_px is None:
        return candidates[0] if candidates else None
    same = [pixels for pixels in candidates if (pixels.get("SizeX"), pixels.get("SizeY")) == tuple(map(str, size_px))]
    named = [pixels for pixels in same if directory in _directories(pixels)]
    return next(iter(named or same), None)


def planes_of(pixels: ElementTree.Element, samples: int) -> int:
    """Number of images that are channels, depths or times of this one. Raises `ValueError` for an invalid count."""
    size_c, size_z, size_t = (int(pixels.get(f"Size{axis}", "1")) for axis in "CZT")
    return max(1, size_c // samples) * size_z * size_t


def _directories(pixels: ElementTree.Element) -> set[int]:
    return {int(data.get("IFD", "0")) for data in pixels.findall("{*}TiffData") if data.get("IFD", "0").isdigit()}
