"""Benchmark of reading undamaged files: CPU time of this checkout and of another one, in turn.

    python benchmarks/faults_cost.py --other ../before [--rounds 9] [--files 10000] [--save]

`--other`: a checkout of another commit (`git worktree add ../before COMMIT`). Each measurement is a separate process
that imports `longvit` from one of the two, in the order A B B A A B …, so that drift of the machine affects both.

- list: `find_slides` of a folder of `--files` files in 100 subfolders
- open: `open_slide` of a JPEG TIFF, a Deflate TIFF, an SVS, an OME-TIFF, a PNG and a JPEG
- canvas: a canvas of 1,024 px of the real slide and of Deflate, LZW, JPEG 2000, PNG and JPEG copies of a part of it
- bag: `read_bag` of an .h5 and a .pt file of 20,000 × 384 features

`ratio` is the median of CPU seconds of this checkout over the other's, with the smallest and largest of the rounds;
goal: within 1.05. CPU seconds are less sensitive to other load than wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "CMU-1-Small-Region.svs"
GOAL = 1.05
PARTS = ("list", "open", "canvas", "bag")


def make(folder: Path, n_files: int) -> None:
    """Makes the inputs, all undamaged files."""
    import h5py
    import numpy as np
    import tifffile
    import torch
    from PIL import Image

    pixels = tifffile.imread(EXAMPLE, key=0)[:2048, :2048]
    common: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    for compression in ("jpeg", "deflate", "lzw", "jpeg2000"):
        tifffile.imwrite(folder / f"{compression}.tif", pixels, compression=compression, **common)
    tifffile.imwrite(folder / "a.ome.tif", pixels, photometric="rgb", tile=(256, 256), compression="deflate")
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels).save(folder / "a.jpg", quality=90)
    features = np.random.default_rng(0).standard_normal((20_000, 384), dtype=np.float32)
    with h5py.File(folder / "bag.h5", "w") as file:
        file["features"] = features
        file["coords"] = np.zeros((len(features), 2), np.int64)
    torch.save(torch.from_numpy(features), folder / "bag.pt")
    source = (folder / "jpeg.tif").read_bytes()[:2000]
    for number in range(n_files):
        place = folder / "many" / f"{number % 100:02d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"s{number:05d}{('.tif', '.svs', '.png', '.txt')[number % 4]}").write_bytes(source)


def part(name: str, folder: Path) -> Callable[[], Any]:
    """Runs one pass of a part."""
    from longvit.data.bags import read_bag
    from longvit.data.slide_list import find_slides
    from longvit.slides.reader import open_slide

    names = ("jpeg.tif", "deflate.tif", "a.ome.tif", "a.png", "a.jpg")
    slides = [EXAMPLE, *(folder / slide for slide in names)]

    def opens() -> None:
        for slide in slides * 5:
            with open_slide(slide) as opened:
                _ = opened.size_px

    def canvases() -> None:
        for slide in [*slides, folder / "lzw.tif", folder / "jpeg2000.tif"]:
            with open_slide(slide) as opened:
                found = opened.canvas(1024, threads=1)
            if found.bad_tiles:
                raise SystemExit(f"{slide}: {found.bad_tiles[0]}")

    return {
        "list": lambda: find_slides([folder / "many"]),
        "open": opens,
        "canvas": canvases,
        "bag": lambda: [read_bag(folder / name) for name in ("bag.h5", "bag.pt") * 3],
    }[name]


def one(name: str, folder: Path) -> None:
    """Measures in this process: after one pass that loads libraries, the faster of two."""
    run = part(name, folder)
    run()
    seconds = []
    for _ in range(2):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    print(json.dumps(min(seconds)))


def measured(name: str, folder: Path, checkout: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} of {checkout} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/faults_cost.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]))
        return
    if options.other is None or not (options.other / "src" / "longvit").is_dir():
        parser.error("--other: the folder of another checkout of this repository")
    from side_by_side import report

    rows = []
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), options.files)
        for name in PARTS:
            pairs = []
            for number in range(options.rounds):
                order = (ROOT, options.other) if number % 2 == 0 else (options.other, ROOT)
                seconds = {checkout: measured(name, Path(work), checkout) for checkout in order}
                pairs.append((seconds[ROOT], seconds[options.other]))
            ours, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratios = sorted(a / b for a, b in pairs)
            rows.append(
                {
                    "part": name,
                    "cpu_seconds": round(ours, 4),
                    "other_cpu_seconds": round(other, 4),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratios": [round(ratios[0], 3), round(ratios[-1], 3)],
                    "within_goal": statistics.median(ratios) <= GOAL,
                }
            )
    report("faults_cost", rows, save=options.save)


if __name__ == "__main__":
    main()
