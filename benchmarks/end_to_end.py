"""Slide to prediction on a CPU, part by part: cold (decode, model) and warm (cached canvas, model).

    python benchmarks/end_to_end.py [--rounds 3] [--quick] [--save]      (20 minutes on two cores; 1 GB of disk)

The slides have 40,000² px, from the JPEG tiles of the example slide (`tiled_slide.py`): one in levels of 1 and 1/4,
one with the full level alone, as many scanners and converters leave it. The model is LongViT-S with two classes and
random weights, float32. Each way runs in a process of its own, in turn (A B A B …).

`exact`: the canvas is filtered from the level's own pixels. `reduced`: the JPEG decoder reduces the tiles, where a
level has at least four times the canvas's pixels along a side. `warm`: the canvas is read from its file. The model
takes the same time for all ways, so its parts are timed once a round (`model`); `total_s` is the sum of both.

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
MODEL_WAY = "model"


class Clock:
    """Seconds of named parts, in order."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name], self._start = now - self._start, now


def run_way(way: str, path: Path, side_px: int, cached: Path) -> dict[str, float]:
    """Seconds of the parts of one way to the canvas, or of the model on the cached canvas."""
    from longvit.slides.canvas import read_canvas
    from longvit.slides.reader import open_slide

    if way == MODEL_WAY:
        return run_model(read_canvas(cached).pixels, side_px)
    clock = Clock()
    if way == "warm":
        read_canvas(cached)
    else:
        with open_slide(path) as slide:
            slide.mpp  # noqa: B018 - opens the file
            clock.lap("open_s")
            slide.canvas(side_px, decode=way)
    clock.lap("canvas_s")
    return clock.parts


def run_model(pixels: Any, side_px: int) -> dict[str, float]:
    """Seconds of the parts of the model; it is made before the clock starts."""
    import torch

    from longvit.model.longvit import create_model

    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=2, image_px=side_px).eval()
    clock = Clock()
    with torch.inference_mode():
        patches = model.patch_embed(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        clock.lap("patches_s")
        tokens = model.encode(patches)
        clock.lap("encoder_s")
        model.forward_head(tokens)
        clock.lap("head_s")
    return clock.parts


def rows_of(
    path: Path, side_px: int, folder: Path, rounds: int, model: dict[str, float] | None
) -> list[dict[str, Any]]:
    """Parts of every way, medians over the rounds. `model`: the parts of the model, if already timed at this side."""
    import numpy as np

    from longvit.slides.canvas import write_canvas
    from longvit.slides.reader import open_slide

    with open_slide(path) as slide:
        exact, reduced = slide.canvas(side_px), slide.canvas(side_px, decode="reduced")
    off = np.abs(exact.pixels.astype(np.int16) - reduced.pixels)
    cached = write_canvas(exact, folder / f"{side_px}.tif")
    ways = WAYS if model else (*WAYS, MODEL_WAY)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            command = [sys.executable, __file__, "--way", way, "--path", str(path), "--cached", str(cached)]
            runs[way].append(measure([*command, "--side", str(side_px)]))
    parts = {way: medians(rows) for way, rows in runs.items()} | ({MODEL_WAY: model} if model else {})
    model_s = sum(parts[MODEL_WAY].values())
    totals = {way: sum(parts[way].values()) + model_s for way in WAYS}
    rows: list[dict[str, Any]] = [
        {
            "what": f"{path.stem}: slide → prediction at {side_px}², {way}",
            **{name: round(seconds, 3) for name, seconds in (parts[way] | parts[MODEL_WAY]).items()},
            "total_s": round(totals[way], 3),
            "x_exact_canvas": round(sum(parts["exact"].values()) / sum(parts[way].values()), 2),
            "x_exact_total": round(totals["exact"] / totals[way], 2),
        }
        for way in WAYS
    ]
    rows[1] |= {
        "filter": reduced.source.filter,
        "grey_levels_mean": round(float(off.mean()), 3),
        "grey_levels_p999": float(np.quantile(off, 0.999)),
        "grey_levels_max": int(off.max()),
    }
    show(rows)
    return rows


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        values = ", ".join(f"{key} {value}" for key, value in row.items() if key != "what")
        print(f"{row['what']}: {values}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small slide, one round: does it run")
    parser.add_argument("--save", action="store_true", help="store the result under benchmarks/results")
    parser.add_argument("--way", choices=(*WAYS, MODEL_WAY), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cached", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run_way(args.way, args.path, args.side, args.cached)))
        return
    from longvit.slides.canvas import read_canvas

    slide_px, sides_px, rounds = (8_000, (512, 1_024), 1) if args.quick else (40_000, (4_096, 16_384), args.rounds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        slides = [folder / "two levels.svs", folder / "one level.svs"]
        for path, pyramid in zip(slides, (True, False), strict=True):
            make_slide(path, slide_px, pyramid=pyramid)
        for side_px in sides_px:
            model = None
            for path in slides:
                found = rows_of(path, side_px, folder, rounds if side_px < 8_192 else 1, model)
                model = {name: found[0][name] for name in ("patches_s", "encoder_s", "head_s")}
                rows += found
            codecs = codec_rows(read_canvas(folder / f"{side_px}.tif").pixels, folder, rounds if side_px < 8_192 else 1)
            show(codecs)
            rows += codecs
    report("end_to_end", rows, args.save)


if __name__ == "__main__":
    main()
