"""A picture of what was cut: the slide, its tissue outlined, its tiles drawn, and in words how many there are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from longvit.figure import LONGEST_LINE, plot, short_name
from longvit.files import atomic_path
from longvit.slides.canvas import Canvas
from longvit.slides.tiles import TileGrid
from longvit.slides.tissue import Tissue

_LEAST_PX = 1200  # a smaller picture is enlarged, by a whole number
_TISSUE, _TILE = (0, 168, 80), (0, 70, 200)
_QUALITY = 88
_BARS_UM = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@plot()
def draw_tiles(canvas: Canvas, tissue: Tissue, grid: TileGrid, path: str | os.PathLike[str], *, title: str) -> Path:
    """Writes a JPEG: `canvas` (from which `tissue` was found) with the outline of the tissue in green and the tiles in
    blue. Atomic."""
    box = canvas.placement.image_box
    slide = Image.fromarray(canvas.pixels[int(box.y) : int(box.bottom), int(box.x) : int(box.right)])
    scale = max(1, round(_LEAST_PX / max(slide.size)))
    slide = slide.resize((slide.width * scale, slide.height * scale), Image.Resampling.BICUBIC)
    pixels = np.array(slide)
    _shade_what_is_left_out(pixels, tissue)
    slide = Image.fromarray(pixels)
    draw = ImageDraw.Draw(slide)
    to_x, to_y = slide.width / tissue.bounds.width, slide.height / tissue.bounds.height
    for x, y in grid.coords:
        left, top = (x - tissue.bounds.x) * to_x, (y - tissue.bounds.y) * to_y
        right, bottom = left + grid.width_level0_px * to_x, top + grid.height_level0_px * to_y
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_TILE, width=1)
    um_per_px = tissue.bounds.width * grid.mpp.x / slide.width
    page = _with_caption(slide, _words(tissue, grid, title), um_per_px)
    path = Path(path)
    with atomic_path(path) as temporary:
        page.save(temporary, format="JPEG", quality=_QUALITY)
    return path


def _shade_what_is_left_out(pixels: NDArray[np.uint8], tissue: Tissue) -> None:
    """Pales what is no tissue and draws the border between the two, in place."""
    height, width = pixels.shape[:2]
    mask = np.asarray(Image.fromarray(tissue.mask).resize((width, height), Image.Resampling.NEAREST))
    pixels[~mask] = 255 - (255 - pixels[~mask]) // 2
    thick = max(2, round(max(width, height) / 400))
    outline = np.zeros_like(mask)
    for axis in (0, 1):
        change = np.flatnonzero(np.diff(mask.astype(np.int8), axis=axis))
        rows, columns = np.unravel_index(change, np.subtract(mask.shape, (axis == 0, axis == 1)))
        for shift in range(thick):
            along = np.minimum((rows if axis == 0 else columns) + shift, mask.shape[axis] - 1)
            outline[(along, columns) if axis == 0 else (rows, along)] = True
    pixels[outline] = _TISSUE


def _words(tissue: Tissue, grid: TileGrid, title: str) -> list[str]:
    settings, n = grid.settings, len(grid)
    ink = f", {tissue.ink_mm2:.3g} mm² of ink or black left out" if tissue.ink_mm2 else ""
    return [
        short_name(title, LONGEST_LINE),
        f"{n:,} tile{'s' * (n != 1)} of {settings.tile_px} px at {settings.mpp:g} µm/px "
        f"({settings.tile_px * settings.mpp:g} µm), out of {grid.places:,} places",
        f"tissue {tissue.area_mm2:.3g} mm²{ink}",
    ]


def _font(size: int) -> FreeTypeFont:
    """Matplotlib's: the one in Pillow has neither µ nor ²."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _with_caption(slide: Image.Image, words: list[str], um_per_px: float) -> Image.Image:
    """The slide on white, with lines of words and a scale bar below."""
    size = max(16, round(max(slide.size) / 70))
    font = _font(size)
    line, margin = round(size * 1.4), size
    width = max(slide.width, round(max(font.getlength(text) for text in words)) + 2 * margin)
    page = Image.new("RGB", (width, slide.height + line * (len(words) + 1) + 2 * margin), "white")
    page.paste(slide, (0, 0))
    draw = ImageDraw.Draw(page)
    y = slide.height + margin
    for text in words:
        draw.text((margin, y), text, fill="black", font=font)
        y += line
    bar_um = max((bar for bar in _BARS_UM if bar / um_per_px <= slide.width / 3), default=_BARS_UM[0])
    bar_px = round(bar_um / um_per_px)
    draw.rectangle((margin, y + line // 2 - 2, margin + bar_px, y + line // 2 + 2), fill="black")
    label = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um} µm"
    draw.text((margin + bar_px + size // 2, y), label, fill="black", font=font)
    return page
