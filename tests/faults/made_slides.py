"""One small slide of every kind of file, and where in it the header and the pixels lie.

A kind is a container, a codec and a layout. All show the same 384 × 320 px of the real slide in 64-px tiles.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from tests.slides.dicom_files import write_level
from tests.slides.slide_files import (
    Pixels,
    halved,
    pyramid,
    tissue,
    write_bif,
    write_dicom,
    write_jpeg,
    write_mrxs,
    write_ndpi,
    write_ome,
    write_scn,
    write_svs,
    write_tiff,
)

WIDTH_PX, HEIGHT_PX, TILE_PX = 384, 320, 64
CHECKSUM = ("Deflate", "PNG")
"""The codecs whose data carry a checksum (Adler-32, CRC-32)."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """A kind of slide file."""

    name: str
    suffix: str
    codec: str
    write: Callable[[Path], object]
    container: str = "tiff"
    damaged: str = ""
    """The file that is damaged, where it is not the one that is opened; a path beside it."""

    @property
    def has_checksum(self) -> bool:
        return self.codec in CHECKSUM


@dataclass(frozen=True)
class Entry:
    """One entry of a TIFF directory; `at` is where it stands, `value` the span of what it holds."""

    code: int
    at: int
    value: Span
    width: int
    """Bytes of one number."""
    big: bool

    @property
    def type_at(self) -> int:
        return self.at + 2

    @property
    def count_at(self) -> int:
        return self.at + 4

    @property
    def count_format(self) -> str:
        return "<Q" if self.big else "<I"


@dataclass(frozen=True)
class Layout:
    """Where things lie in a file: spans of bytes [start, end)."""

    data: tuple[Span, ...]
    """Compressed pixels, piece by piece."""
    entries: tuple[Entry, ...] = ()
    """TIFF: all entries of all directories, the first directory's first."""
    directories: tuple[tuple[int, int], ...] = ()
    """TIFF: start of a directory and place of its pointer to the next one."""
    parts: tuple[tuple[str, Span], ...] = field(default=())
    """PNG: chunks. JPEG: segments before the scan. DICOM: elements (tag in hex)."""
    codec: tuple[tuple[str, Span], ...] = ()
    """Headers and tables of the codestreams in `data`, by marker ("codec c4"): with them pixels are decoded."""

    def names(self, at: int) -> str:
        """What the byte at `at` belongs to."""
        for name, (start, end) in self.codec:
            if start <= at < end:
                return name
        if any(start <= at < end for start, end in self.data):
            return "data"
        for entry in self.entries:
            start, end = entry.value
            if start <= at < end:
                return f"tag {entry.code} value"
            if entry.at <= at < entry.at + (20 if entry.big else 12):
                part = "code" if at < entry.at + 2 else "type" if at < entry.at + 4 else "count"
                part = part if at < entry.at + (12 if entry.big else 8) else "pointer"
                return f"tag {entry.code} {part}"
        for name, (start, end) in self.parts:
            if start <= at < end:
                return name
        return "elsewhere"


