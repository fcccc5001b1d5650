"""Codecs and tile sizes of a cached canvas: seconds to write and read, size, and damage that passes unseen.

    python benchmarks/canvas_codecs.py [--rounds 5] [--quick] [--save]      (2 minutes on two cores)

The canvas has 4,096² px, from a slide of 16,000² px made of the example slide's tiles (`tiled_slide.py`). The codecs
take turns (A B A B …); times are medians. `cpu`: processor time of all threads, which a busy machine changes least.

`unseen_flips`: share of files with one flipped bit in their tiles that are read without an error, with other pixels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from longvit.slides.reader import open_slide
from side_by_side import report
from tiled_slide import make_slide

CODECS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("deflate 1, 256 px (default)", {"compression": "adobe_deflate", "compressionargs": {"level": 1}, "tile": 256}),
    ("deflate 1, 1024 px", {"compression": "adobe_deflate", "compressionargs": {"level": 1}, "tile": 1024}),
    ("zstd 1, 256 px", {"compression": "zstd", "compressionargs": {"level": 1}, "tile": 256}),
    ("zstd 1, 1024 px", {"compression": "zstd", "compressionargs": {"level": 1}, "tile": 1024}),
    ("lzw, 256 px", {"compression": "lzw", "tile": 256}),
    ("none, 256 px", {"compression": None, "tile": 256}),
)
FLIPPED_PX = 1_024
"""Side of the corner of the canvas in which bits are flipped."""


def write(path: Path, pixels: np.ndarray, tile: int, compression: str | None, **more: Any) -> None:
    """A tiled TIFF, as `write_canvas` writes it but for the codec."""
    predictor = compression is not None
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(tile, tile), compression=compression, predictor=predictor, **more
    )


def codec_rows(pixels: np.ndarray, folder: Path, rounds: int, flips: int = 0) -> list[dict[str, Any]]:
    """A row per codec: medians over the rounds; reading uses tifffile's threads."""
    path = folder / "codec.tif"
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name, _ in CODECS}
    sizes = {}
    for _ in range(rounds):
        for name, how in CODECS:
            clocks = [(time.perf_counter(), time.process_time())]
            write(path, pixels, **how)
            clocks.append((time.perf_counter(), time.process_time()))
            again = tifffile.imread(path)
            clocks.append((time.perf_counter(), time.process_time()))
            assert np.array_equal(again, pixels)
            times[name].append(tuple(b - a for i in (0, 1) for a, b in zip(clocks[i], clocks[i + 1], strict=True)))
            sizes[name] = path.stat().st_size
    rows = []
    for name, how in CODECS:
        columns = zip(("write_s", "write_cpu_s", "read_s", "read_cpu_s"), zip(*times[name], strict=True), strict=True)
        row: dict[str, Any] = {"what": f"canvas of {len(pixels)}² as {name}"}
        row |= {column: round(statistics.median(values), 3) for column, values in columns}
        row["share_of_raw"] = round(sizes[name] / pixels.nbytes, 3)
        if flips:
            row |= {"flips": flips, "unseen_flips": unseen_flips(pixels[:FLIPPED_PX, :FLIPPED_PX], path, flips, how)}
        rows.append(row)
    return rows


def unseen_flips(pixels: np.ndarray, path: Path, flips: int, how: dict[str, Any]) -> float:
    """Share of single flipped bits after which the file is read without an error, with other pixels."""
    write(path, pixels, **how)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        first, end = page.dataoffsets[0], page.dataoffsets[-1] + page.databytecounts[-1]
    whole, rng, unseen = path.read_bytes(), np.random.default_rng(0), 0
    for at in rng.integers(8 * first, 8 * end, flips):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        try:
            unseen += not np.array_equal(tifffile.imread(path), pixels)
        except Exception:  # a codec reports damage in many ways
            continue
    return round(unseen / flips, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small canvas, one round: does it run")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    slide_px, side_px, rounds, flips = (4_000, 1_024, 1, 5) if args.quick else (16_000, 4_096, args.rounds, 200)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        make_slide(path, slide_px, pyramid=False)
        with open_slide(path) as slide:
            pixels = slide.canvas(side_px).pixels
        rows = codec_rows(pixels, Path(folder), rounds, flips)
    report("canvas_codecs", rows, args.save and not args.quick)


if __name__ == "__main__":
    main()
