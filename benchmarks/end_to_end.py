"""Slide to prediction on a CPU, part by part: cold (decode, model) and warm (cached canvas, model).

    python benchmarks/end_to_end.py [--rounds 3] [--quick] [--save]      (20 minutes on two cores; 0.5 GB of disk)

The slide has 40,000² px in levels of 1 and 1/4, from the JPEG tiles of the example slide (`tiled_slide.py`). The model
is LongViT-S with two classes and random weights, float32. Each way runs in a process of its own, in turn (A B A B …).

`exact`: the canvas is filtered from the level's own pixels, as before. `reduced`: the JPEG decoder reduces the tiles.
`warm`: the canvas is read from its file. `total_s` is the sum of the parts, which do not overlap here.

The last rows: that canvas as a tiled TIFF by codec and tile size (`canvas_codecs.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from canvas_codecs import codec_rows
from side_by_side import measure, report
from tiled_slide import make_slide

MODEL = "longvit_small_patch32"
WAYS = ("exact", "reduced", "warm")


class Clock:
    """Seconds of named parts, in order."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self._start = now - self._start, now


def run_way(way: str, path: Path, side_px: int, cached: Path) -> dict[str, float]:
    """Seconds of the parts of one prediction; the model is made before the clock starts."""
    import torch

    from longvit.model.longvit import create_model
    from longvit.slides.canvas import read_canvas
    from longvit.slides.reader import open_slide

    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=2, image_px=side_px).eval()
    clock = Clock()
    if way == "warm":
        canvas = read_canvas(cached)
        clock.lap("read_canvas_s")
    else:
        with open_slide(path) as slide:
            slide.mpp  # noqa: B018 - opens the file
            clock.lap("open_s")
            canvas = slide.canvas(side_px, decode=way)
        clock.lap("canvas_s")
    with torch.inference_mode():
        pixels = torch.from_numpy(canvas.pixels).permute(2, 0, 1)[None]
        patches = model.patch_embed(pixels)
        clock.lap("patches_s")
        tokens = model.encode(patches)
        clock.lap("encoder_s")
        model.forward_head(tokens)
        clock.lap("head_s")
    return clock.parts | {"total_s": sum(clock.parts.values())}


def rows_of(path: Path, side_px: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Parts of every way, medians over the rounds, and the ratio of the totals; then the codecs."""
    import numpy as np

    from longvit.slides.canvas import write_canvas
    from longvit.slides.reader import open_slide

    with open_slide(path) as slide:
        exact, reduced = slide.canvas(side_px), slide.canvas(side_px, decode="reduced")
    off = np.abs(exact.pixels.astype(np.int16) - reduced.pixels)
    cached = write_canvas(exact, folder / f"{side_px}.tif")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--path", str(path), "--cached", str(cached)]
            found[way].append(measure([*command, "--side", str(side_px)]))
    rows: list[dict[str, Any]] = [
        {
            "what": f"slide → prediction at {side_px}², {way}",
            **{part: round(statistics.median(run[part] for run in runs), 3) for part in runs[0]},
        }
        for way, runs in found.items()
    ]
    totals = {way: row["total_s"] for way, row in zip(WAYS, rows, strict=True)}
    rows[1] |= {
        "filter": reduced.source.filter,
        "x_exact": round(totals["exact"] / totals["reduced"], 2),
        "x_exact_canvas": round(rows[0]["canvas_s"] / rows[1]["canvas_s"], 2),
        "grey_levels_mean": round(float(off.mean()), 3),
        "grey_levels_p999": float(np.quantile(off, 0.999)),
        "grey_levels_max": int(off.max()),
    }
    rows[2] |= {"x_exact": round(totals["exact"] / totals["warm"], 2)}
    return [*rows, *codec_rows(exact.pixels, folder, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small slide, one round: does it run")
    parser.add_argument("--save", action="store_true", help="store the result under benchmarks/results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cached", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run_way(args.way, args.path, args.side, args.cached)))
        return
    slide_px, sides_px, rounds = (8_000, (512, 1_024), 1) if args.quick else (40_000, (4_096, 16_384), args.rounds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        make_slide(path, slide_px, pyramid=True)
        for side_px in sides_px:
            rows += rows_of(path, side_px, Path(folder), rounds if side_px < 8_192 else 1)
    for row in rows:
        print(f"{row['what']}: " + ", ".join(f"{key} {value}" for key, value in row.items() if key != "what"))
    report("end_to_end", rows, args.save)


if __name__ == "__main__":
    main()