def kinds() -> dict[str, Kind]:
    """All kinds, by name."""
    levels = pyramid(tissue(WIDTH_PX, HEIGHT_PX), 2)
    whole = levels[0]
    grey = [np.ascontiguousarray(level[..., 1]) for level in levels]
    alpha = np.full((HEIGHT_PX, WIDTH_PX, 1), 255, np.uint8)
    alpha[64:128, 64:128] = 100
    rgba = np.concatenate([whole, alpha], 2)
    palette = Image.fromarray(whole).quantize(200)

    def tiff(**settings: Any) -> Callable[[Path], object]:
        return lambda path: write_tiff(path, levels, **settings)

    def image(picture: Image.Image, **settings: Any) -> Callable[[Path], object]:
        return lambda path: picture.save(path, **settings)

    def strips(**settings: Any) -> Callable[[Path], object]:
        return lambda path: write_tiff(path, levels, tile_px=None, rowsperstrip=16, **settings)

    def dicom(**settings: Any) -> Callable[[Path], object]:
        series = {"series": "1.2.3", "study": "1.2.4", "frame": "1.2.5"}
        return lambda path: write_level(path, whole, series, instance="1.2.6", **settings)

    physical = 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"'
    cmyk = Image.fromarray(whole).convert("CMYK")
    made = [
        Kind("TIFF Deflate", ".tif", "Deflate", tiff(compression="deflate")),
        Kind("TIFF Deflate predictor strips", ".tif", "Deflate", strips(compression="deflate", predictor=True)),
        Kind("TIFF Deflate planes", ".tif", "Deflate", _planes),
        Kind("TIFF Deflate grey", ".tif", "Deflate", lambda p: write_tiff(p, grey, **_GREY, compression="deflate")),
        Kind("TIFF Deflate RGBA", ".tif", "Deflate", lambda p: write_tiff(p, [rgba], **_ALPHA, compression="deflate")),
        Kind("TIFF Deflate palette", ".tif", "Deflate", lambda p: _palette_tiff(p, palette)),
        Kind("BigTIFF Deflate", ".tif", "Deflate", tiff(compression="deflate", bigtiff=True)),
        Kind("TIFF LZW", ".tif", "LZW", tiff(compression="lzw")),
        Kind("TIFF LZW predictor", ".tif", "LZW", tiff(compression="lzw", predictor=True)),
        Kind("TIFF JPEG", ".tif", "JPEG", tiff(compression="jpeg")),
        Kind("TIFF JPEG YCbCr", ".tif", "JPEG", tiff(compression="jpeg", photometric="ycbcr")),
        Kind("TIFF JPEG grey", ".tif", "JPEG", lambda p: write_tiff(p, grey, **_GREY, compression="jpeg")),
        Kind("TIFF JPEG 2000", ".tif", "JPEG 2000", tiff(compression="jpeg2000")),
        Kind("TIFF zstd", ".tif", "zstd", tiff(compression="zstd")),
        Kind("TIFF WebP", ".tif", "WebP", tiff(compression="webp")),
        Kind("TIFF PackBits", ".tif", "PackBits", tiff(compression="packbits")),
        Kind("TIFF uncompressed", ".tif", "none", tiff(compression=None)),
        Kind("TIFF uncompressed strips", ".tif", "none", strips(compression=None)),
        Kind("OME-TIFF JPEG", ".ome.tif", "JPEG", lambda p: write_ome(p, levels, physical)),
        Kind("OME-BigTIFF Deflate", ".ome.tif", "Deflate", lambda p: write_ome(p, levels, physical, **_BIG_DEFLATE)),
        Kind("SVS JPEG", ".svs", "JPEG", lambda p: write_svs(p, levels)),
        Kind("SVS JPEG 2000", ".svs", "JPEG 2000", lambda p: write_svs(p, levels, compression="aperio_jp2000_rgb")),
        Kind("SCN", ".scn", "JPEG, OpenSlide", lambda p: write_scn(p, levels, 32, 16, (448, 352))),
        Kind("NDPI", ".ndpi", "JPEG, OpenSlide", lambda p: write_ndpi(p, levels)),
        Kind("BIF", ".bif", "JPEG, OpenSlide", lambda p: write_bif(p, whole)),
        Kind("MRXS", ".mrxs", "JPEG, OpenSlide", lambda p: write_mrxs(p, whole), "mrxs", "{stem}/Data0000.dat"),
        Kind("DICOM JPEG", ".dcm", "JPEG", lambda p: _dicom(p, whole, "jpeg"), "dicom"),
        Kind("DICOM JPEG 2000", ".dcm", "JPEG 2000", lambda p: _dicom(p, whole, "jpeg2000"), "dicom"),
        Kind("DICOM uncompressed", ".dcm", "none", lambda p: _dicom(p, whole, "none"), "dicom"),
        Kind("DICOM JPEG extended", ".dcm", "JPEG", dicom(codec="jpeg", table="extended"), "dicom"),
        Kind("DICOM JPEG-LS sparse", ".dcm", "JPEG-LS", dicom(codec="jpegls", sparse=True), "dicom"),
        Kind("DICOM RLE no table", ".dcm", "PackBits", dicom(codec="rle", table="empty"), "dicom"),
        Kind("DICOM JPEG 2000 fragments", ".dcm", "JPEG 2000", dicom(codec="jpeg2000", fragments=3), "dicom"),
        Kind("PNG RGB", ".png", "PNG", image(Image.fromarray(whole)), "png"),
        Kind("PNG grey", ".png", "PNG", image(Image.fromarray(grey[0])), "png"),
        Kind("PNG RGBA", ".png", "PNG", image(Image.fromarray(rgba)), "png"),
        Kind("PNG palette", ".png", "PNG", image(palette), "png"),
        Kind("JPEG RGB", ".jpg", "JPEG file", lambda p: write_jpeg(p, whole), "jpeg"),
        Kind("JPEG progressive", ".jpg", "JPEG file", lambda p: write_jpeg(p, whole, progressive=True), "jpeg"),
        Kind("JPEG grey", ".jpg", "JPEG file", lambda p: write_jpeg(p, grey[0]), "jpeg"),
        Kind("JPEG CMYK", ".jpg", "JPEG file, CMYK", image(cmyk, format="JPEG", quality=95), "jpeg"),
    ]
    return {kind.name: kind for kind in made}


