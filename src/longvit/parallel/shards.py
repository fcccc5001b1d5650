"""Shards of a sequence over ranks, and the segments of dilated attention that several ranks share.

Rank p of R holds tokens [bounds[p], bounds[p + 1]): contiguous, of any length, 0 included. Segments of a branch
(segment length w, dilated ratio r; see `longvit.attention.branches`) inside one shard are computed by that rank alone.
The others, at most R − 1 per branch, are *shared*: the ranks with tokens in such a segment exchange their keys and
values. Only tokens that take part are exchanged: head group j (g = ceil(H / r) heads) at positions j, j + r, … of the
segment. So each rank receives at most H · w / r keys, whatever N is. The published code gathers over all ranks instead
of those of the segment.

    segment      |  a . . . . . . . . . . . . . . . |        r = 2: heads of group 0 at a, a + 2, …; of 1 at a + 1, …
    shards    … rank 0    |    rank 1    |   rank 2 …        each rank's *piece*: segment ∩ shard

A `Comb` is the part of a piece that is one strided view: neighbouring groups with equal numbers of tokens.

R ranks, N tokens, B sequences, H heads, D head dim, J groups of a comb, g heads of a group, n tokens of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, pairwise

from torch import Tensor


@dataclass(frozen=True)
class Shards:
    """R contiguous shards of N tokens: `bounds` are R + 1 positions, from 0 to N."""

    bounds: tuple[int, ...]

    def __post_init__(self) -> None:
        b = self.bounds
        if len(b) < 2 or b[0] != 0 or any(later < earlier for earlier, later in pairwise(b)):
            raise ValueError(f"bounds of shards must rise from 0, two at least, got {b}")

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Shards:
        """Rank p holds lengths[p] tokens."""
        return cls((0, *accumulate(lengths)))

    @classmethod
    def even(cls, n: int, ranks: int, *, step: int = 1) -> Shards:
        """`n` tokens over `ranks`, as evenly as whole steps of `step` tokens (a row of patches) allow."""
        if n % step:
            raise ValueError(f"{n} tokens are not a multiple of {step}")
        return cls(tuple(p * (n // step) // ranks * step for p in range(ranks + 1)))

    @property
    def ranks(self) -> int:
        return len(self.bounds) - 1

    @property
    def tokens(self) -> int:
        """N."""
        return self.bounds[-1]

    def shard(self, rank: int) -> tuple[int, int]:
        """[first, end) of the rank's tokens."""
        return self.bounds[rank], self.bounds[rank + 1]

    def whole_segments(self, rank: int, segment_length: int) -> tuple[int, int] | None:
        """[first, end) of the rank's tokens in segments inside its shard, or None."""
        first, end = self.shard(rank)
        w = min(segment_length, self.tokens)
        if w == 0:
            return None
        first = -(-first // w) * w
        end = end if end == self.tokens else end // w * w
        return (first, end) if first < end else None


@dataclass(frozen=True)
class SharedSegment:
    """Tokens [start, end) of a branch with dilated ratio `ratio`, and the ranks that hold some of them."""

    ratio: int
    start: int
    end: int
    ranks: tuple[int, ...]

    def piece(self, shards: Shards, rank: int) -> tuple[int, int]:
        """[first, end) of the segment's tokens that the rank holds."""
        first, end = shards.shard(rank)
        return max(first, self.start), min(end, self.end)


@dataclass(frozen=True)
class Comb:
    """Groups j … j + J − 1 of a piece, n tokens each, `ratio` apart; group j + 1 begins one token further."""

    group: int  # j
    groups: int  # J
    heads: int  # of each group
    group_heads: int  # g, of every group but perhaps the last one
    position: int  # of group j's first token, in the whole sequence
    ratio: int
    tokens: int  # n
    index: int  # of the first token among those of its group in the whole segment
    keys: int  # tokens of a group in the whole segment

    def numel(self, batch: int, head_dim: int) -> int:
        return batch * self.groups * self.heads * self.tokens * head_dim

    def view(self, x: Tensor, first: int) -> Tensor:
        """(B, tokens from `first` on, H, …) → (B, J, heads, n, …), sharing memory."""
        s_batch, s_pos, s_head, *inner = x.stride()
        size = (len(x), self.groups, self.heads, self.tokens, *x.shape[3:])
        stride = (s_batch, s_pos + self.group_heads * s_head, s_head, self.ratio * s_pos, *inner)
        offset = (self.position - first) * s_pos + self.group * self.group_heads * s_head
        return x.as_strided(size, stride, x.storage_offset() + offset)

    def own_tokens(self, x: Tensor) -> Tensor:
        """Keys of the whole segment (B, all groups, g, tokens, D) → this comb's own tokens (B, J, heads, n, D)."""
        return self.all_tokens(x)[:, :, :, self.index : self.index + self.tokens]

    def all_tokens(self, x: Tensor) -> Tensor:
        """Keys of the whole segment (B, all groups, g, tokens, D) → those of this comb's groups (B, J, heads, L, D)."""
        return x[:, self.group : self.group + self.groups, : self.heads, : self.keys]


@lru_cache(maxsize=256)
def shared_segments(shards: Shards, branches: tuple[tuple[int, int], ...]) -> tuple[SharedSegment, ...]:
    """All segments with tokens in more than one shard, in one order for all ranks."""
    n = shards.tokens
    segments = []
    for segment_length, ratio in branches:
        w = min(segment_length, n)
        for start in sorted({b // w * w for b in shards.bounds if 0 < b < n and b % w}):
            end = min(start + w, n)
            pieces = [(max(a, start), min(b, end)) for a, b in pairwise(shards.bounds)]
            ranks = tuple(p for p, (a, b) in enumerate(pieces) if a < b)
            if len(ranks) > 1:
                segments.append(SharedSegment(ratio, start, end, ranks))
    return tuple(segments)


@lru_cache(maxsize=4096)
def combs(segment: SharedSegment, piece: tuple[int, int], heads: int) -> tuple[Comb, ...]:
    """The tokens of a piece that take part, in the order of the exchange."""
    r, (first, end) = segment.ratio, piece
    g = -(-heads // r)

    def extent(j: int) -> tuple[int, int, int, int]:
        """→ index, tokens, keys and heads of group j, as in `Comb`."""
        index = max(0, -(-(first - segment.start - j) // r))
        tokens = max(0, -(-(end - segment.start - j - index * r) // r))
        return index, tokens, -(-(segment.end - segment.start - j) // r), min(g, heads - j * g)

    groups = range(min(r, segment.end - segment.start, -(-heads // g)))
    pieces = []
    for (index, tokens, keys, h), members in groupby(groups, extent):
        js = list(members)
        if tokens:
            position = segment.start + js[0] + index * r
            pieces.append(Comb(js[0], len(js), h, g, position, r, tokens, index, keys))
    return tuple(pieces)


def exchanged_bytes(
    shards: Shards,
    rank: int,
    *,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    embed_dim: int,
    itemsize: int,
    batch: int = 1,
) -> float:
    """Bytes that a rank receives in one forward pass of one layer; its backward sends as many back.

    Keys and values of the other ranks' tokens in its shared segments, 1/r of each: 2 · B · Σ (w' − piece) / r · H·D
    elements. It does not depend on N, and is exact except for rounding to whole tokens.
    """
    branches = tuple(zip(segment_lengths, dilated_ratios, strict=True))
    tokens = 0.0
    for segment in shared_segments(shards, branches):
        if rank in segment.ranks:
            first, end = segment.piece(shards, rank)
            tokens += (segment.end - segment.start - (end - first)) / segment.ratio
    return 2 * batch * tokens * embed_dim * itemsize
