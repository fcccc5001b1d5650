"""A branch of dilated attention as strided views: which fused calls it takes, and where each one reads and writes.

LongNet (arXiv 2307.02486, section 2.2): a branch (segment length w, dilated ratio r) cuts the sequence into segments
of w' = min(w, N) consecutive tokens. With g = ceil(H / r), head h belongs to offset group j = h // g and, inside every
segment, takes part only at positions j, j + r, j + 2r, … as query, as key and as value.

Nothing has to be gathered. Head j·g + h' at position j + i·r of segment s lies at

    (s·w' + j + i·r)·S_n + (j·g + h')·S_h        (S_n, S_h: strides of position and head)

so for a fixed offset j it is a view with g heads, and for a fixed h' the offsets j are themselves one head axis of
stride S_n + g·S_h. A branch is therefore either r calls of g heads or, where r divides both the segment and H, g calls
of r heads: min(r, g) calls. The published code copies q, k and v into a dense layout and every result back.

B sequences, N positions, H heads, D head dim, S segments, L tokens of one offset group in one segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Sequences of one length that lie one behind the other (packed) or in consecutive rows of the batch.

    `batch` sequences of `length` tokens; the first begins in row `first_row` at position `first_position`, the next
    one `row_step` rows and `position_step` positions further on.
    """

    batch: int
    length: int
    first_row: int = 0
    first_position: int = 0
    row_step: int = 1
    position_step: int = 0

    def view(self, x: Tensor) -> Tensor:
        """(rows, positions, H, …) → (batch, length, H, …): the run's part of `x`, sharing its memory."""
        if x.shape[:2] == (self.batch, self.length) and self.row_step == 1 and not self.position_step:
            return x
        s_row, s_position, *rest = x.stride()
        size = (self.batch, self.length, *x.shape[2:])
        stride = (self.row_step * s_row + self.position_step * s_position, s_position, *rest)
        offset = self.first_row * s_row + self.first_position * s_position
        return x.as_strided(size, stride, x.storage_offset() + offset)


@dataclass(frozen=True)
class Call:
    """One fused attention call: S segments × `heads` heads × L tokens, all of the same shape.

    `pad_keys` counts the zero keys (logit 0, value 0) with which the published code fills a short offset group up.
    """

    run: Run
    segments: int
    segment_step: int  # positions from one segment to the next
    first_position: int  # within the sequence
    step: int  # positions from one token to the next: the dilated ratio
    length: int
    first_head: int
    heads: int
    head_step: int  # heads from one head of the call to the next
    head_shift: int  # positions from one head of the call to the next
    pad_keys: int = 0

    @property
    def pairs(self) -> int:
        """(query, key) pairs that the call computes, over all heads and sequences."""
        return self.run.batch * self.segments * self.heads * self.length * self.length

    def view(self, x: Tensor) -> Tensor:
        """(rows, positions, H, …) → (B·S, heads, L, …): this call's part of `x`, sharing its memory.

        The batch and the segments must be one stride apart; `calls` splits them where they are not.
        """
        run = self.run
        s_row, s_pos, s_head, *rest = x.stride()
        s_batch = run.row_step * s_row + run.position_step * s_pos
        s_segment = self.segment_step * s_pos
        size = (run.batch * self.segments, self.heads, self.length, *x.shape[3:])
        stride = (
            s_segment if self.segments > 1 else s_batch,
            self.head_step * s_head + self.head_shift * s_pos,
            self.step * s_pos,
            *rest,
        )
        position = run.first_position + self.first_position
        offset = run.first_row * s_row + position * s_pos + self.first_head * s_head
        return x.as_strided(size, stride, x.storage_offset() + offset)


def runs(batch: int, length: int, lengths: Sequence[int] | None) -> list[Run]:
    """The sequences of a (batch, length, …) tensor, neighbours of equal length as one run.

    `lengths` None: `batch` sequences of `length` tokens. One entry per row: row b holds lengths[b] tokens and padding
    behind them. A single row with several entries: they lie packed, one behind the other.
    """
    if lengths is None:
        return [Run(batch, length)] if batch and length else []
    packed = batch == 1 and len(lengths) != 1
    found: list[Run] = []
    position = 0
    for row, n in enumerate(lengths):
        last = found[-1] if found else None
        if last and last.length == n and (packed or last.first_row + last.batch == row):
            found[-1] = replace(last, batch=last.batch + 1)
        elif n:
            found.append(Run(1, n, 0, position, 0, n) if packed else Run(1, n, row))
        position += n
    return found


def calls(
    run: Run,
    heads: int,
    segment_length: int,
    dilated_ratio: int,
    *,
    padded: bool,
    rows_adjoin: bool,
    offsets: int | None = None,
) -> Iterator[Call]:
    """The fused calls of one branch over one run, the whole segments first, then the shorter last one.

    `rows_adjoin`: this run's rows follow each other without a gap in every tensor in play (stride 0 = length × stride
    1), so that the segments of several rows are one axis. `offsets`: only the first so many offset groups.
    """
    n, r = run.length, dilated_ratio
    w = min(segment_length, n)
    whole, tail = divmod(n, w)
    if whole:
        gapless = rows_adjoin and tail == 0 if run.row_step else tail == 0
        parts = [run] if whole == 1 or gapless or run.batch == 1 else list(_each(run))
        for part in parts:
            yield from _segments(part, heads, 0, whole, w, w, r, padded, offsets)
    if tail:
        yield from _segments(run, heads, whole * w, 1, tail, w, r, padded, offsets)


def _each(run: Run) -> Iterator[Run]:
    for b in range(run.batch):
        row, position = run.first_row + b * run.row_step, run.first_position + b * run.position_step
        yield Run(1, run.length, row, position, run.row_step, run.position_step)


def _segments(
    run: Run,
    H: int,
    start: int,
    segments: int,
    length: int,
    full: int,
    r: int,
    padded: bool,
    offsets: int | None,
) -> Iterator[Call]:
    """`segments` segments of `length` tokens (`full` tokens once padded), from position `start` of the sequence."""
    g = -(-H // r)
    per_offset = -(-full // r)  # tokens of an offset group in a whole, padded segment
    if length % r == 0 and H % r == 0 and g < r and offsets is None:
        L = length // r
        pad = per_offset - L if padded else 0
        for h in range(g):
            yield Call(run, segments, length, start, r, L, h, r, g, 1, pad)
        return
    for j in range(min(r, length, -(-H // g), offsets or r)):
        L = -(-(length - j) // r)
        pad = per_offset - L if padded else 0
        yield Call(run, segments, length, start + j, r, L, j * g, min(g, H - j * g), 1, 0, pad)
