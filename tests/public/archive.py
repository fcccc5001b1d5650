"""Archives of small slides: the same JPEG tiles as tiled TIFF (the source) and as DICOM series of a bucket.

As a script, a fetch that can be killed: `python archive.py FOLDER OUT ADDRESS JOBS DISK_MB SIDE_PX`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from tests.slides.slide_files import dicom_series, pyramid, tissue, write_svs

from longvit.public.archive_slide import ArchiveSlide
from longvit.public.fetch_job import FetchSettings, fetch

BUCKET = "idc-open-data"
SIDE_PX = 128
_MPP = 0.25


def make_archive(folder: Path, n: int, *, size_px: tuple[int, int] = (448, 320), levels: int = 2) -> list[ArchiveSlide]:
    """Writes n slides: FOLDER/source/<id>.tif, and their series in FOLDER/served/<bucket>/<uid>/."""
    slides = []
    (folder / "source").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(n):
        slide_id, uid = f"TCGA-A{number:03d}-01Z-00-DX1", f"uid-{number:03d}"
        x_px, y_px = int(rng.integers(2220 - size_px[0])), int(rng.integers(2967 - size_px[1]))
        pixels = pyramid(tissue(*size_px, x_px, y_px), levels)
        source = write_svs(folder / "source" / f"{slide_id}.tif", pixels, _MPP, photometric="ycbcr")
        total = write_series(source, folder / "served" / BUCKET / uid)
        slides.append(
            ArchiveSlide(slide_id, slide_id[:9], "idc", f"s3://{BUCKET}/{uid}/*", total, "tcga_brca", "CC BY")
        )
    return slides


def write_series(source: Path, folder: Path) -> int:
    """The levels of a tiled JPEG TIFF as a DICOM series whose frames are the tiles as they are; bytes of its files."""
    folder.mkdir(parents=True)
    series, total = dicom_series(), 0
    with tifffile.TiffFile(source) as tiff:
        for number, page in enumerate(tiff.pages):
            frames = []
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                tiff.filehandle.seek(offset)
                frames.append(tiff.filehandle.read(count))
            path = folder / f"{number}.dcm"
            write_frames(path, frames, page.shape[1], page.shape[0], page.tilewidth, series, number)
            total += path.stat().st_size
    return total


def write_frames(
    path: Path, frames: list[bytes], width_px: int, height_px: int, tile_px: int, series: dict[str, str], level: int
) -> None:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from tests.slides.slide_files import write_dicom

    blank: NDArray[np.uint8] = np.zeros((height_px, width_px, 3), np.uint8)
    write_dicom(path, blank, _MPP * 2**level / 1000, series, level + 1, tile_px)
    data = dcmread(path)
    assert data.NumberOfFrames == len(frames)
    data.PixelData = encapsulate(frames)
    data.save_as(path, enforce_file_format=True)


def write_gdc(folder: Path, n: int) -> list[ArchiveSlide]:
    """SVS files as the GDC serves them, in FOLDER/served/data/<uuid>."""
    slides = []
    for number in range(n):
        path = folder / "served" / "data" / f"uuid-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_svs(path, pyramid(tissue(448, 320, 200 * number, 900), 1), _MPP)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        slides.append(ArchiveSlide(f"TCGA-G{number}", f"G{number}", "gdc", path.name, size, "tcga", "open", md5=md5))
    return slides


def settings(address: str, **more: object) -> FetchSettings:
    """Settings for tests: a small canvas, one worker, hardly any patience."""
    given = {"side_px": SIDE_PX, "jobs": 1, "device": "cpu", "threads": 1, "retries": 0, "network_timeout_s": 5.0}
    return FetchSettings(**(given | {"endpoint": address} | more))  # type: ignore[arg-type]


if __name__ == "__main__":
    folder, out, address, jobs, disk_mb, side_px = sys.argv[1:]
    listed = [ArchiveSlide(*line.split("|")[:4], int(line.split("|")[4]), "tcga_brca", "CC BY")  # type: ignore[arg-type]
              for line in Path(folder, "slides.txt").read_text().splitlines()]  # fmt: skip
    result = fetch(
        listed, out, settings(address, jobs=int(jobs), disk_gb=float(disk_mb) / 1024, side_px=int(side_px), retries=2)
    )
    sys.exit(1 if result.left_out else 0)
