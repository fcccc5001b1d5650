"""Separable anti-aliased reduction of one slide level, one row of tiles at a time.

The filter is Pillow's bicubic (a = -0.5, stretched by the scale where the image shrinks, weights normalised at the
border). The order is Pillow's: along x, rounded to 8 bits, along y, rounded. So the first pass can run on the tiles of
one row and the second on the narrow rows. The result is that of `Image.resize` for the whole level to 1 grey level.
Weights are float64 of the position in the whole image, stored as float32. An output is the sum of its inputs in their
order, so its bits do not depend on the chunk or strip. (Pillow takes its `box` in float32: pieces of an image differ by
a grey level here and there. Pillow 13 swaps the two passes for some images far from square, which changes one pixel in
a thousand by up to 8 grey levels.)

Both passes are products of a sparse matrix of weights with float32 rows. The inputs of one output are whole rows of
memory, so the sums use the full vector width, and SciPy releases the GIL. Along x the pixels are transposed first, as
32-bit words. A chunk of 1,044 × 256 px reduced 3.05 × on one core takes 0.8 ms, through Pillow 2.5 ms (AMD EPYC,
2026-11).

Why bicubic: on a real slide reduced 4.9 ×, against the ideal low-pass (a cut in the Fourier domain),

    filter                               box   hamming  bilinear  bicubic  lanczos
    PSNR to the ideal, dB                31.3     31.5      30.1     33.5     35.8
    gain at 0.5 / 0.8 of Nyquist     .90/.77   .88/.72   .81/.57  .94/.72 1.01/.82
    alias from 1.25 / 1.5 Nyquist    .49/.32   .44/.29   .22/.09  .23/.06  .12/.01

Lanczos is closer to the ideal but rings at nuclei and costs 1.5 times as much. Bicubic is Pillow's default in the
field's pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvit.slides.pixel_reader import BadTile, Block

FILTER_NAME = "bicubic"
_FILTER_SUPPORT = 2.0  # px either side of the centre, at scale 1
_A = -0.5

# Columns read at once: 1,024 × 256 px of RGBX are 1 MB.
CHUNK_PX = 1024
# Canvas rows computed at once.
ROWS_AT_ONCE = 32
# Rows that are transposed and filtered along x at once, inputs that are filtered along y at once: a piece in float32
# stays in the cache of one core.
_BAND_ROWS = 64
_BAND_PX = 2**16


@dataclass(frozen=True)
class Axis:
    """One axis of the reduction: `n_out` pixels from the range [start, start + length) of `n_in` input pixels."""

    n_in: int
    start: float
    length: float
    n_out: int

    @property
    def scale(self) -> float:
        """Input pixels per output pixel; below 1 the image is enlarged."""
        return self.length / self.n_out

    @property
    def support(self) -> float:
        """Reach of the filter to either side of an output pixel's centre, in input pixels."""
        return _FILTER_SUPPORT * max(self.scale, 1.0)

    def needs(self, first: int, end: int) -> tuple[int, int]:
        """Input pixels [low, high) on which output pixels [first, end) depend, with one to spare."""
        low = math.floor(self.start + (first + 0.5) * self.scale - self.support) - 1
        high = math.ceil(self.start + (end - 0.5) * self.scale + self.support) + 1
        return max(0, low), min(self.n_in, high)

    def ready(self, have: int) -> int:
        """Number of output pixels, from 0, that depend only on the input pixels below `have`."""
        if have >= self.needs(0, self.n_out)[1]:
            return self.n_out
        # The inverse of `needs`, checked against it because of rounding.
        end = math.floor((have - 1 - self.support - self.start) / self.scale + 0.5)
        end = min(max(end, 0), self.n_out)
        while end > 0 and self.needs(0, end)[1] > have:
            end -= 1
        return end

    @cached_property
    def taps(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """First input of each output (n_out,), and its weights (n_out, T), padded with zeros."""
        centre = self.start + (np.arange(self.n_out) + 0.5) * self.scale
        first = np.maximum(np.floor(centre - self.support + 0.5), 0).astype(np.int64)
        end = np.minimum(np.floor(centre + self.support + 0.5), self.n_in).astype(np.int64)
        inputs = first[:, None] + np.arange((end - first).max())
        weights = _bicubic((inputs + 0.5 - centre[:, None]) / max(self.scale, 1.0))
        weights[inputs >= end[:, None]] = 0
        weights /= weights.sum(axis=1, keepdims=True)
        return first, weights.astype(np.float32)

    def matrix(self, first: int, end: int, offset: int, available: int) -> Any:
        """Sparse matrix (end - first, available): outputs [first, end) from the inputs [offset, offset + available)."""
        from scipy.sparse import csr_array

        lowest, weights = self.taps
        weights = weights[first:end]
        n, taps = weights.shape
        # Beyond the last input the weights are zero, so the index may be any.
        inputs = np.clip(lowest[first:end, None] + np.arange(taps) - offset, 0, available - 1).astype(np.int32)
        return csr_array(
            (weights.ravel(), inputs.ravel(), np.arange(0, n * taps + 1, taps, dtype=np.int32)), shape=(n, available)
        )


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# Every row of tiles has the same chunks.
_matrix_along_x = lru_cache(maxsize=1024)(Axis.matrix)


def reduce_block(
    read: Callable[[int, int, Block], list[BadTile]],
    x_axis: Axis,
    y_px: int,
    height_px: int,
    tile_width_px: int,
    *,
    chunk_px: int = CHUNK_PX,
) -> tuple[Block, list[BadTile]]:
    """Reads `height_px` rows of a level from `y_px` and filters them along x.

    `read(x_px, y_px, out)` fills a block. The rows are read in chunks of whole tiles, so no tile is read twice and
    memory is that of one chunk. Returns RGBX (height_px, x_axis.n_out, 4) and the tiles that were filled.
    """
    low, high = x_axis.needs(0, x_axis.n_out)
    step = max(1, round(chunk_px / tile_width_px)) * tile_width_px
    # At most one filter width is kept from one chunk for the next.
    margin = math.ceil(2 * x_axis.support + x_axis.scale) + 4
    buffer = np.empty((height_px, min(step + margin, high - low), 4), np.uint8)
    narrow = np.empty((height_px, x_axis.n_out, 4), np.uint8)
    bad: list[BadTile] = []
    made, offset, filled = 0, low, 0  # outputs made; input column of buffer[:, 0]; columns in the buffer
    while made < x_axis.n_out:
        start = offset + filled
        end = min((start // step + 1) * step, high)
        bad += read(start, y_px, buffer[:, filled : filled + end - start])
        filled += end - start
        ready = x_axis.ready(end)
        if ready > made:
            _filter_columns(
                buffer[:, :filled], _matrix_along_x(x_axis, made, ready, offset, filled), narrow[:, made:ready]
            )
            made = ready
        if made < x_axis.n_out:
            keep = x_axis.needs(made, made + 1)[0] - offset
            buffer[:, : filled - keep] = buffer[:, keep:filled].copy()
            offset, filled = offset + keep, filled - keep
    return narrow, bad


def _filter_columns(block: Block, matrix: Any, out: Block) -> None:
    """Filters RGBX (height, n, 4) into `out` (height, m, 4) with a matrix (m, n)."""
    for y in range(0, len(block), _BAND_ROWS):
        columns = np.ascontiguousarray(_words(block[y : y + _BAND_ROWS]).T)  # (n, rows)
        sums = matrix @ columns.view(np.uint8).astype(np.float32)  # (m, rows · 4)
        _words(out[y : y + _BAND_ROWS])[...] = _rounded(sums).view(np.uint32).T


def reduce_rows(rows: Block, y_axis: Axis, first: int, end: int, offset: int) -> Iterator[Block]:
    """Filters narrow rows along y: RGBX (n, width, 4) from input row `offset` -> outputs [first, end).

    Yields RGBX (up to ROWS_AT_ONCE, width, 4), not all at once: a strongly enlarged small slide would take twice the
    memory.
    """
    width = rows.shape[1]
    for start in range(first, end, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, end)
        low, high = y_axis.needs(start, stop)
        matrix = y_axis.matrix(start, stop, low, high - low)
        made = np.empty((stop - start, width, 4), np.uint8)
        step = max(64, _BAND_PX // (high - low))
        for x in range(0, width, step):
            part = rows[low - offset : high - offset, x : x + step].astype(np.float32)
            made[:, x : x + step] = _rounded(matrix @ part.reshape(high - low, -1)).reshape(stop - start, -1, 4)
        yield made


def _words(block: Block) -> NDArray[np.uint32]:
    """RGBX pixels (…, 4) as 32-bit words (…), without a copy."""
    return block.view(np.uint32)[..., 0]


def _rounded(sums: NDArray[np.float32]) -> Block:
    """Sums rounded half up and clipped to 0 … 255; `sums` is overwritten."""
    sums += 0.5
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8)
