"""Layouts of the two slides of a pair: which squares are tumour, and which square of the first is where in the second.

n squares a side, b blocks a side, True = tumour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvit.synthetic.settings import SyntheticSettings

SHARES = (0.1, 0.3)
"""Task share: smallest and largest distance of the fraction of tumour from one half."""


@dataclass(frozen=True)
class Layout:
    """Layout of one slide."""

    is_tumour: NDArray[np.bool_]
    """(n, n)."""
    draw: NDArray[np.int64]
    """(n, n): number of the draw that fills a square. In both slides of a pair a number stands for the same pixels, if
    the tissue is the same."""


def draw_layouts(settings: SyntheticSettings, rng: np.random.Generator) -> tuple[Layout, Layout]:
    """Layouts of a pair, of the negative class (`CLASSES[task][0]`) and of the positive one."""
    if settings.task in ("share", "any"):
        return _compositions(settings, rng)
    return _places(settings, rng)


def _compositions(settings: SyntheticSettings, rng: np.random.Generator) -> tuple[Layout, Layout]:
    """Layouts with few and with many tumour squares, at random places."""
    n = settings.squares
    counts = 0, settings.tumour_squares
    if settings.task == "share":
        distance = rng.uniform(*SHARES)
        counts = round((0.5 - distance) * n * n), round((0.5 + distance) * n * n)
    draw = np.arange(n * n).reshape(n, n)
    layouts = []
    for count in counts:
        is_tumour = np.zeros(n * n, bool)
        is_tumour[rng.permutation(n * n)[:count]] = True
        layouts.append(Layout(is_tumour.reshape(n, n), draw))
    return layouts[0], layouts[1]


def _places(settings: SyntheticSettings, rng: np.random.Generator) -> tuple[Layout, Layout]:
    """Layouts of the same blocks at other places."""
    b = settings.blocks
    masks = _border_masks(b, rng) if settings.task == "border" else _arrangement_masks(b, settings.halves, rng)
    count = int(masks[0].sum())
    layouts = []
    for mask in masks:
        block = np.empty((b, b), np.int64)  # tumour blocks are 0 … count − 1, the others follow
        block[mask] = rng.permutation(count)
        block[~mask] = count + rng.permutation(b * b - count)
        per_block = settings.block_px // settings.square_px
        squares = np.arange(per_block**2).reshape(per_block, per_block)
        draw = np.block([[squares + number * per_block**2 for number in row] for row in block.tolist()])
        layouts.append(Layout(np.kron(mask, np.ones((per_block, per_block), bool)), draw))
    return layouts[0], layouts[1]


def _border_masks(b: int, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Tumour blocks inside, and as many at the border."""
    at_border = np.ones((b, b), bool)
    at_border[1:-1, 1:-1] = False
    count = int(rng.integers(1, min((b - 2) ** 2, int(at_border.sum())) + 1))
    masks = []
    for allowed in (~at_border, at_border):
        mask = np.zeros(b * b, bool)
        mask[rng.permutation(np.flatnonzero(allowed))[:count]] = True
        masks.append(mask.reshape(b, b))
    return masks


def _arrangement_masks(b: int, halves: int, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Tumour blocks as one colour of a chessboard, and as one of the first halves: top, left, bottom, right."""
    row, column = np.indices((b, b))
    mixed = (row + column) % 2 == rng.integers(2)
    apart = np.rot90(row < b // 2, int(rng.integers(halves)))
    return [mixed, apart]