_GREY: dict[str, Any] = {"photometric": "minisblack"}
_ALPHA: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
_BIG_DEFLATE: dict[str, Any] = {"bigtiff": True, "compression": "deflate"}


def _planes(path: Path) -> None:
    whole = tissue(WIDTH_PX, HEIGHT_PX)
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate((whole, halved(whole))):
            writer.write(
                np.ascontiguousarray(np.moveaxis(level, 2, 0)),
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                planarconfig="separate",
                compression="deflate",
                metadata=None,
                subfiletype=int(index > 0),
            )


def _palette_tiff(path: Path, picture: Image.Image) -> None:
    table = np.zeros((3, 256), np.uint16)
    colours = np.asarray(picture.getpalette(), np.uint16).reshape(-1, 3)
    table[:, : len(colours)] = colours.T * 257
    write_tiff(path, [np.asarray(picture)], compression="deflate", photometric="palette", colormap=table)


def _dicom(path: Path, pixels: Pixels, codec: str) -> None:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

    write_dicom(path, pixels, 0.0005, {"series": "1.2.3", "study": "1.2.4", "frame": "1.2.5"})
    data = dcmread(path)
    # The same bytes every time.
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.6"
    if codec == "jpeg":
        data.save_as(path, enforce_file_format=True)
        return
    height, width = pixels.shape[:2]
    tiles = [
        np.ascontiguousarray(pixels[y : y + TILE_PX, x : x + TILE_PX])
        for y in range(0, height, TILE_PX)
        for x in range(0, width, TILE_PX)
    ]
    data.PhotometricInterpretation = "RGB"
    if codec == "none":
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.PixelData = b"".join(tile.tobytes() for tile in tiles)
        data["PixelData"].is_undefined_length = False
    else:
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        encoded = [imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=False, reversible=True) for tile in tiles]
        data.PixelData = encapsulate(encoded)
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)


def layout(kind: Kind, content: bytes) -> Layout:
    """Where the header and the pixels of an undamaged file of this kind lie."""
    parsers = {"tiff": _tiff, "png": _png, "jpeg": _jpeg, "dicom": _dicom_layout, "mrxs": _mrxs}
    found = parsers[kind.container](content)
    streams = [] if kind.container in ("png", "jpeg") else found.data
    return replace(found, codec=tuple(part for span in streams for part in codec_parts(content, *span)))


def codec_parts(content: bytes, start: int, end: int) -> list[tuple[str, Span]]:
    """Bytes of a JPEG, JPEG-LS, JPEG 2000 or RLE codestream that are not coded pixels; none for other codecs."""
    stream = content[start:end]
    if struct.unpack_from("<2I", stream.ljust(8)) in ((1, 64), (3, 64)):
        return [("codec head", (start, start + 64))]
    last = {b"\xff\xd8": 0xDA, b"\xff\x4f": 0x90}.get(stream[:2])  # start of the scan, of the first tile
    if last is None or len(stream) < 8:
        return []
    parts, at, marker = [("codec start", (0, 2))], 2, 0
    while marker != last and at + 4 <= len(stream) and stream[at] == 0xFF:
        marker, n = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        parts.append((f"codec {marker:02x}", (at, at + 2 + n)))
        at += 2 + n
    if last == 0x90:
        parts.append(("codec 93", (at, at + 2)))  # start of the data
    if (finish := stream.rfind(b"\xff\xd9", at)) >= 0:
        parts.append(("codec end", (finish, len(stream))))
    return [(name, (start + a, start + b)) for name, (a, b) in parts]


