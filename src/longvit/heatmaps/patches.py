"""Top and bottom patches of a heat map as images at full resolution, per slide and over a cohort.

    <slide>.patches/top_01.jpg …       the patches with the highest scores
    <slide>.patches/bottom_01.jpg …    those with the lowest
    <slide>.patches/contact_sheet.jpg  all of them with rank and score

A patch is read from level 0. A patch of more than 2,048 px a side is read from the largest level where it has at most
as many.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longvit.errors import InputError
from longvit.files import make_folder, write_bytes
from longvit.heatmaps.heat_map import HeatMap

if TYPE_CHECKING:
    from PIL.Image import Image

    from longvit.slides.reader import Slide

MOST_PATCH_PX = 2048
CONTACT_SHEET = "contact_sheet.jpg"
_MOST_READ_PX = 8192
_QUALITY = 92
_THUMBNAIL_PX, _CAPTION_PX, _MARGIN_PX, _COLUMNS = 192, 32, 8, 6


@dataclass(frozen=True)
class ScoredPatch:
    """A patch of a slide with its score, and the name of its image in the folder of the slide."""

    kind: str
    """top or bottom."""
    rank: int
    """From 1."""
    score: float
    x_level0_px: float
    y_level0_px: float
    width_level0_px: float
    height_level0_px: float
    file: str


def patches_of(heat_map: HeatMap, k: int) -> tuple[ScoredPatch, ...]:
    """The k highest and the k lowest scores of a map, the highest first; no patch is in both.

    A map with fewer than 2k rectangles has fewer of both.
    """
    k = min(k, len(heat_map.scores) // 2) or min(1, len(heat_map.scores))
    chosen = []
    for kind, indices in (("top", heat_map.highest(k)), ("bottom", heat_map.lowest(k))):
        for rank, i in enumerate(indices.tolist(), 1):
            left, top, right, bottom = heat_map.boxes[i].tolist()
            score = float(heat_map.scores[i])
            name = f"{kind}_{rank:02d}.jpg"
            chosen.append(ScoredPatch(kind, rank, score, left, top, right - left, bottom - top, name))
    return tuple(chosen)


def write_patches(heat_map: HeatMap, slide: Slide, folder: str | Path, k: int) -> tuple[ScoredPatch, ...]:
    """Writes the images of a slide's patches and its contact sheet, each atomically; older ones are removed."""
    folder = make_folder(folder)
    patches = patches_of(heat_map, k)
    captions, images = [], []
    for patch in patches:
        pixels = patch_pixels(slide, patch)
        write_jpeg(pixels, folder / patch.file)
        captions.append(f"{patch.kind} {patch.rank}: {patch.score:+#.3g}")
        images.append(pixels)
    tops = sum(patch.kind == "top" for patch in patches)
    write_bytes(folder / CONTACT_SHEET, contact_sheet(images, captions, tops))
    remove_others(folder, {CONTACT_SHEET, *(patch.file for patch in patches)})
    return patches


def patch_pixels(slide: Slide, patch: ScoredPatch) -> NDArray[np.uint8]:
    """Pixels of a patch, uint8 (height, width, 3): all whole pixels that it touches.

    Raises `InputError` for a patch of more than 8,192 px a side at the lowest level.
    """
    longest = max(patch.width_level0_px, patch.height_level0_px)
    level = next(
        (i for i, level in enumerate(slide.levels) if longest / level.downsample <= MOST_PATCH_PX),
        len(slide.levels) - 1,
    )
    downsample = slide.levels[level].downsample
    x, y = (int(np.floor(v / downsample + 1e-6)) for v in (patch.x_level0_px, patch.y_level0_px))
    right = int(np.ceil((patch.x_level0_px + patch.width_level0_px) / downsample - 1e-6))
    bottom = int(np.ceil((patch.y_level0_px + patch.height_level0_px) / downsample - 1e-6))
    if max(right - x, bottom - y) > _MOST_READ_PX:
        raise InputError(
            f"a patch has {right - x:,} × {bottom - y:,} px at the lowest level; at most {_MOST_READ_PX:,}"
        )
    block = np.empty((max(1, bottom - y), max(1, right - x), 4), np.uint8)
    slide.read_block(level, x, y, block)
    return np.ascontiguousarray(block[..., :3])


def write_jpeg(pixels: NDArray[np.uint8], path: Path) -> None:
    """Writes an image as JPEG without subsampling of colour, atomically."""
    from PIL import Image

    content = io.BytesIO()
    image = Image.fromarray(pixels)
    if max(image.size) > MOST_PATCH_PX:  # no level of the slide is small enough
        image.thumbnail((MOST_PATCH_PX, MOST_PATCH_PX), Image.Resampling.BOX)
    image.save(content, "JPEG", quality=_QUALITY, subsampling=0)
    write_bytes(path, content.getbuffer())


def contact_sheet(images: Sequence[NDArray[np.uint8]], captions: Sequence[str], first: int = 0) -> bytes:
    """JPEG with a thumbnail of every image, six in a row, each above its caption.

    `first`: number of images after which a row ends, so that the others begin a new one.
    """
    from PIL import Image, ImageDraw

    cell_px = _THUMBNAIL_PX + _MARGIN_PX
    columns = max(1, min(_COLUMNS, len(images)))
    rows_of_first = -(-first // columns)
    rows = max(1, rows_of_first - (-(len(images) - first) // columns))
    size = (columns * cell_px + _MARGIN_PX, rows * (cell_px + _CAPTION_PX) + _MARGIN_PX)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(i, columns) if i < first else divmod(i - first + rows_of_first * columns, columns)
        x, y = _MARGIN_PX + column * cell_px, _MARGIN_PX + row * (cell_px + _CAPTION_PX)
        sheet.paste(_thumbnail(pixels), (x, y))
        for line, text in enumerate(caption.split("\n")[:2]):
            draw.text((x, y + _THUMBNAIL_PX + 2 + 12 * line), text[:32].encode("ascii", "replace").decode(), "black")
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=90)
    return content.getvalue()


def remove_others(folder: Path, names: set[str]) -> None:
    """Removes the images in `folder` that an earlier run wrote and this one did not."""
    for path in folder.glob("*.jpg"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _thumbnail(pixels: NDArray[np.uint8]) -> Image:
    """Image enlarged or reduced so that its longer side is that of a thumbnail."""
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = _THUMBNAIL_PX / max(image.size)
    size: Any = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
