"""Small slides of every format, written from a piece of the real one, so that the tests need no other file."""

from __future__ import annotations

import io
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "CMU-1-Small-Region.svs"
Pixels = NDArray[np.uint8]


@cache
def _whole() -> Pixels:
    # tifffile's own reading, so that what our reader gives is compared with another's.
    return tifffile.imread(EXAMPLE, key=0)


def tissue(width_px: int, height_px: int, x_px: int = 1100, y_px: int = 1500) -> Pixels:
    """A piece of the real slide, uint8 (height, width, 3)."""
    return np.ascontiguousarray(_whole()[y_px : y_px + height_px, x_px : x_px + width_px])


def halved(pixels: Pixels) -> Pixels:
    """The next level of a pyramid."""
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((width // 2, height // 2), Image.Resampling.BOX))


def pyramid(pixels: Pixels, levels: int) -> list[Pixels]:
    out = [pixels]
    while len(out) < levels:
        out.append(halved(out[-1]))
    return out


def write_tiff(
    path: Path,
    levels: list[Pixels],
    *,
    compression: Any = "jpeg",
    tile_px: int | None = 64,
    photometric: str = "rgb",
    subifds: bool = False,
    bigtiff: bool = False,
    **first: Any,
) -> Path:
    """A pyramid as consecutive reduced pages (vips, SVS) or SubIFDs (OME); `first` goes to the first page alone."""
    common: dict[str, Any] = {"compression": compression, "photometric": photometric, "metadata": None}
    if tile_px is not None:
        common["tile"] = (tile_px, tile_px)
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        writer.write(levels[0], subifds=len(levels) - 1 if subifds else 0, **(common | first))
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **common)
    return path


def aperio_description(width_px: int, height_px: int, mpp: float | None = 0.25) -> str:
    text = f"Aperio Image Library v11.2.1 \r\n{width_px}x{height_px} [0,0 {width_px}x{height_px}] (64x64) JPEG/RGB Q=80"
    return text + (f"|AppMag = 40|MPP = {mpp}" if mpp is not None else "|AppMag = 40")


def write_svs(path: Path, levels: list[Pixels], mpp: float | None = 0.25, **settings: Any) -> Path:
    height_px, width_px = levels[0].shape[:2]
    return write_tiff(path, levels, description=aperio_description(width_px, height_px, mpp), **settings)


def ome_xml(width_px: int, height_px: int, physical: str, size_c: int = 3, channels: str = "") -> str:
    channels = channels or '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width_px}" '
        f'SizeY="{height_px}" SizeC="{size_c}" SizeZ="1" SizeT="1" {physical}>{channels}'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


def write_ome(path: Path, levels: list[Pixels], physical: str, **settings: Any) -> Path:
    height_px, width_px = levels[0].shape[:2]
    # Bytes: the tag is declared as ASCII, the µ of the unit is UTF-8.
    text = ome_xml(width_px, height_px, physical).encode()
    return write_tiff(path, levels, subifds=True, description=text, **settings)


def write_jpeg(path: Path, pixels: Pixels, **settings: Any) -> Path:
    Image.fromarray(pixels).save(path, "JPEG", quality=95, **settings)
    return path


def write_dicom(
    path: Path, pixels: Pixels, spacing_mm: float | None, series: dict[str, str], number: int = 1, tile_px: int = 64
) -> Path:
    """One level of a DICOM slide (VL Whole Slide Microscopy, TILED_FULL, JPEG)."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    height_px, width_px = pixels.shape[:2]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if number == 1 else "RESAMPLED"]
    data.Modality, data.InstanceNumber = "SM", number
    data.SeriesInstanceUID, data.StudyInstanceUID = series["series"], series["study"]
    data.FrameOfReferenceUID = series["frame"]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.Rows = data.Columns = tile_px
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width_px, height_px
    data.DimensionOrganizationType = "TILED_FULL"
    data.TotalPixelMatrixFocalPlanes = data.NumberOfOpticalPaths = 1
    measures, groups, optical = Dataset(), Dataset(), Dataset()
    if spacing_mm is not None:
        measures.PixelSpacing = [spacing_mm, spacing_mm]
    measures.SliceThickness = 0.001
    groups.PixelMeasuresSequence = [measures]
    optical.OpticalPathIdentifier = "1"
    data.SharedFunctionalGroupsSequence, data.OpticalPathSequence = [groups], [optical]
    frames = [
        simplejpeg.encode_jpeg(tile, quality=95, colorspace="RGB", colorsubsampling="422")
        for tile in _tiles(pixels, tile_px)
    ]
    data.NumberOfFrames = len(frames)
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


def dicom_series() -> dict[str, str]:
    from pydicom.uid import generate_uid

    return {name: generate_uid() for name in ("series", "study", "frame")}


def write_scn(path: Path, levels: list[Pixels], x_px: int, y_px: int, size_px: tuple[int, int], nm: int = 500) -> Path:
    """A Leica SCN whose scanned area lies at (x_px, y_px) of a slide of `size_px`, at `nm` nanometres a pixel."""
    height_px, width_px = levels[0].shape[:2]
    dimensions = "".join(
        f'<dimension r="{i}" ifd="{i}" sizeX="{level.shape[1]}" sizeY="{level.shape[0]}"/>'
        for i, level in enumerate(levels)
    )
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{size_px[0] * nm}" sizeY="{size_px[1] * nm}"><image>'
        f"<pixels>{dimensions}</pixels>"
        f'<view sizeX="{width_px * nm}" sizeY="{height_px * nm}" offsetX="{x_px * nm}" offsetY="{y_px * nm}"/>'
        "<scanSettings><illuminationSettings><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings><objectiveSettings><objective>20</objective></objectiveSettings></scanSettings>"
        "</image></collection></scn>"
    )
    # Leica's levels are pages of their own, not reduced copies of the first; their resolution is in centimetres.
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            writer.write(
                level,
                tile=(64, 64),
                compression="jpeg",
                photometric="rgb",
                metadata=None,
                description=xml if index == 0 else None,
                resolution=(1e7 / nm / 2**index, 1e7 / nm / 2**index),
                resolutionunit="CENTIMETER",
            )
    return path


def write_ndpi(path: Path, levels: list[Pixels], mpp: float = 0.5) -> Path:
    """A Hamamatsu NDPI: each level one JPEG strip, with Hamamatsu's tags."""
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            per_cm = 1e4 / mpp / 2**index
            writer.write(
                iter([simplejpeg.encode_jpeg(level, quality=95, colorspace="RGB", colorsubsampling="444")]),
                shape=level.shape,
                dtype=level.dtype,
                rowsperstrip=level.shape[0],
                compression="jpeg",
                photometric="ycbcr",
                metadata=None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                extratags=[
                    (271, "s", 0, "Hamamatsu", True),
                    (65420, "I", 1, 1, True),  # NDPI
                    (65421, "f", 1, 20.0 / 2**index, True),  # the lens
                    (65424, "i", 1, 0, True),  # the focal plane
                ],
            )
    return path


def write_bif(path: Path, pixels: Pixels, mpp: float = 0.465) -> Path:
    """A Ventana BIF of one area of 64-px tiles, without overlap."""
    height_px, width_px = pixels.shape[:2]
    columns, rows = width_px // 64, height_px // 64
    joints = []
    for row in range(rows):  # counted from the bottom, every second one from right to left
        for column in range(columns):
            number = row * columns + (column if row % 2 == 0 else columns - 1 - column) + 1
            if column + 1 < columns:
                right = row * columns + (column + 1 if row % 2 == 0 else columns - 2 - column) + 1
                joints.append((number, right, "RIGHT"))
            if row + 1 < rows:
                up = (row + 1) * columns + (column if row % 2 else columns - 1 - column) + 1
                joints.append((number, up, "UP"))
    joint_xml = "".join(
        f'<TileJointInfo Tile1="{a}" Tile2="{b}" Direction="{d}" OverlapX="0" OverlapY="0" Confidence="100"/>'
        for a, b, d in joints
    )
    encode = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" Width="64" Height="64" NumRows="{rows}" '
        f'NumCols="{columns}" Pos-X="0" Pos-Y="0">{joint_xml}</ImageInfo></SlideStitchInfo>'
        '<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    scan = f'<iScan Magnification="20" ScanRes="{mpp}"/>'
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            halved(pixels),
            description="Label Image",
            photometric="rgb",
            metadata=None,
            extratags=[(700, "B", len(scan), scan.encode(), True)],
        )
        writer.write(
            pixels,
            tile=(64, 64),
            compression="jpeg",
            photometric="rgb",
            metadata=None,
            description="level=0 mag=20 quality=90",
            extratags=[(700, "B", len(encode), encode.encode(), True)],
        )
    return path


