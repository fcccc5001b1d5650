"""DICOM slides in the layouts of archives, written with pydicom, frame by frame."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from pydicom import uid as syntaxes
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import generate_uid
from tests.slides.slide_files import Pixels, dicom_series

TILE_PX = 64


def rle(tile: Pixels) -> bytes:
    """An RLE frame: a head and one PackBits segment per sample."""
    planes = [tile] if tile.ndim == 2 else [tile[..., i] for i in range(tile.shape[2])]
    segments = []
    for plane in planes:
        data = b"".join(bytes(imagecodecs.packbits_encode(np.ascontiguousarray(row))) for row in plane)
        segments.append(data + b"\0" * (len(data) % 2))
    offsets = np.cumsum([64, *map(len, segments[:-1])]).tolist()
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def halved_chroma(ycbcr: Pixels) -> bytes:
    """Plain YBR_FULL_422: Y Y Cb Cr for each pair of pixels."""
    pairs = np.empty((*ycbcr.shape[:2], 2), np.uint8)
    quads = pairs.reshape(ycbcr.shape[0], -1, 4)
    quads[..., :2] = ycbcr[..., 0].reshape(ycbcr.shape[0], -1, 2)
    quads[..., 2:] = ycbcr[:, ::2, 1:]
    return pairs.tobytes()


def _jpeg_2000(tile: Pixels, **how: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", reversible=True, **how))


def _ycbcr(tile: Pixels) -> Pixels:
    return convert_color_space(tile, "RGB", "YBR_FULL")


def with_halved_chroma(ycbcr: Pixels) -> bytes:
    """JPEG 2000 in YCbCr with halved chroma, as Aperio writes it (compression 33003).

    No encoder at hand writes that. With one resolution level the body of a stream is one packet per component, so three
    grey streams are put together behind a new SIZ marker.
    """
    planes = [np.ascontiguousarray(plane) for plane in (ycbcr[..., 0], ycbcr[:, ::2, 1], ycbcr[:, ::2, 2])]
    streams = [_jpeg_2000(plane, mct=False, resolutions=1) for plane in planes]
    height, width = planes[0].shape
    size = struct.pack(">HH8IH", 47, 0, width, height, 0, 0, width, height, 0, 0, 3) + bytes(
        [7, 1, 1, 7, 2, 1, 7, 2, 1]
    )
    coding = streams[0][streams[0].index(b"\xff\x52") : streams[0].index(b"\xff\x64")]  # COD and QCD, up to a comment
    body = b"".join(stream[stream.index(b"\xff\x93") + 2 : -2] for stream in streams)
    start = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + len(body), 0, 1)
    return b"\xff\x4f\xff\x51" + size + coding + start + b"\xff\x93" + body + b"\xff\xd9"


CODECS: dict[str, tuple[str, str, Any]] = {
    # name: transfer syntax, photometric interpretation, encoder of one tile
    "jpeg": (
        syntaxes.JPEGBaseline8Bit,
        "YBR_FULL_422",
        lambda t: simplejpeg.encode_jpeg(t, quality=95, colorspace="RGB", colorsubsampling="422"),
    ),
    "jpeg rgb": (
        syntaxes.JPEGBaseline8Bit,
        "RGB",
        lambda t: bytes(imagecodecs.jpeg8_encode(t, level=95, colorspace="rgb", outcolorspace="rgb")),
    ),
    "jpeg grey": (
        syntaxes.JPEGBaseline8Bit,
        "MONOCHROME2",
        lambda t: simplejpeg.encode_jpeg(t[..., None], quality=95, colorspace="GRAY"),
    ),
    "jpeg2000": (syntaxes.JPEG2000Lossless, "YBR_RCT", lambda t: _jpeg_2000(t, mct=True)),
    "jpeg2000 rgb": (syntaxes.JPEG2000Lossless, "RGB", lambda t: _jpeg_2000(t, mct=False)),
    "jpeg2000 ycbcr": (syntaxes.JPEG2000, "YBR_FULL", lambda t: _jpeg_2000(_ycbcr(t), mct=False)),
    "jpeg2000 422": (syntaxes.JPEG2000, "YBR_FULL_422", lambda t: with_halved_chroma(_ycbcr(t))),
    "jpeg2000 ht": (
        syntaxes.HTJ2KLossless,
        "RGB",
        lambda t: bytes(imagecodecs.htj2k_encode(t, reversible=True)),
    ),
    "jpegls": (syntaxes.JPEGLSLossless, "RGB", lambda t: bytes(imagecodecs.jpegls_encode(t))),
    "rle": (syntaxes.RLELossless, "RGB", rle),
    "rle ycbcr": (syntaxes.RLELossless, "YBR_FULL", lambda t: rle(_ycbcr(t))),
    "plain": (syntaxes.ExplicitVRLittleEndian, "RGB", lambda t: t.tobytes()),
    "plain implicit": (syntaxes.ImplicitVRLittleEndian, "RGB", lambda t: t.tobytes()),
    "plain planar": (syntaxes.ExplicitVRLittleEndian, "RGB", lambda t: np.moveaxis(t, 2, 0).tobytes()),
    "plain ycbcr": (syntaxes.ExplicitVRLittleEndian, "YBR_FULL", lambda t: _ycbcr(t).tobytes()),
    "plain 422": (syntaxes.ExplicitVRLittleEndian, "YBR_FULL_422", lambda t: halved_chroma(_ycbcr(t))),
    "plain grey": (syntaxes.ExplicitVRLittleEndian, "MONOCHROME2", lambda t: t.tobytes()),
    "plain inverted": (syntaxes.ExplicitVRLittleEndian, "MONOCHROME1", lambda t: np.invert(t).tobytes()),
}


def tiles_of(pixels: Pixels) -> list[Pixels]:
    """Tiles of 64 px, row by row; those at the border are filled up with white."""
    height, width = pixels.shape[:2]
    padding = [(0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)][: pixels.ndim]
    whole = np.pad(pixels, padding, constant_values=255)
    return [
        np.ascontiguousarray(whole[y : y + TILE_PX, x : x + TILE_PX])
        for y in range(0, height, TILE_PX)
        for x in range(0, width, TILE_PX)
    ]


def positions_of(pixels: Pixels) -> list[tuple[int, int]]:
    """Left and top of each of `tiles_of`, from 1 as DICOM counts."""
    height, width = pixels.shape[:2]
    return [(x + 1, y + 1) for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)]


def write_instance(
    path: Path,
    frames: Sequence[Pixels],
    size_px: tuple[int, int],
    series: dict[str, str] | None = None,
    *,
    codec: str = "jpeg",
    table: str = "basic",
    fragments: int = 1,
    positions: Sequence[tuple[int, int]] | None = None,
    planes: Sequence[float] | None = None,
    path_names: Sequence[str] | None = None,
    optical_paths: Sequence[str] = ("1",),
    spacing_mm: Sequence[float] | None = (0.0005, 0.0005),
    flavour: str = "VOLUME",
    instance: str = "",
    **elements: Any,
) -> Path:
    """One DICOM file of tiles.

    `positions`, `planes`, `path_names`: left and top, z in mm and optical path of each frame, for TILED_SPARSE. `table`
    is "basic", "empty" or "extended". `instance`: its UID. `elements` are set last; None deletes one.
    """
    series = series or dicom_series()
    syntax, photometric, encode = CODECS[codec]
    meta = FileMetaDataset()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    meta.MediaStorageSOPClassUID = data.SOPClassUID = syntaxes.VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = instance or generate_uid()
    meta.TransferSyntaxUID = syntax
    data.ImageType = ["DERIVED", "PRIMARY", flavour, "NONE"]
    data.Modality, data.InstanceNumber = "SM", 1
    data.SeriesInstanceUID, data.StudyInstanceUID = series["series"], series["study"]
    data.FrameOfReferenceUID = series["frame"]
    data.SamplesPerPixel = 1 if photometric.startswith("MONO") else 3
    data.PhotometricInterpretation = photometric
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = int(codec == "plain planar")
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.Rows = data.Columns = TILE_PX
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = size_px
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 1, len(optical_paths)
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    data.DimensionOrganizationType = "TILED_FULL" if positions is None else "TILED_SPARSE"
    data.OpticalPathSequence = [
        _item(OpticalPathIdentifier=name, OpticalPathDescription=name) for name in optical_paths
    ]
    measures = _item(SliceThickness=0.001)
    if spacing_mm is not None:
        measures.PixelSpacing = list(spacing_mm)
    data.SharedFunctionalGroupsSequence = [_item(PixelMeasuresSequence=[measures])]
    if positions is not None:
        data.PerFrameFunctionalGroupsSequence = [
            _place(position, (planes or [0.0] * len(frames))[i], path_names[i] if path_names else None)
            for i, position in enumerate(positions)
        ]
    data.NumberOfFrames = len(frames)
    encoded = [encode(frame) for frame in frames]
    if syntaxes.UID(syntax).is_encapsulated:
        if table == "extended":
            data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(encoded)
        else:
            data.PixelData = encapsulate(encoded, fragments_per_frame=fragments, has_bot=table == "basic")
        data["PixelData"].is_undefined_length = True
    else:
        data.PixelData = b"".join(encoded)
    data["PixelData"].VR = "OB"
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def _place(position: tuple[int, int], z_mm: float, path_name: str | None) -> Dataset:
    place = _item(
        ColumnPositionInTotalImagePixelMatrix=position[0],
        RowPositionInTotalImagePixelMatrix=position[1],
        XOffsetInSlideCoordinateSystem=float(position[1]) / 7,
        YOffsetInSlideCoordinateSystem=float(position[0]) / 11,
        ZOffsetInSlideCoordinateSystem=z_mm,
    )
    group = _item(PlanePositionSlideSequence=[place])
    if path_name is not None:
        group.OpticalPathIdentificationSequence = [_item(OpticalPathIdentifier=path_name)]
    return group


def write_level(
    path: Path, pixels: Pixels, series: dict[str, str] | None = None, *, sparse: bool = False, **options: Any
) -> Path:
    """A whole level in one file. `sparse`: each frame states its position, in reversed order."""
    frames, size_px = tiles_of(pixels), (pixels.shape[1], pixels.shape[0])
    if sparse:
        options["positions"], frames = positions_of(pixels)[::-1], frames[::-1]
    return write_instance(path, frames, size_px, series, **options)


def write_parts(folder: Path, pixels: Pixels, series: dict[str, str], n: int, **options: Any) -> list[Path]:
    """A level as a concatenation of `n` files."""
    frames, uid, files = tiles_of(pixels), generate_uid(), []
    bounds = np.linspace(0, len(frames), n + 1).round().astype(int)
    size_px = pixels.shape[1], pixels.shape[0]
    for index, (start, end) in enumerate(pairwise(bounds)):
        part = {
            "ConcatenationUID": uid,
            "InConcatenationNumber": index + 1,
            "InConcatenationTotalNumber": n,
            "ConcatenationFrameOffsetNumber": int(start),
        }
        file = folder / f"part{n - index}.dcm"  # the names are in another order than the parts
        files.append(write_instance(file, frames[start:end], size_px, series, **part, **options))
    return files