def _tiff(content: bytes) -> Layout:
    big = content[2] == 43
    entry_bytes, pointer = (20, "<Q") if big else (12, "<I")
    entries, directories = [], []
    waiting = [struct.unpack_from(pointer, content, 8 if big else 4)[0]]
    while waiting:
        start = waiting.pop(0)
        (n,) = struct.unpack_from("<Q" if big else "<H", content, start)
        at = start + (8 if big else 2)
        for _ in range(n):
            code, kind = struct.unpack_from("<HH", content, at)
            (count,) = struct.unpack_from(pointer, content, at + 4)
            width = {3: 2, 4: 4, 5: 8, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}.get(kind, 1)
            field_at, room = at + (12 if big else 8), (8 if big else 4)
            where = field_at if count * width <= room else struct.unpack_from(pointer, content, field_at)[0]
            entries.append(Entry(code, at, (where, where + count * width), width, big))
            if code == 330:
                waiting += struct.unpack_from(f"<{count}{'Q' if kind in (16, 18) else 'I'}", content, where)
            at += entry_bytes
        directories.append((start, at))
        if following := struct.unpack_from(pointer, content, at)[0]:
            waiting.append(following)
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        pages: list[Any] = [page for outer in tiff.pages for page in (outer, *(outer.aspage().pages or ()))]
        data = [
            (offset, offset + count)
            for page in pages
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    return Layout(tuple(data), tuple(entries), tuple(directories))


def _png(content: bytes) -> Layout:
    parts, data, at = [("signature", (0, 8))], [], 8
    while at < len(content):
        (n,) = struct.unpack_from(">I", content, at)
        name = content[at + 4 : at + 8].decode()
        parts.append((name, (at, at + 12 + n)))
        if name == "IDAT":
            data.append((at + 8, at + 8 + n))
        at += 12 + n
    return Layout(tuple(data), parts=tuple(parts))


def _jpeg(content: bytes) -> Layout:
    parts, at = [("SOI", (0, 2))], 2
    while True:
        marker, n = content[at + 1], struct.unpack_from(">H", content, at + 2)[0]
        parts.append((f"segment {marker:02x}", (at, at + 2 + n)))
        at += 2 + n
        if marker == 0xDA:
            return Layout(((at, len(content) - 2),), parts=tuple(parts))


def _dicom_layout(content: bytes) -> Layout:
    from pydicom import dcmread

    data = dcmread(io.BytesIO(content))
    start = content.index(b"\xe0\x7f\x10\x00OB")
    places = []
    for element in [*data.file_meta, *data]:
        if element.tag != 0x7FE00010:
            head = struct.pack("<HH", element.tag.group, element.tag.element) + str(element.VR).encode()
            if (at := content.find(head, 132)) >= 0:
                places.append((at, f"{int(element.tag):08x}"))
    places = [*sorted(places), (start, "")]
    parts = [(name, (at, places[i + 1][0])) for i, (at, name) in enumerate(places[:-1])]
    pieces, at = [], start + 12
    if struct.unpack_from("<I", content, start + 8)[0] == 0xFFFFFFFF:
        while content[at : at + 4] == b"\xfe\xff\x00\xe0":
            (n,) = struct.unpack_from("<I", content, at + 4)
            pieces.append((at + 8, at + 8 + n))
            at += 8 + n
        pieces = pieces[1:]  # the first is the table of offsets
    else:
        pieces = [(at, len(content))]
    return Layout(tuple(pieces), parts=(("preamble", (0, 132)), *parts))


def _mrxs(content: bytes) -> Layout:
    starts = []
    at = content.find(b"\xff\xd8\xff")
    while at >= 0:
        starts.append(at)
        at = content.find(b"\xff\xd8\xff", at + 1)
    return Layout(tuple(zip(starts, [*starts[1:], len(content)], strict=True)))
