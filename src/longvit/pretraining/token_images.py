"""Images of a backbone's embeddings: patch tokens as colours, and nearest neighbours of regions.

Colours: the first three principal components of the patch tokens of all regions are red, green and blue, as in DINOv2
(Oquab et al. 2023, figure 1), without its foreground threshold. So equal colours mean equal tokens, also between
regions. The sign of a component is arbitrary: its largest loading is made positive.

n regions, S side in px, N tokens of a region, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longvit.figure import LONGEST_LINE, short_name
from longvit.files import atomic_path
from longvit.pretraining.feature_metrics import unit_rows
from longvit.pretraining.probes import Probe, Regions, embed_regions

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from longvit.model.longvit import LongViT

_SHOWN = 6  # regions shown as colours, queries of either kind
_GAP_PX = 8
_TAIL = 1.0  # percent of the tokens beyond either end of the colours
# A sheet is three tiles wide, readable on a phone: the query covers four tiles, its neighbours are at the right and at
# the bottom.
_TILE_PX = 160
_TEXT_PX = 17
_LINE_PX = 24
_PLACES = ((2, 0), (2, 1), (0, 2), (1, 2), (2, 2))  # column, row
NEIGHBOURS = len(_PLACES)
_INK, _SAME, _OTHER = (28, 36, 48), (0, 158, 115), (213, 94, 0)


@dataclass(frozen=True)
class Components:
    """Principal components: the directions of largest variance."""

    mean: NDArray[np.float64]
    """(D,)."""
    directions: NDArray[np.float64]
    """(components, D), orthonormal, the largest variance first."""
    shares: NDArray[np.float64]
    """(components,) fractions of the variance."""


def principal_components(tokens: ArrayLike, components: int = 3) -> Components:
    """Principal components of (M, D), M ≥ 2, D ≥ `components`, in float64; the largest loading of each is positive."""
    x = np.asarray(tokens, dtype=np.float64)
    mean = x.mean(0)
    x = x - mean
    variances, vectors = np.linalg.eigh(x.T @ x)  # ascending
    directions = vectors[:, ::-1][:, :components].T
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(components), largest])[:, None]
    total = max(float(variances.sum()), np.finfo(np.float64).tiny)
    return Components(mean, directions, np.clip(variances[::-1][:components], 0, None) / total)


def token_pca_images(backbone: LongViT, pixels: Regions, batch_size: int = 4) -> list[NDArray[np.uint8]]:
    """Token images of regions uint8 (n, S, S, 3): per region an image (S, 2 S + gap, 3).

    Left is the region, right its tokens as colours, a square per patch. A colour spans the 1st to the 99th percentile
    of its component over all regions. The model must not be sharded; it runs in eval mode and keeps its own mode.
    """
    tokens = _tokens(backbone, pixels, batch_size)
    n, side_px = len(pixels), len(pixels[0])
    flat = tokens.reshape(-1, tokens.shape[-1])
    pca = principal_components(flat)
    values = (flat - pca.mean) @ pca.directions.T
    low, high = np.percentile(values, [_TAIL, 100 - _TAIL], axis=0)
    values = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    rows = side_px // backbone.config.patch_px
    colours = np.round(255 * values).astype(np.uint8).reshape(n, rows, rows, 3)
    colours = colours.repeat(backbone.config.patch_px, 1).repeat(backbone.config.patch_px, 2)
    gap = np.full((side_px, _GAP_PX, 3), 255, np.uint8)
    return [np.concatenate([np.asarray(region), gap, image], 1) for region, image in zip(pixels, colours, strict=True)]


def _tokens(backbone: LongViT, pixels: Regions, batch_size: int) -> NDArray[np.float32]:
    """Tokens (n, N, D) before the mean: after the LayerNorm with `token_norm`."""
    import torch

    was_training = backbone.training
    backbone.eval()
    batches = []
    try:
        with torch.no_grad():
            for start in range(0, len(pixels), batch_size):
                images = torch.from_numpy(np.stack(list(pixels[start : start + batch_size])))
                tokens = backbone.forward_features(images.permute(0, 3, 1, 2).contiguous())
                if backbone.config.pool_norm == "token_norm":
                    tokens = backbone.fc_norm(tokens)
                batches.append(tokens.float().cpu().numpy())
    finally:
        backbone.train(was_training)
    return np.concatenate(batches)


@dataclass(frozen=True)
class Neighbours:
    """Query and its nearest regions, by index."""

    query: int
    nearest: tuple[int, ...]
    cosines: tuple[float, ...]


def nearest_neighbours(
    features: ArrayLike, groups: Sequence[str] | None = None, *, queries: int = 6, k: int = NEIGHBOURS
) -> tuple[Neighbours, ...]:
    """Nearest neighbours by cosine: `k` regions for each of `queries` regions, evenly spaced in the given order.

    With `groups`, regions of the query's own group (slide, patient) are excluded, since stain alone would match them.
    Of equal cosines the first region comes first.
    """
    x = unit_rows(features)
    n = len(x)
    group = np.arange(n) if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    neighbours = []
    for query in evenly_spaced(n, queries):
        cosine = x @ x[query]
        others = np.flatnonzero(group != group[query])
        order = others[np.argsort(-cosine[others], kind="stable")][:k]
        neighbours.append(Neighbours(query, tuple(order.tolist()), tuple(cosine[order].tolist())))
    return tuple(neighbours)


def neighbours_sheet(
    neighbours: Neighbours, pixels: Regions, names: Sequence[str], labels: Sequence[str] | None = None
) -> NDArray[np.uint8]:
    """Sheet with the query, large, and its neighbours with their cosines, the nearest at the top right.

    `pixels` and `names` are those of all regions. `labels` replace the names: a neighbour with the query's label has a
    green frame, one with another label an orange frame.
    """
    from PIL import Image, ImageDraw

    captions = names if labels is None else labels
    column_px, row_px = _TILE_PX + _GAP_PX, _TILE_PX + _LINE_PX
    sheet = Image.new("RGB", (3 * column_px - _GAP_PX, 3 * row_px), "white")
    draw, font = ImageDraw.Draw(sheet), _font()

    def tile(i: int, x: int, y: int, side_px: int, text: str, frame: tuple[int, int, int] | None = None) -> None:
        image = Image.fromarray(np.asarray(pixels[i]))
        sheet.paste(image.resize((side_px, side_px), Image.Resampling.BICUBIC, reducing_gap=3), (x, y))
        if frame:
            draw.rectangle((x, y, x + side_px - 1, y + side_px - 1), outline=frame, width=5)
        room_px = side_px - font.getlength(text)
        draw.text((x, y + side_px + 2), text + _shortened(captions[i], font, room_px), fill=_INK, font=font)

    tile(neighbours.query, 0, 0, 2 * _TILE_PX + _GAP_PX, "")
    for (column, row), i, cosine in zip(_PLACES, neighbours.nearest, neighbours.cosines, strict=False):
        frame = None if labels is None else _SAME if labels[i] == labels[neighbours.query] else _OTHER
        tile(i, column * column_px, row * row_px, _TILE_PX, f"{cosine:.2f} ", frame)
    return np.asarray(sheet)


def write_plots(
    folder: str | Path,
    backbone: LongViT,
    pixels: Regions,
    names: Sequence[str],
    probe: Probe | None = None,
    *,
    groups: Sequence[str] | None = None,
) -> list[Path]:
    """Writes the images of the report for a backbone (not sharded), as PNGs that contain their titles.

    - tokens_01.png …: `token_pca_images` of some regions
    - neighbours_01.png …: `neighbours_sheet` of some regions; neighbours are from other `groups` (slides) if any
    - labelled_01.png …: the same for a probe, with its labels as frames
    """
    folder, written = Path(folder), []
    few = evenly_spaced(len(pixels), _SHOWN)
    for place, (i, image) in enumerate(zip(few, token_pca_images(backbone, [pixels[i] for i in few]), strict=True)):
        written.append(write_titled(folder / f"tokens_{place + 1:02d}.png", image, names[i]))
    labels = None if probe is None else [probe.class_names[label] for label in probe.labels]
    shown: list[tuple[str, Regions, Sequence[str], Sequence[str] | None, Sequence[str] | None]] = []
    shown.append(("neighbours", pixels, names, groups if len(set(groups or ())) > 1 else None, None))
    if probe is not None:
        shown.append(("labelled", probe.pixels, probe.names, probe.groups, labels))
    for kind, regions, titles, group, label in shown:
        features = embed_regions(backbone, regions)
        for place, neighbours in enumerate(nearest_neighbours(features, group, queries=_SHOWN)):
            sheet = neighbours_sheet(neighbours, regions, titles, label)
            written.append(write_titled(folder / f"{kind}_{place + 1:02d}.png", sheet, titles[neighbours.query]))
    return written


def evenly_spaced(n: int, wanted: int) -> list[int]:
    """Evenly spaced indices: at most `wanted` of 0 … n − 1, with the first and the last."""
    return sorted(set(np.linspace(0, n - 1, min(wanted, n)).round().astype(int).tolist()))


def write_titled(path: Path, pixels: NDArray[np.uint8], title: str) -> Path:
    """Writes a PNG atomically, with its title as metadata for the report."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("Title", short_name(title, LONGEST_LINE))
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", pnginfo=info)
    return path


def _font() -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(_TEXT_PX)


def _shortened(text: str, font: FreeTypeFont | ImageFont, width_px: float) -> str:
    """Text without its beginning where it is too long: names of regions of a slide differ at the end."""
    text = short_name(text, LONGEST_LINE)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength("…" + text) > width_px:
        text = text[1:]
    return "…" + text
