"""Benchmark of slide → canvas → embedding: speed against OpenSlide + Pillow, peak memory, decoding beside the model.

    python benchmarks/canvas.py [--rounds 3] [--quick] [--save]      (15 minutes; 3 GB of disk, 6 GB of memory)

The slides are made in a temporary folder from the JPEG tiles of the example (`tiled_slide.py`). Each measurement runs
in a separate process, in turn (A B A B …). All use bicubic resampling from the level that our reader selects.

1. 20,160² px of one level → 4,096².
2. 100,000² px (BigTIFF, levels of 1 and 1/4) → 32,768²: the first eighth of its rows against OpenSlide + Pillow, and
   the peak memory of our stream of strips over the whole. `patches`: the same stream embedded into 1,048,576 patches of
   LongViT-S, strip by strip. `grey_levels`: the largest difference between our TIFF reader and OpenSlide, on strips.
3. `slide → embedding` for a list of slides (`embed_slides` decodes the next slide during the model)
   against decoding alone and the model alone. And for one slide (`model.embed(slide)`), where the encoder waits for
   the last patch. One thread decodes and one computes, so that they do not share a core on two cores.

4. 100,000² px → 4,096² with tiles that the JPEG decoder reduces (`decode="reduced"`), against exact decoding and
   OpenSlide + Pillow, with the difference in grey levels. `--reduced` runs this part alone.

- `openslide`: usual code with openslide-python and Pillow, bounded in memory; `read_region` of bands of whole tile
  rows, `convert("RGB")`, `resize` along x, then along y; one thread
- `openslide_threads`: the same work on as many threads as ours has (a handle each; both release the GIL)
- `openslide_whole`: one `read_region` of the whole level, as most code does
- `ours_1_thread`: ours without threads

`cores` is CPU seconds per second; it is low where other processes used the cores. Prints a table and JSON.
Targets: 3 × `openslide`, ≤ 1 GB, ≤ 1.3 × the slower of decoding and model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from side_by_side import measure, report
from tiled_slide import make_slide

BAND_PX = 960  # whole rows of tiles; 240, 480 and 1,920 are within 5 %
NARROW_BYTES = 2**30  # memory of the OpenSlide variant between its two passes
STRIP_PX = 64
TARGET_RATIO, TARGET_MB, TARGET_OVERLAP = 3.0, 1000, 1.3
TARGET_REDUCED = 6.0
LIST = 6
MODEL = "longvit_small_patch32"


def ours(path: str, side_px: int, rows: tuple[int, int], threads: int | None = None) -> str:
    """Reads our canvas as strips; returns the name of the reader."""
    from longvit.slides.reader import open_slide

    with open_slide(path) as slide:
        for strip in slide.strips(side_px, rows=rows, strip_px=STRIP_PX, threads=threads):
            if strip.bad_tiles:
                raise SystemExit(f"{len(strip.bad_tiles)} unreadable tiles: {strip.bad_tiles[0]}")
        return f"{slide.reader} ({slide.reader_version})"


def ours_reduced(path: str, side_px: int, rows: tuple[int, int]) -> str:
    """Reads the strips of our canvas from tiles that the JPEG decoder reduces."""
    from longvit.slides.reader import open_slide
    from longvit.slides.strips import plan_canvas

    with open_slide(path) as slide:
        for _ in slide.strips(side_px, decode="reduced", rows=rows, strip_px=STRIP_PX):
            pass
        return f"reduced by {plan_canvas(slide, side_px, decode='reduced').level.reduction}"


def reduced_grey_levels(path: str, side_px: int, rows: tuple[int, int]) -> str:
    """Mean, 99.9 % quantile and maximum of the difference between reduced and exact decoding, as JSON."""
    import numpy as np

    from longvit.slides.reader import open_slide

    with open_slide(path) as slide:
        exact, reduced = slide.canvas(side_px), slide.canvas(side_px, decode="reduced")
    off = np.abs(exact.pixels.astype(np.int16) - reduced.pixels)
    return json.dumps([round(float(off.mean()), 3), float(np.quantile(off, 0.999)), int(off.max())])


def ours_1_thread(path: str, side_px: int, rows: tuple[int, int]) -> str:
    return ours(path, side_px, rows, threads=1)


def patches(path: str, side_px: int, rows: tuple[int, int]) -> str:
    """Embeds the canvas into patches as a stream."""
    from longvit.model.embedding import PatchEmbedding
    from longvit.model.longvit import SIZES
    from longvit.slides.reader import open_slide

    c = SIZES[MODEL]
    embedding = PatchEmbedding(c.embed_dim, c.patch_px, c.grid)
    with open_slide(path) as slide:
        strips = slide.strips(side_px, rows=rows, strip_px=embedding.strip_px(side_px))
        first, end = (y // embedding.patch_px for y in rows)
        image = embedding.patches_in(side_px, side_px)
        tokens = embedding.from_strips((strip.pixels for strip in strips), image, first=first, end=end)
    return f"{tokens.shape[1]} tokens, {tokens.nbytes / 2**20:.0f} MB"


def openslide(path: str, side_px: int, rows: tuple[int, int], threads: int = 1) -> str:
    import openslide
    from PIL import Image

    bicubic = Image.Resampling.BICUBIC
    with openslide.OpenSlide(path) as first:
        level = max(i for i, size in enumerate(first.level_dimensions) if min(size) >= side_px)
        (width_px, height_px), down = first.level_dimensions[level], first.level_downsamples[level]
    scale = height_px / side_px
    parts = max(threads, math.ceil((rows[1] - rows[0]) * scale * side_px * 4 / NARROW_BYTES))

    def part(index: int) -> None:
        start, end = (rows[0] + (rows[1] - rows[0]) * i // parts for i in (index, index + 1))
        low = max(0, int((start - 2) * scale) - 1)
        high = min(height_px, math.ceil((end + 2) * scale) + 1)
        narrow = Image.new("RGB", (side_px, high - low))
        with openslide.OpenSlide(path) as slide:
            for y_px in [low, *range((low // BAND_PX + 1) * BAND_PX, high, BAND_PX)]:
                band_px = min(y_px // BAND_PX * BAND_PX + BAND_PX, high) - y_px
                band = slide.read_region((0, round(y_px * down)), level, (width_px, band_px)).convert("RGB")
                narrow.paste(band.resize((side_px, band_px), bicubic), (0, y_px - low))
        box = (0, max(0, start * scale - low), side_px, min(high - low, end * scale - low))
        narrow.resize((side_px, end - start), bicubic, box=box)

    if threads == 1:
        for index in range(parts):
            part(index)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(parts)))
    return f"OpenSlide {openslide.__library_version__}"


def openslide_threads(path: str, side_px: int, rows: tuple[int, int]) -> str:
    return openslide(path, side_px, rows, threads=cores())


def openslide_whole(path: str, side_px: int, rows: tuple[int, int]) -> str:
    import openslide
    from PIL import Image

    slide = openslide.OpenSlide(path)
    whole = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
    whole.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return f"OpenSlide {openslide.__library_version__}"


def same_pixels(path: str, side_px: int, rows: tuple[int, int]) -> str:
    """Largest difference between our two readers, on four strips."""
    import numpy as np

    from longvit.slides.reader import open_slide

    largest = 0
    with open_slide(path, reader="tiff") as fast, open_slide(path, reader="openslide") as slow:
        for y in np.linspace(rows[0], rows[1] - STRIP_PX, 4).astype(int):
            strips = [next(s.strips(side_px, rows=(int(y), int(y) + STRIP_PX))) for s in (fast, slow)]
            a, b = (strip.pixels.astype(np.int16) for strip in strips)
            largest = max(largest, int(np.abs(a - b).max()))
    return str(largest)


def _one_thread_each() -> Any:
    """Sets one thread for decoding and one for the model; returns the model."""
    import torch

    from longvit.model.longvit import create_model
    from longvit.slides import strips

    torch.set_num_threads(1)
    strips.cpu_count = lambda: 1
    torch.manual_seed(0)
    return create_model(MODEL).eval()


def _on_slides(path: str, side_px: int, n: int) -> dict[str, Callable[[], Any]]:
    """Functions to be timed for n slides: decoding, model, both."""
    from dataclasses import replace

    import numpy as np

    from longvit.data.slide_list import ListedSlide
    from longvit.slide_jobs.embed import embed_slides
    from longvit.slides.reader import open_slide

    model = _one_thread_each()
    model.config = replace(model.config, image_px=side_px)
    with open_slide(path) as slide:
        canvas = slide.canvas(side_px)
    expected = model.embed(canvas)

    def decode() -> None:
        for _ in range(n):
            with open_slide(path) as slide:
                slide.canvas(side_px)

    def compute() -> None:
        for _ in range(n):
            model.embed(canvas)

    def one_slide() -> None:
        for _ in range(n):
            with open_slide(path) as slide:
                embedding = model.embed(slide)
            assert np.array_equal(embedding, expected), "stream and canvas differ in bits"

    def listed() -> None:
        with tempfile.TemporaryDirectory() as out:
            result = embed_slides([ListedSlide(f"s{i}", Path(path)) for i in range(n)], out, model)
            assert len(result.done) == n, result.problems

    return {"decode": decode, "model": compute, "both": listed if n > 1 else one_slide}


def overlap(path: str, side_px: int, n: int, rounds: int) -> dict[str, Any]:
    """Median seconds of decoding, model and both for n slides, in turn; in this process."""
    found: dict[str, list[float]] = {}
    ways = _on_slides(path, side_px, n)
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found.setdefault(name, []).append(time.perf_counter() - start)
    return {name: round(statistics.median(seconds), 2) for name, seconds in found.items()}


WAYS: dict[str, Callable[..., str]] = {
    "ours": ours,
    "openslide": openslide,
    "openslide_threads": openslide_threads,
    "ours_1_thread": ours_1_thread,
    "openslide_whole": openslide_whole,
    "patches": patches,
    "same_pixels": same_pixels,
    "ours_reduced": ours_reduced,
    "reduced_grey_levels": reduced_grey_levels,
}


def run_one(way: str, path: str, side_px: int, rows: tuple[int, int]) -> dict[str, Any]:
    """Runs one measurement."""
    start, start_cpu = time.perf_counter(), time.process_time()
    by = WAYS[way](path, side_px, rows)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak_kb = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": int(peak_kb) / 1024, "by": by}


def worker(way: str, path: Path, side_px: int, first: int, end: int, *more: str) -> list[str]:
    """Command of one measurement."""
    rows = ["--rows", str(first), str(end)]
    return [sys.executable, __file__, "--way", way, "--path", str(path), "--side", str(side_px), *rows, *more]


def compare(what: str, path: Path, side_px: int, end: int, ways: list[str], rounds: int) -> list[dict[str, Any]]:
    """Medians and ratios of all ways on canvas rows [0, end), `rounds` times in turn, each in a separate process."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            found[way].append(measure(worker(way, path, side_px, 0, end)))
    rows = [
        {
            "what": what,
            "way": way,
            "seconds": round(statistics.median(run["seconds"] for run in runs), 2),
            "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in runs), 2),
            "cores": round(statistics.median(run["cpu_seconds"] / run["seconds"] for run in runs), 2),
            "peak_mb": round(max(run["peak_mb"] for run in runs)),
            "by": runs[0]["by"],
        }
        for way, runs in found.items()
    ]
    if "openslide" in ways:
        by_way = {row["way"]: row for row in rows}
        ours, ratio = by_way["ours"], by_way["openslide"]["seconds"] / by_way["ours"]["seconds"]
        ratios = {f"x_{way}": round(by_way[way]["seconds"] / ours["seconds"], 2) for way in ways if way[:2] == "op"}
        rows.append(
            {
                "what": f"{what}: times as fast as",
                **ratios,
                "x_openslide_cpu": round(by_way["openslide"]["cpu_seconds"] / ours["cpu_seconds"], 2),
                "grey_levels": int(measure(worker("same_pixels", path, side_px, 0, end))["by"]),
                "peak_mb": ours["peak_mb"],
                "target": f">= {TARGET_RATIO:g} x_openslide, <= {TARGET_MB} MB",
                "reached": ratio >= TARGET_RATIO and ours["peak_mb"] <= TARGET_MB,
            }
        )
    return rows


