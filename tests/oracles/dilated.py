"""Dilated attention as dense float64 softmaxes, written from LongNet's equations (arXiv 2307.02486, 6–11) alone.

Every branch is a full N × N score matrix with a mask; branches are mixed by their softmax denominators. Autograd does
the rest. Slow and obvious: nothing here is shared with the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def takes_part(n: int, heads: int, w: int, r: int) -> Tensor:
    """(heads, n) bool: whether a head takes part at a position in the branch (w, r)."""
    per_group = math.ceil(heads / r)
    offset = torch.arange(heads) // per_group
    in_segment = torch.arange(n) % min(w, n)
    return (in_segment % r)[None, :] == offset[:, None]


def mask(n: int, heads: int, w: int, r: int) -> Tensor:
    """(heads, n, n) bool: query i reaches key j in the branch (w, r)."""
    part = takes_part(n, heads, w, r)
    segment = torch.arange(n) // min(w, n)
    return part[:, :, None] & part[:, None, :] & (segment[:, None] == segment[None, :])


def dilated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    detached: bool = False,
) -> Tensor:
    """(B, N, H, D) → (B, N, H, D); `detached`: no gradient through the mixing weights."""
    n, heads, d = q.shape[1:]
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(d)
    outs, lses = [], []
    for w, r in zip(segment_lengths, dilated_ratios, strict=True):
        allowed = mask(n, heads, w, r)
        s = scores.masked_fill(~allowed, -math.inf)
        present = takes_part(n, heads, w, r)[None]  # (1, H, N)
        p = torch.softmax(s.masked_fill(~present[..., None], 0.0), -1)
        outs.append(torch.einsum("bhij,bjhd->bihd", p * present[..., None], v))
        lses.append(torch.logsumexp(s.masked_fill(~present[..., None], 0.0), -1).masked_fill(~present, -math.inf))
    l = torch.stack(lses)  # (branches, B, H, N)
    reached = torch.isfinite(l).any(0)
    a = torch.softmax(l.masked_fill(~reached, 0.0), 0) * reached
    if detached:
        a = a.detach()
    return torch.einsum("kbhn,kbnhd->bnhd", a, torch.stack(outs))