def write_mrxs(path: Path, pixels: Pixels, skip: tuple[tuple[int, int], ...] = (), mpp: float = 0.25) -> Path:
    """A 3DHISTECH MRXS of 64-px images; those in `skip` (column, row) were not scanned."""
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(b"")
    columns, rows = pixels.shape[1] // 64, pixels.shape[0] // 64
    (folder / "Slidedat.ini").write_text(
        "\r\n".join(
            [
                "[GENERAL]", "SLIDE_ID=ABCD", f"IMAGENUMBER_X={columns}", f"IMAGENUMBER_Y={rows}",
                "OBJECTIVE_MAGNIFICATION=20",
                "[HIERARCHICAL]", "HIER_COUNT=1", "NONHIER_COUNT=0", "INDEXFILE=Index.dat",
                "HIER_0_NAME=Slide zoom level", "HIER_0_COUNT=1", "HIER_0_VAL_0_SECTION=LEVEL_0",
                "[DATAFILE]", "FILE_COUNT=1", "FILE_0=Data0000.dat",
                "[LEVEL_0]", "IMAGE_CONCAT_FACTOR=0", "OVERLAP_X=0", "OVERLAP_Y=0", f"MICROMETER_PER_PIXEL_X={mpp}",
                f"MICROMETER_PER_PIXEL_Y={mpp}", "IMAGE_FILL_COLOR_BGR=15790320", "DIGITIZER_WIDTH=64",
                "DIGITIZER_HEIGHT=64", "IMAGE_FORMAT=JPEG", "",
            ]
        ),
        encoding="utf-8-sig",
    )  # fmt: skip
    data, entries = io.BytesIO(), []
    for index, tile in enumerate(_tiles(pixels, 64)):
        if (index % columns, index // columns) not in skip:
            jpeg = simplejpeg.encode_jpeg(tile, quality=95, colorspace="RGB", colorsubsampling="444")
            entries.append((index, data.tell(), len(jpeg), 0))
            data.write(jpeg)
    (folder / "Data0000.dat").write_bytes(data.getvalue())
    head = b"01.02ABCD"
    root = len(head)
    levels_at = root + 8
    page_at = levels_at + 4 + 8
    (folder / "Index.dat").write_bytes(
        head
        + struct.pack("<ii", levels_at, 0)
        + struct.pack("<i", levels_at + 4)
        + struct.pack("<ii", 0, page_at)
        + struct.pack("<ii", len(entries), 0)
        + b"".join(struct.pack("<iiii", *entry) for entry in entries)
    )
    return path


def tile_place(path: Path, index: int, level: int = 0) -> tuple[int, int]:
    """Offset and byte count of one tile in a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        return page.dataoffsets[index], page.databytecounts[index]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def write_gigapixel(path: Path, side_px: int) -> Path:
    """A tiled JPEG TIFF of side_px² whose offsets all point at 12 tiles of the real slide: a few megabytes."""
    with tifffile.TiffFile(EXAMPLE) as tiff:
        page = tiff.pages.first
        data = EXAMPLE.read_bytes()
        chosen = [55 + 10 * row + column for row in range(3) for column in range(4)]  # inside the tissue
        tiles = [data[page.dataoffsets[i] : page.dataoffsets[i] + page.databytecounts[i]] for i in chosen]
        tables, tile_px = page.jpegtables, page.tilewidth
    n = -(-side_px // tile_px)
    order = np.arange(n * n) % 7 * 5 % len(tiles)
    starts = 8 + np.cumsum([0, *map(len, tiles)])[:-1]
    counts = np.asarray([len(tile) for tile in tiles])
    body = bytearray(b"II*\0" + struct.pack("<I", 0) + b"".join(tiles))
    places = []
    for block in (tables, starts[order].astype("<u4").tobytes(), counts[order].astype("<u4").tobytes(), b"\x08\0" * 3):
        body += bytes(len(body) % 2)
        places.append(len(body))
        body += block
    body += bytes(len(body) % 2)
    entries = [
        (256, 4, 1, side_px), (257, 4, 1, side_px), (258, 3, 3, places[3]), (259, 3, 1, 7), (262, 3, 1, 2),
        (277, 3, 1, 3), (322, 4, 1, tile_px), (323, 4, 1, tile_px), (324, 4, n * n, places[1]),
        (325, 4, n * n, places[2]), (347, 7, len(tables), places[0]),
    ]  # fmt: skip
    body[4:8] = struct.pack("<I", len(body))
    body += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    path.write_bytes(bytes(body))
    return path


def raw_tiff_header(path: Path, width_px: int, height_px: int, n_tiles: int, tile_px: int = 256) -> Path:
    """A TIFF of nothing but a directory that declares a size."""
    entries = [
        (256, 4, 1, width_px), (257, 4, 1, height_px), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, tile_px), (323, 4, 1, tile_px), (324, 4, n_tiles, 300), (325, 4, n_tiles, 300),
    ]  # fmt: skip
    body = b"II*\0" + struct.pack("<IH", 8, len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    path.write_bytes(body.ljust(1000, b"\0"))
    return path


def _tiles(pixels: Pixels, tile_px: int) -> list[Pixels]:
    height_px, width_px = pixels.shape[:2]
    tiles = []
    for y in range(0, height_px, tile_px):
        for x in range(0, width_px, tile_px):
            tile = np.full((tile_px, tile_px, 3), 255, np.uint8)
            part = pixels[y : y + tile_px, x : x + tile_px]
            tile[: part.shape[0], : part.shape[1]] = part
            tiles.append(tile)
    return tiles