def reduced_rows(path: Path, large_px: int, side_px: int, rounds: int) -> list[dict[str, Any]]:
    """Exact and reduced decoding against OpenSlide for a canvas far smaller than the slide, with the grey levels."""
    what = f"{large_px}² px → {side_px}²"
    rows = compare(what, path, side_px, side_px, ["ours", "openslide", "ours_reduced"], rounds)
    seconds = {row["way"]: row["seconds"] for row in rows if "way" in row}
    mean, p999, largest = json.loads(measure(worker("reduced_grey_levels", path, side_px, 0, side_px))["by"])
    ratio = seconds["openslide"] / seconds["ours_reduced"]
    rows.append(
        {
            "what": f"{what}, reduced: times as fast as",
            "x_openslide": round(ratio, 2),
            "x_ours": round(seconds["ours"] / seconds["ours_reduced"], 2),
            "grey_levels_mean": mean,
            "grey_levels_p999": p999,
            "grey_levels_max": largest,
            "target": f">= {TARGET_REDUCED:g} x_openslide",
            "reached": ratio >= TARGET_REDUCED,
        }
    )
    return rows


def overlap_row(path: Path, side_px: int, n: int, rounds: int) -> dict[str, Any]:
    """Seconds of decoding, model and both for n slides, and the ratio to the slower."""
    found = measure(worker("overlap", path, side_px, 0, n, "--rounds", str(rounds)))
    ratio = found["both"] / max(found["decode"], found["model"])
    row = {"what": f"slide → embedding, {n} × {side_px}²" if n > 1 else f"one slide → embedding, {side_px}²", **found}
    row |= {"x_sum": round(found["both"] / (found["decode"] + found["model"]), 2), "x_slower": round(ratio, 2)}
    if n > 1:
        row |= {"target": f"x_slower <= {TARGET_OVERLAP:g}", "reached": ratio <= TARGET_OVERLAP}
    return row


