"""Plots of tile scores: the slide, and beside it the slide in grey with the attention scores of its tiles.

    fold_<name>/attention/<slide_id>.png, .geojson        from attention.h5 and the slide file

The colour of a tile is its score relative to the slide's maximum, since attention over thousands of tiles is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from longvit.comparison.tile_scores import TileScores, read_attention, tile_side_px, write_geojson
from longvit.errors import InputError
from longvit.figure import new_figure, not_drawn, plot, short_name, write_figure
from longvit.progress import Progress
from longvit.slides.canvas import Canvas, canvas
from longvit.slides.reader import open_slide

_SIDE_PX = 1024


def draw_trials(trials: Iterable[Path], slides: Mapping[str, Path], number: int, progress: Progress) -> int:
    """Plots the first `number` slides of each trial with scores; returns the number of plots.

    `slides`: slide_id -> file. A slide without file or coordinates is skipped with a log line.
    """
    drawn, canvases = 0, {}
    for trial in trials:
        progress.advance(note=trial.parent.name)
        path = trial / "attention.h5"
        if not path.exists():
            continue
        try:
            scores = read_attention(path)
        except InputError as error:
            progress.log(f"{trial.parent.name}: not drawn: {error}")
            continue
        for slide_scores in [scored for name, scored in scores.items() if name in slides][:number]:
            name = slide_scores.slide_id
            geojson = trial / "attention" / f"{name}.geojson"
            try:
                if name not in canvases:
                    write_geojson(geojson, slide_scores)
                    canvases[name] = canvas(open_slide(slides[name]), _SIDE_PX, "pad")
                bounds = canvases[name].placement.bounds
                write_geojson(geojson, slide_scores, origin=(bounds.x, bounds.y))
                title = f"{trial.parent.name}, {trial.name.replace('_', ' ')}: {name}"
                with not_drawn() as problems:
                    draw_scores(canvases[name], slide_scores, trial / "attention" / f"{name}.png", title=title)
                drawn += not problems
            except InputError as error:
                progress.log(f"{name}: not drawn: {error}")
    return drawn


@plot()
def draw_scores(slide_canvas: Canvas, scores: TileScores, path: str | Path, *, title: str = "") -> None:
    """Writes the plot as PNG, atomically. `slide_canvas`: of any size. `InputError` for scores without coordinates."""
    share = score_map(slide_canvas, scores)
    box = slide_canvas.placement.image_box
    inside = np.s_[int(box.y) : int(box.bottom), int(box.x) : int(box.right)]
    pixels, share = np.asarray(slide_canvas)[inside], share[inside]
    grey = 0.25 + 0.75 * (pixels @ np.array([0.299, 0.587, 0.114], np.float32)) / 255  # light, for readable colours

    panel_in = 5.2
    height_in = min(max(panel_in * pixels.shape[0] / pixels.shape[1], 2.0), 11.0)
    figure = new_figure(2 * panel_in + 1.2, height_in + 0.9)
    slide_axes, map_axes = figure.subplots(1, 2)
    slide_axes.imshow(pixels)
    map_axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
    shown = map_axes.imshow(np.ma.masked_invalid(share), cmap="YlOrRd", vmin=0, vmax=1, alpha=0.6)
    for axes in (slide_axes, map_axes):
        axes.set_xticks([])
        axes.set_yticks([])
    slide_axes.set_title("The slide", fontsize=11)
    map_axes.set_title(f"Scores of {len(scores.scores):,} tiles", fontsize=11)
    bar = figure.colorbar(shown, ax=map_axes, fraction=0.05, pad=0.03)
    bar.set_label(f"score relative to the maximum ({scores.scores.max():.3g})", fontsize=8.5)
    figure.suptitle(short_name(title, 100), fontsize=12)
    write_figure(figure, path, dpi=110)


def score_map(slide_canvas: Canvas, scores: TileScores) -> np.ndarray:
    """Score at each canvas pixel relative to the maximum, float32 (S, S).

    NaN where there is no tile. Where tiles overlap, the higher score counts."""
    side, coords = tile_side_px(scores), scores.coords
    assert coords is not None
    share = np.full(np.asarray(slide_canvas).shape[:2], np.nan, np.float32)
    highest = float(scores.scores.max()) or 1.0
    left, top = slide_canvas.placement.to_canvas(coords[:, 0], coords[:, 1])
    right, bottom = slide_canvas.placement.to_canvas(coords[:, 0] + side, coords[:, 1] + side)
    boxes = np.stack([left, top, right, bottom], 1)
    low, high = np.floor(boxes[:, :2] + 0.5).astype(int), np.floor(boxes[:, 2:] + 0.5).astype(int)
    high = np.maximum(high, low + 1)  # a tile smaller than a pixel covers one
    for i in np.argsort(scores.scores, kind="stable"):
        (x, y), (x_end, y_end) = low[i].clip(min=0), high[i].clip(min=0)
        share[y:y_end, x:x_end] = scores.scores[i] / highest
    return share
