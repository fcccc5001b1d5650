"""Speed of a DICOM slide beside an SVS with the same JPEG tiles, byte for byte.

    python benchmarks/dicom.py [--size-px 20160] [--rounds 5] [--quick] [--save]      (3 minutes on two cores)

A slide of size_px² → canvas of 4,096², and opening alone. In turn (A B C A B C …), in one process, with one thread:

- `svs`: the SVS through the fast path of tiled TIFF
- `dicom`: a DICOM file of one level with the same tiles, with a table of offsets
- `dicom_no_table`: the same without a table: the items are visited when it is opened
- `dicom_sparse`: the same as TILED_SPARSE: a position per frame is read when it is opened
- `dicom_openslide`: the DICOM file through OpenSlide (`--reader openslide`)

`cpu`: processor seconds, which a busy machine changes least. `ratio`: speed in processor seconds, 1 for the SVS.
Target: `dicom` ≥ 0.8. The canvases of all but the last are equal, which is checked.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from longvit.slides.reader import open_slide
from side_by_side import report
from tiled_slide import make_slide

SIDE_PX = 4096
TARGET_RATIO = 0.8


def write_dicom(svs: Path, path: Path, *, has_table: bool, sparse: bool = False) -> None:
    """A DICOM file with the tiles of level 0 of an SVS; the tables that they share are put into each."""
    import tifffile
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

    with tifffile.TiffFile(svs) as tiff:
        page = tiff.pages.first
        size, tile_px, tables = (page.imagewidth, page.imagelength), page.tilewidth, page.jpegtables[2:-2]
        content = svs.read_bytes()
        frames = [
            b"\xff\xd8" + tables + content[at + 2 : at + n]
            for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    meta = FileMetaDataset()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    meta.MediaStorageSOPClassUID = data.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = generate_uid(), generate_uid(), "SM"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.Rows = data.Columns = tile_px
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = size
    data.TotalPixelMatrixFocalPlanes = data.NumberOfOpticalPaths = 1
    data.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    optical, measures, shared = Dataset(), Dataset(), Dataset()
    optical.OpticalPathIdentifier = "1"
    measures.PixelSpacing, measures.SliceThickness = [0.0005, 0.0005], 0.001
    shared.PixelMeasuresSequence = [measures]
    data.OpticalPathSequence, data.SharedFunctionalGroupsSequence = [optical], [shared]
    if sparse:
        data.PerFrameFunctionalGroupsSequence = [
            _position(x, y) for y in range(1, size[1] + 1, tile_px) for x in range(1, size[0] + 1, tile_px)
        ]
    data.NumberOfFrames = len(frames)
    data.PixelData = encapsulate(frames, has_bot=has_table)
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.save_as(path, enforce_file_format=True)


def _position(x: int, y: int) -> Any:
    from pydicom.dataset import Dataset

    place, group = Dataset(), Dataset()
    place.ColumnPositionInTotalImagePixelMatrix, place.RowPositionInTotalImagePixelMatrix = x, y
    place.XOffsetInSlideCoordinateSystem = round(y * 0.0005, 4)
    place.YOffsetInSlideCoordinateSystem = round(x * 0.0005, 4)
    place.ZOffsetInSlideCoordinateSystem = 0.0
    group.PlanePositionSlideSequence = [place]
    return group


def timed(path: Path, side_px: int, reader: str) -> tuple[dict[str, float], np.ndarray, int]:
    """Seconds of opening and of the canvas, the canvas, and the number of tiles."""
    clocks = [(time.perf_counter(), time.process_time())]
    with open_slide(path, reader=reader) as slide:  # type: ignore[arg-type]
        clocks.append((time.perf_counter(), time.process_time()))
        pixels = slide.canvas(side_px, threads=1).pixels
        clocks.append((time.perf_counter(), time.process_time()))
        level = slide.levels[0]
        n_tiles = level.tiles_in(0, 0, *level.size_px)
    spans = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in (clocks[:2], clocks[1:])]
    times = {"open_s": spans[0][0], "open_cpu_s": spans[0][1], "canvas_s": spans[1][0], "canvas_cpu_s": spans[1][1]}
    return times, pixels, n_tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-px", type=int, default=20_160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small slide, to try the script")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    size_px, side_px, rounds = options.size_px, SIDE_PX, options.rounds
    if options.quick:
        size_px, side_px, rounds = 2_400, 512, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_slide(folder / "a.svs", size_px, pyramid=False)
        files = {"svs": (folder / "a.svs", "auto")}
        for kind, how in (
            ("dicom", {"has_table": True}),
            ("dicom_no_table", {"has_table": False}),
            ("dicom_sparse", {"has_table": True, "sparse": True}),
        ):
            (folder / kind).mkdir()
            write_dicom(folder / "a.svs", folder / kind / "a.dcm", **how)
            files[kind] = (folder / kind / "a.dcm", "auto")
        files["dicom_openslide"] = (files["dicom"][0], "openslide")
        times: dict[str, list[dict[str, float]]] = {kind: [] for kind in files}
        first = None
        for _ in range(rounds):
            for kind, (path, reader) in files.items():
                found, pixels, n_tiles = timed(path, side_px, reader)
                times[kind].append(found)
                first = pixels if first is None else first
                assert reader == "openslide" or np.array_equal(pixels, first)
    rows = []
    for kind, runs in times.items():
        row: dict[str, Any] = {"what": kind, "size_px": size_px, "tiles": n_tiles, "side_px": side_px}
        row |= {column: round(statistics.median(run[column] for run in runs), 4) for column in runs[0]}
        pairs = zip(times["svs"], runs, strict=True)
        row["ratio"] = round(statistics.median(a["canvas_cpu_s"] / b["canvas_cpu_s"] for a, b in pairs), 3)
        rows.append(row)
    rows.append({"target": "dicom / svs", "at_least": TARGET_RATIO, "reached": rows[1]["ratio"] >= TARGET_RATIO})
    report("dicom", rows, options.save)


if __name__ == "__main__":
    main()
