"""Description of a slide for `longvit info`, and of the readers and formats for `longvit doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longvit.slides.file_kind import Kind
from longvit.slides.reader import Slide

_VENDOR_FORMATS = {
    "aperio": "Aperio SVS",
    "argos": "Argos AVS",
    "dicom": "DICOM",
    "generic-tiff": "tiled TIFF",
    "hamamatsu": "Hamamatsu NDPI, VMS or VMU",
    "huron": "Huron TIFF",
    "leica": "Leica SCN",
    "mirax": "3DHISTECH MRXS",
    "ome-tiff": "OME-TIFF",
    "philips": "Philips TIFF",
    "sakura": "Sakura SVSLIDE",
    "trestle": "Trestle TIFF",
    "ventana": "Ventana BIF or TIFF",
    "zeiss": "Zeiss CZI",
    "png": "PNG",
    "jpeg": "JPEG",
}


_CODECS_WITH_CHECKSUM = ("png", "deflate", "adobe_deflate")


@dataclass(frozen=True)
class ReaderDescription:
    """A pixel reader and its formats."""

    name: str
    """Value of `--reader`, where the reader can be forced."""
    version: str
    formats: tuple[str, ...]
    note: str


def info(slide: Slide) -> dict[str, Any]:
    """All properties of a slide as plain values ready for JSON; reads at most one tile per level.

    `mpp` is None where the file gives no plausible resolution; `mpp_looked_at` lists the candidates. The magnification
    is the file's own label, for display only.
    """
    bounds, mpp = slide.bounds, slide.mpp
    return {
        "path": str(slide.path),
        "format": _VENDOR_FORMATS.get(slide.vendor, slide.vendor),
        "kind": slide.kind.value,
        "vendor": slide.vendor,
        "reader": slide.reader,
        "reader_version": slide.reader_version,
        "reader_reason": slide.reader_reason,
        "damage_seen": damage_seen(slide),
        "notes": list(slide.notes),
        "size_px": list(slide.size_px),
        "mpp": None if mpp is None else [mpp.x, mpp.y],
        "mpp_source": None if mpp is None else mpp.source,
        "mpp_looked_at": [str(candidate) for candidate in slide.mpp_search.candidates],
        "magnification": slide.properties.get("openslide.objective-power"),
        "size_mm": None
        if mpp is None
        else [round(slide.size_px[0] * mpp.x / 1e3, 3), round(slide.size_px[1] * mpp.y / 1e3, 3)],
        "levels": [
            {
                "level": level.index,
                "size_px": list(level.size_px),
                "downsample": level.downsample,
                "mpp": None if mpp is None else [mpp.x * level.downsample, mpp.y * level.downsample],
                "tile_px": list(level.tile_px),
                "compression": level.compression or None,
            }
            for level in slide.levels
        ],
        "bounds_level0_px": [int(bounds.x), int(bounds.y), int(bounds.width), int(bounds.height)],
        "background": list(slide.background),
        "file_bytes": slide.file_bytes(),
        "identity": slide.identity(),
    }


def damage_seen(slide: Slide) -> str:
    """Detection rate of damage inside the pixels, by codec, as text. Most codecs have no checksum."""
    codec = slide.levels[0].compression
    if slide.reader == "openslide":
        return "little: OpenSlide silently repairs JPEG, and of the other codecs only Deflate has a checksum"
    if codec in _CODECS_WITH_CHECKSUM:
        return "all: its pixels have a checksum"
    if codec == "jpeg":
        return "much: decoded strictly; JPEG has no checksum, so a changed byte may pass"
    if codec in ("lzw", "zstd", "rle"):
        return "some: data that no longer decodes; the codec has no checksum"
    return "little: the codec has no checksum and decodes almost anything"


def describe_readers() -> list[ReaderDescription]:
    """The readers, with the versions of their libraries, in the order in which they are tried."""
    from longvit.slides.dicom_reader import DicomReader
    from longvit.slides.image_file import ImageFileReader
    from longvit.slides.openslide_reader import OpenSlideReader
    from longvit.slides.tiled_tiff import TiledTiffReader

    return [
        ReaderDescription(
            "tiff",
            TiledTiffReader.version,
            (_VENDOR_FORMATS["aperio"], _VENDOR_FORMATS["generic-tiff"], _VENDOR_FORMATS["ome-tiff"]),
            "the fast path: 8-bit tiles and strips of JPEG, JPEG 2000, LZW, Deflate, ZSTD, WebP or raw; used if it "
            "agrees with OpenSlide on one tile per level",
        ),
        ReaderDescription(
            "dicom",
            DicomReader.version,
            (_VENDOR_FORMATS["dicom"],),
            "a file or a folder: 8-bit frames of JPEG, JPEG 2000, JPEG-LS, RLE or raw, at their places in the files",
        ),
        ReaderDescription(
            "openslide",
            OpenSlideReader.version,
            tuple(name for vendor, name in _VENDOR_FORMATS.items() if vendor not in ("ome-tiff", "png", "jpeg")),
            "everything else, and files on which the fast path disagrees; DICOM on request",
        ),
        ReaderDescription(
            "image",
            ImageFileReader.version,
            (Kind.PNG.value, Kind.JPEG.value),
            "one level, decoded whole",
        ),
    ]