def cores() -> int:
    return len(os.sched_getaffinity(0))


def table(rows: list[dict[str, Any]]) -> str:
    """Table of the rows as text."""
    lines = []
    for row in rows:
        cells = [f"{key} {value}" for key, value in row.items() if key not in ("what", "way", "by")]
        lines.append(f"{row['what']}{' by ' + row['way'] if 'way' in row else ''}: {', '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small slides, one round: does it run")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--reduced", action="store_true", help="only 4, saved as canvas_reduced")
    parser.add_argument("--way", choices=[*WAYS, "overlap"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way == "overlap":
        print(json.dumps(overlap(args.path, args.side, args.rows[1], args.rounds)))
        return
    if args.way:
        print(json.dumps(run_one(args.way, args.path, args.side, tuple(args.rows))))
        return
    rounds = 1 if args.quick else args.rounds
    small_px, side_px, large_px, large_side_px, model_px = (
        (5_040, 1_024, 12_000, 4_096, 512) if args.quick else (20_160, 4_096, 100_000, 32_768, 2_048)
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.reduced:
            path = Path(folder) / "large.svs"
            make_slide(path, large_px, pyramid=True)
            rows = reduced_rows(path, large_px, side_px, rounds)
            print(table(rows))
            report("canvas_reduced", rows, args.save)
            return
        path = Path(folder) / "small.svs"
        make_slide(path, small_px, pyramid=False)
        rows += compare(f"{small_px}² px → {side_px}²", path, side_px, side_px, list(WAYS)[:5], rounds)
        rows.append(overlap_row(path, model_px, LIST, rounds))
        rows.append(overlap_row(path, model_px, 1, rounds))
        path = Path(folder) / "large.svs"
        make_slide(path, large_px, pyramid=True)
        what = f"{large_px}² px → {large_side_px}²"
        rows += reduced_rows(path, large_px, side_px, rounds)
        rows += compare(f"{what}, 1/8 of it", path, large_side_px, large_side_px // 8, list(WAYS)[:3], rounds)
        rows += compare(f"{what}, whole", path, large_side_px, large_side_px, ["ours", "patches"], 1)
    print(table(rows))
    report("canvas", rows, args.save)


if __name__ == "__main__":
    main()
