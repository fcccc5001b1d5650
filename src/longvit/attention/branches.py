"""A branch of dilated attention as strided views: the fused calls it needs, and the tensor elements of each call.

LongNet (arXiv 2307.02486, section 2.2): a branch (segment length w, dilated ratio r) cuts the sequence into segments
of w' = min(w, N) consecutive tokens. With g = ceil(H / r), head h belongs to offset group j = h // g. Inside every
segment it takes part only at positions j, j + r, j + 2r, … as query, as key and as value.

Nothing has to be gathered. Head j·g + h' at position j + i·r of segment s has the offset

    (s·w' + j + i·r)·S_n + (j·g + h')·S_h        (S_n, S_h: strides of position and head)

so for a fixed offset j it is a view with g heads. For a fixed h' the offsets j are themselves one head axis of stride
S_n + g·S_h. A branch is therefore either r calls of g heads or, where r divides both the segment and H, g calls of r
heads: min(r, g) calls. The published code copies q, k and v into a dense layout and every result back.

B sequences, N positions, H heads, D head dim, S segments, L tokens of one offset group in one segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences of one length, packed end to end or in consecutive rows of the batch.

    `batch` sequences of `length` tokens. The first begins in row `first_row` at position `first_position`, each next
    one `row_step` rows and `position_step` positions later.
    """

    batch: int
    length: int
    first_row: int = 0
    first_position: int = 0
    row_step: int = 1
    position_step: int = 0

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def view(self, x: Tensor) -> Tensor:
        """(rows, positions, H, …) → (batch, length, H, …): the group's part of `x`, sharing its memory."""
        if x.shape[:2] == (self.batch, self.length) and self.row_step == 1 and not self.position_step:
            return x
        s_row, s_position, *inner = x.stride()
        size = (self.batch, self.length, *x.shape[2:])
        stride = (self.row_step * s_row + self.position_step * s_position, s_position, *inner)
        offset = self.first_row * s_row + self.first_position * s_position
        return x.as_strided(size, stride, x.storage_offset() + offset)


@dataclass(frozen=True)
class Call:
    """One fused attention call: S segments × `heads` heads × L tokens, all of the same shape.

    `pad_keys` counts the zero keys (logit 0, value 0) with which the published code fills up a short offset group.
    """

    group: SequenceGroup
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
    def queries(self) -> int:
        """Number of queries over all heads and sequences."""
        return self.group.batch * self.segments * self.heads * self.length

    @property
    def pairs(self) -> int:
        """Number of (query, key) pairs over all heads and sequences."""
        return self.queries * self.length

    def view(self, x: Tensor) -> Tensor:
        """(rows, positions, H, …) → (B·S, heads, L, …): this call's part of `x`, sharing its memory.

        The batch and the segments must be one stride apart; `calls` splits them where they are not.
        """
        group = self.group
        s_row, s_pos, s_head, *inner = x.stride()
        s_batch = group.row_step * s_row + group.position_step * s_pos
        s_segment = self.segment_step * s_pos
        size = (group.batch * self.segments, self.heads, self.length, *x.shape[3:])
        stride = (
            s_segment if self.segments > 1 else s_batch,
            self.head_step * s_head + self.head_shift * s_pos,
            self.step * s_pos,
            *inner,
        )
        position = group.first_position + self.first_position
        offset = group.first_row * s_row + position * s_pos + self.first_head * s_head
        return x.as_strided(size, stride, x.storage_offset() + offset)


def sequence_groups(batch: int, length: int, lengths: Sequence[int] | None) -> list[SequenceGroup]:
    """The sequences of a (batch, length, …) tensor, neighbours of equal length in one group.

    `lengths` None: `batch` sequences of `length` tokens. One entry per row: row b holds lengths[b] tokens, then
    padding. A single row with several entries: packed sequences, end to end.
    """
    if lengths is None:
        return [SequenceGroup(batch, length)] if batch and length else []
    packed = batch == 1 and len(lengths) != 1
    groups: list[SequenceGroup] = []
    position = 0
    for row, n in enumerate(lengths):
        last = groups[-1] if groups else None
        if last and last.length == n and (packed or last.first_row + last.batch == row):
            groups[-1] = replace(last, batch=last.batch + 1)
        elif n:
            groups.append(SequenceGroup(1, n, 0, position, 0, n) if packed else SequenceGroup(1, n, row))
        position += n
    return groups


def calls(
    group: SequenceGroup,
    heads: int,
    segment_length: int,
    dilated_ratio: int,
    *,
    padded: bool,
    rows_adjoin: bool,
    offsets: int | None = None,
) -> Iterator[Call]:
    """The fused calls of one branch over one group: the whole segments first, then the shorter last one.

    Args:
        rows_adjoin: the group's rows are contiguous in every tensor of the call (stride 0 = length × stride 1), so that
            the segments of several rows form one axis.
        offsets: only the first so many offset groups.
    """
    n, r = group.length, dilated_ratio
    w = min(segment_length, n)
    whole, tail = divmod(n, w)
    if whole:
        gapless = rows_adjoin and tail == 0 if group.row_step else tail == 0
        parts = [group] if whole == 1 or gapless or group.batch == 1 else list(_single_sequences(group))
        for part in parts:
            yield from _segment_calls(part, heads, 0, whole, w, w, r, padded, offsets)
    if tail:
        yield from _segment_calls(group, heads, whole * w, 1, tail, w, r, padded, offsets)


def _single_sequences(group: SequenceGroup) -> Iterator[SequenceGroup]:
    for b in range(group.batch):
        row, position = group.first_row + b * group.row_step, group.first_position + b * group.position_step
        yield SequenceGroup(1, group.length, row, position, group.row_step, group.position_step)


def _segment_calls(
    group: SequenceGroup,
    H: int,
    start: int,
    segments: int,
    length: int,
    full: int,
    r: int,
    padded: bool,
    offsets: int | None,
) -> Iterator[Call]:
    """Calls of `segments` segments of `length` tokens (`full` once padded), from position `start` of the sequence."""
    g = -(-H // r)
    per_offset = -(-full // r)  # tokens of an offset group in a whole, padded segment
    if length % r == 0 and H % r == 0 and g < r and offsets is None:
        L = length // r
        pad = per_offset - L if padded else 0
        for h in range(g):
            yield Call(group, segments, length, start, r, L, h, r, g, 1, pad)
        return
    for j in range(min(r, length, -(-H // g), offsets or r)):
        L = -(-(length - j) // r)
        pad = per_offset - L if padded else 0
        yield Call(group, segments, length, start + j, r, L, j * g, min(g, H - j * g), 1, 0, pad)
