"""Separable anti-aliased reduction of one slide level, a row of tiles at a time.

Pillow's `resize` filters along x, rounds to 8 bits, then filters along y; each output pixel depends on a known stretch
of input pixels. So the first half can be done on the tiles of one row and the second on the narrow rows, with the same
coefficients, and the result is that of resizing the whole level at once: to 1 grey level, since `box` is float32 inside
Pillow; where the picture is enlarged, to 2 in one pixel of a million. `Image.resize` with a float `box` does both; it
releases the GIL. Pillow 13 itself turns the order of the two passes for some pictures far from square, which moves one
pixel in a thousand by up to 8 grey levels; here the order is fixed.

The filter is Pillow's bicubic. On a real slide reduced 4.9 ×, against the ideal low-pass (a cut in the Fourier domain):

    filter                               box   hamming  bilinear  bicubic  lanczos
    PSNR to the ideal, dB                31.3     31.5      30.1     33.5     35.8
    gain at 0.5 / 0.8 of Nyquist     .90/.77   .88/.72   .81/.57  .94/.72 1.01/.82
    alias from 1.25 / 1.5 Nyquist    .49/.32   .44/.29   .22/.09  .23/.06  .12/.01
    rows, MPix/s on one core             399       233       237      136       92

Lanczos is closer to the ideal but rings at nuclei and costs half as much again; bicubic is what the field's pipelines
get from Pillow by default, and decoding (265 MPix/s) costs little less. (One core, Pillow 13, 2026-11.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from longvit.slides.pixel_reader import BadTile, Block

FILTER = Image.Resampling.BICUBIC
FILTER_NAME = "bicubic"
_FILTER_SUPPORT = 2.0  # px either side of the centre, at scale 1

# Columns that are read at once: 1,024 × 256 px of RGBX are 1 MB, which stay in the cache of one core. Larger chunks are
# no faster, and a large `box` is less exact in float32.
CHUNK_PX = 1024
# Canvas rows that are made at once; whole blocks of them lie on a grid from the top of the picture.
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Axis:
    """One axis of the reduction: `n_out` pixels from the stretch [start, start + length) of `n_in` input pixels."""

    n_in: int
    start: float
    length: float
    n_out: int

    @property
    def scale(self) -> float:
        """Input pixels per output pixel; below 1 the picture grows."""
        return self.length / self.n_out

    @property
    def support(self) -> float:
        """How far the filter reaches to either side of an output pixel's centre, in input pixels."""
        return _FILTER_SUPPORT * max(self.scale, 1.0)

    def needs(self, first: int, end: int) -> tuple[int, int]:
        """The input pixels [low, high) on which output pixels [first, end) depend, with one to spare."""
        low = math.floor(self.start + (first + 0.5) * self.scale - self.support) - 1
        high = math.ceil(self.start + (end - 0.5) * self.scale + self.support) + 1
        return max(0, low), min(self.n_in, high)

    def ready(self, have: int) -> int:
        """How many output pixels, from 0, can be made of the input pixels below `have`."""
        if have >= self.needs(0, self.n_out)[1]:
            return self.n_out
        # The inverse of `needs`; one less is checked rather than trusting the rounding.
        end = math.floor((have - 1 - self.support - self.start) / self.scale + 0.5)
        end = min(max(end, 0), self.n_out)
        while end > 0 and self.needs(0, end)[1] > have:
            end -= 1
        return end

    def box(self, first: int, end: int, offset: int, available: int) -> tuple[float, float]:
        """The stretch that `Image.resize` takes for outputs [first, end) from `available` pixels from `offset` on."""
        low = self.start + first * self.scale - offset
        high = self.start + end * self.scale - offset
        return max(0.0, low), min(float(available), high)


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

    `read(x_px, y_px, out)` fills a block. The rows are read in chunks of whole tiles, so no tile is read twice and the
    memory is that of one chunk. Returns RGBX (height_px, x_axis.n_out, 4) and the tiles that were filled.
    """
    low, high = x_axis.needs(0, x_axis.n_out)
    step = max(1, round(chunk_px / tile_width_px)) * tile_width_px
    # What is kept from one chunk for the next reaches over one filter at most.
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
            narrow[:, made:ready] = _resize_columns(buffer, filled, x_axis, made, ready, offset)
            made = ready
        if made < x_axis.n_out:
            keep = x_axis.needs(made, made + 1)[0] - offset
            buffer[:, : filled - keep] = buffer[:, keep:filled].copy()
            offset, filled = offset + keep, filled - keep
    return narrow, bad


def _resize_columns(buffer: Block, filled: int, axis: Axis, first: int, end: int, offset: int) -> Block:
    height = buffer.shape[0]
    # The picture lies on the buffer itself, as wide as it is filled; the stride is that of the whole buffer.
    image = Image.frombuffer("RGBX", (filled, height), buffer, "raw", "RGBX", buffer.strides[0], 1)
    left, right = axis.box(first, end, offset, filled)
    return np.asarray(image.resize((end - first, height), FILTER, box=(left, 0, right, height)))


def reduce_rows(rows: Block, y_axis: Axis, first: int, end: int, offset: int) -> Iterator[Block]:
    """Filters narrow rows along y: RGBX (n, width, 4) from input row `offset` on -> blocks of outputs [first, end).

    Outputs are made in the blocks of a fixed grid, each with the same `box` on the same inputs whoever asks: Pillow
    takes `box` in float32, and with another one a few pixels would come out one grey level apart. So an output row has
    the same bytes in every strip. Of a block that is wanted in part only, inputs that this part does not need may be
    missing. Yields RGBX (up to ROWS_AT_ONCE, width, 4).
    """
    width = rows.shape[1]
    for start in range(first // ROWS_AT_ONCE * ROWS_AT_ONCE, end, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, y_axis.n_out)
        low, high = y_axis.needs(start, stop)
        from_row, to_row = max(low, offset), min(high, offset + len(rows))
        inputs = rows[from_row - offset : to_row - offset]
        if to_row - from_row < high - low:
            inputs = np.pad(inputs, ((from_row - low, high - to_row), (0, 0), (0, 0)))
        image = Image.frombuffer("RGBX", (width, high - low), np.ascontiguousarray(inputs), "raw", "RGBX", 0, 1)
        top, bottom = y_axis.box(start, stop, low, high - low)
        made = np.asarray(image.resize((width, stop - start), FILTER, box=(0, top, width, bottom)))
        yield made[max(first - start, 0) : end - start]
