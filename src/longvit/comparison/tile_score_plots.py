"""What a system looked at, on the slide: beside the slide the same in grey under the scores of its tiles.

    fold_<name>/attention/<slide_id>.png, .geojson        made of attention.h5 and the slide's file

A tile's colour is its score as a share of the slide's highest: attention over ten thousand tiles is small in itself.
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
    """Draws the first `number` slides of each cell that has scores; → how many pictures. `slides`: slide_id -> file.

    A slide that is not there or has no coordinates costs its picture and a line.
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
        for of_slide in [of for name, of in scores.items() if name in slides][:number]:
            name = of_slide.slide_id
            try:
                write_geojson(trial / "attention" / f"{name}.geojson", of_slide)
                if name not in canvases:
                    canvases[name] = canvas(open_slide(slides[name]), _SIDE_PX, "pad")
                title = f"{trial.parent.name}, {trial.name.replace('_', ' ')}: {name}"
                with not_drawn() as problems:
                    draw_scores(canvases[name], of_slide, trial / "attention" / f"{name}.png", title=title)
                drawn += not problems
            except InputError as error:
                progress.log(f"{name}: not drawn: {error}")
    return drawn


@plot()
def draw_scores(of: Canvas, of_slide: TileScores, path: str | Path, *, title: str = "") -> None:
    """Writes a PNG. `of`: the slide as a canvas of any size; atomic. `InputError` for scores without coordinates."""
    share = score_map(of, of_slide)
    box = of.placement.image_box
    inside = np.s_[int(box.y) : int(box.bottom), int(box.x) : int(box.right)]
    pixels, share = np.asarray(of)[inside], share[inside]
    grey = 0.25 + 0.75 * (pixels @ np.array([0.299, 0.587, 0.114], np.float32)) / 255  # light, so that colours read

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
    map_axes.set_title(f"Scores of {len(of_slide.scores):,} tiles", fontsize=11)
    bar = figure.colorbar(shown, ax=map_axes, fraction=0.05, pad=0.03)
    bar.set_label(f"share of the highest score ({of_slide.scores.max():.3g})", fontsize=8.5)
    figure.suptitle(short_name(title, 100), fontsize=12)
    write_figure(figure, path, dpi=110)


def score_map(of: Canvas, of_slide: TileScores) -> np.ndarray:
    """float32 (S, S): the score over each canvas pixel as a share of the highest, NaN where there is no tile; where
    tiles overlap, the higher one."""
    side, coords = tile_side_px(of_slide), of_slide.coords
    assert coords is not None
    found = np.full(np.asarray(of).shape[:2], np.nan, np.float32)
    highest = float(of_slide.scores.max()) or 1.0
    left, top = of.placement.to_canvas(coords[:, 0], coords[:, 1])
    right, bottom = of.placement.to_canvas(coords[:, 0] + side, coords[:, 1] + side)
    boxes = np.stack([left, top, right, bottom], 1)
    low, high = np.floor(boxes[:, :2] + 0.5).astype(int), np.floor(boxes[:, 2:] + 0.5).astype(int)
    high = np.maximum(high, low + 1)  # a tile smaller than a pixel still has one
    for i in np.argsort(of_slide.scores, kind="stable"):
        (x, y), (x_end, y_end) = low[i].clip(min=0), high[i].clip(min=0)
        found[y:y_end, x:x_end] = of_slide.scores[i] / highest
    return found
