"""Dilated attention (LongNet, arXiv 2307.02486, equations 6–11): linear in the number of tokens, exact.

Each branch i = (segment length w_i, dilated ratio r_i) attends within segments, at every r_i-th position, with the
heads shifted against each other (see `branches`), and gives per token and head an output o_i and the log of its softmax
denominator l_i (−inf where the token takes no part). The result mixes the branches by their denominators:

    out = Σ_i a_i o_i,     a_i = exp(l_i) / Σ_k exp(l_k)                                       (equations 9, 10)

which is one softmax of each query over the multiset union of the keys that its branches reach. Two things follow. The
forward keeps one running (out, lse) pair and merges each branch into it. And the exact gradient of branch i is the
ordinary flash backward of that branch, called with the *merged* (out, lse): saved are q, k, v, out, lse, nothing per
branch.

What differs from the authors' code (microsoft/torchscale, component/dilated_attention.py):
- it treats a_i as constants in the backward; its gradient is not that of its output (`gradient="detached"` gives it);
- it pads short segments with zero keys that take part in the softmax (`ragged="padded"` gives it; see `padding`);
- it takes a log-sum-exp of exactly 0 for "no part"; here absence is −inf.

B sequences, N tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from longvit.attention.operators import forward_op


def dilated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None = None,
    gradient: Literal["exact", "detached"] = "exact",
    ragged: Literal["masked", "padded"] = "masked",
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Dilated attention of (B, N, H, D) queries, keys and values.

    Any N ≥ 0, segment (also longer than N), ratio (also not dividing the segment, or larger than H), number of
    branches and head dim; float64, float32, bfloat16, float16. The log-sum-exp is float32 for every dtype but float64.
    A token that no branch reaches gives 0, and a gradient of 0.

    Args:
        q, k, v: (B, N, H, D), any strides; views into a fused projection (B, N, 3, H, D) are read in place.
        segment_lengths: w_i ≥ 1, tokens, one per branch.
        dilated_ratios: r_i ≥ 1, one per branch.
        lengths: sequences of different length, each equal to running it alone. One entry per row of the batch (row b
            holds lengths[b] tokens; what lies behind them is not read, and 0 in the output), or, with B = 1, several
            sequences packed one behind the other (their sum at most N).
        gradient: "exact", or "detached": the mixing weights a_i are constants in the backward, as in the authors' code.
        ragged: "masked": a shorter last segment is simply shorter. "padded": it is filled up with zero keys that take
            part in the softmax, as in the authors' code (needed for weights that were trained with it).
        scale: factor on q·k; 1/sqrt(D) by default.
        backend: "auto", or the name of one (see `backends`).

    Returns:
        (B, N, H, D) in the dtype of q.

    Raises:
        ValueError: shapes, dtypes, devices or settings that do not fit, with both numbers.

    >>> import torch, longvit
    >>> q, k, v = torch.randn(3, 1, 1024, 16, 24)  # 1,024 tokens, 16 heads of width 24
    >>> longvit.dilated_attention(q, k, v, segment_lengths=(64, 1024), dilated_ratios=(1, 16)).shape
    torch.Size([1, 1024, 16, 24])
    """
    lengths = _checked(q, k, v, segment_lengths, dilated_ratios, lengths, gradient, ragged)
    out, _ = forward_op(
        [t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v)],
        [int(w) for w in segment_lengths],
        [int(r) for r in dilated_ratios],
        lengths,
        gradient == "detached",
        ragged == "padded",
        q.shape[-1] ** -0.5 if scale is None else float(scale),
        backend,
    )
    return out


def dilated_attention_packed(
    qkv: Tensor,
    *,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None = None,
    gradient: Literal["exact", "detached"] = "exact",
    ragged: Literal["masked", "padded"] = "masked",
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """`dilated_attention` of one fused projection (B, N, 3, H, D); its gradient comes back in that layout, uncopied."""
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (batch, length, 3, heads, head_dim), got {tuple(qkv.shape)}")
    q, k, v = qkv.unbind(2)
    lengths = _checked(q, k, v, segment_lengths, dilated_ratios, lengths, gradient, ragged)
    out, _ = forward_op(
        [qkv if qkv.stride(-1) == 1 else qkv.contiguous()],
        [int(w) for w in segment_lengths],
        [int(r) for r in dilated_ratios],
        lengths,
        gradient == "detached",
        ragged == "padded",
        qkv.shape[-1] ** -0.5 if scale is None else float(scale),
        backend,
    )
    return out


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None,
    gradient: str,
    ragged: str,
) -> list[int] | None:
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            f"q, k and v must share one shape (batch, length, heads, head_dim); got {tuple(q.shape)}, "
            f"{tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(
            f"q, k and v must share dtype and device; got {q.dtype} on {q.device}, {k.dtype} on {k.device}, "
            f"{v.dtype} on {v.device}"
        )
    if not q.dtype.is_floating_point:
        raise ValueError(f"q, k and v must be floating point, got {q.dtype}")
    if len(segment_lengths) != len(dilated_ratios) or not segment_lengths:
        raise ValueError(
            f"one dilated ratio per segment length and at least one of each; got {len(segment_lengths)} segment "
            f"lengths, {len(dilated_ratios)} ratios"
        )
    for name, values in (("segment length", segment_lengths), ("dilated ratio", dilated_ratios)):
        if min(values) < 1:
            raise ValueError(f"every {name} must be at least 1, got {tuple(values)}")
    for name, value, known in (
        ("gradient", gradient, ("exact", "detached")),
        ("ragged", ragged, ("masked", "padded")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    if lengths is None:
        return None
    lengths = [int(n) for n in lengths]
    rows, positions = q.shape[:2]
    packed = rows == 1 and len(lengths) != 1
    if min(lengths, default=0) < 0:
        raise ValueError(f"lengths must not be negative, got {min(lengths)}")
    if not packed and len(lengths) != rows:
        raise ValueError(
            f"{len(lengths)} lengths for a batch of {rows}: give one each, or a batch of 1 for packed ones"
        )
    if (sum(lengths) if packed else max(lengths, default=0)) > positions:
        raise ValueError(f"lengths {lengths} do not fit into {positions} tokens")
    return lengths
