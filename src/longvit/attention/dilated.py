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

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longvit.attention.backends import Backend, pick
from longvit.attention.branches import Call, Run, calls, runs
from longvit.attention.padding import gathered, is_shifted, spread, with_zero_keys


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
    """
    lengths = _checked(q, k, v, segment_lengths, dilated_ratios, lengths, gradient, ragged)
    out, _ = _forward_op(
        *(t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v)),
        [int(w) for w in segment_lengths],
        [int(r) for r in dilated_ratios],
        lengths,
        gradient == "detached",
        ragged == "padded",
        q.shape[-1] ** -0.5 if scale is None else float(scale),
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


@dataclass(frozen=True)
class _Settings:
    """What one operator call needs beside its tensors."""

    branches: tuple[tuple[int, int], ...]  # (segment length, dilated ratio)
    lengths: tuple[int, ...] | None
    detached: bool
    padded: bool
    scale: float
    kernel: Backend


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-sum-exps."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows_adjoin(*tensors: Tensor) -> bool:
    return all(t.stride(0) == t.shape[1] * t.stride(1) for t in tensors)


def _merge(out: Tensor, lse: Tensor, o: Tensor, l: Tensor) -> None:
    """Equations 9 and 10, one branch at a time, in place: (out, lse) ← (out, lse) ∪ (o, l). No part: l = −inf."""
    weight = torch.sigmoid(l - lse).nan_to_num_(0.0)  # exp(l) / (exp(l) + exp(lse)); both −inf: nan
    out.lerp_(o.to(out.dtype), weight.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, l))


def _forward(q: Tensor, k: Tensor, v: Tensor, s: _Settings) -> tuple[Tensor, Tensor]:
    """→ merged out (B, N, H, D), contiguous, and lse (B, N, H) with −inf where no branch reaches."""
    B, N, H, D = q.shape
    wide, adjoin = _wide(q.dtype), _rows_adjoin(q, k, v)
    out: Tensor | None = None
    lse = q.new_full((B, N, H), -math.inf, dtype=wide)
    for run in runs(B, N, s.lengths):
        for w, r in s.branches:
            if s.padded and is_shifted(run.length, w, r):
                out = q.new_zeros(q.shape, dtype=wide) if out is None else out
                o, l = _shifted_branch(run.view(q), run.view(k), run.view(v), w, r, s)
                _merge(run.view(out), run.view(lse), o, l)
                continue
            for call in calls(run, H, w, r, padded=s.padded, rows_adjoin=adjoin):
                o, l = s.kernel.forward(call.view(q), call.view(k), call.view(v), s.scale)
                o, l = with_zero_keys(o, l.to(wide), call.pad_keys)
                if out is None and o.numel() == q.numel():
                    # covers everything; (B·S, H, L, D) as the kernels lay it out is (B, N, H, D) in memory
                    out = o.to(wide).transpose(1, 2).contiguous().view(B, N, H, D)
                    lse = l.transpose(1, 2).contiguous().view(B, N, H)
                    continue
                out = q.new_zeros(q.shape, dtype=wide) if out is None else out
                _merge(call.view(out), call.view(lse), o, l)
    return q.new_zeros(q.shape) if out is None else out.to(q.dtype), lse


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, s: _Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """→ gradients of q, k, v, each (B, N, H, D), contiguous."""
    wide, adjoin = _wide(q.dtype), _rows_adjoin(q, k, v, grad_out)
    grads: tuple[Tensor, ...] = ()
    for run in runs(q.shape[0], q.shape[1], s.lengths):
        for w, r in s.branches:
            if s.padded and is_shifted(run.length, w, r):
                grads = grads or tuple(q.new_zeros(q.shape, dtype=wide) for _ in range(3))
                tensors = [run.view(t) for t in (grad_out, q, k, v, out, lse)]
                for grad, part in zip(grads, _shifted_branch_backward(tensors, w, r, s), strict=True):
                    run.view(grad).add_(part)
                continue
            for call in calls(run, q.shape[2], w, r, padded=s.padded, rows_adjoin=adjoin):
                parts = _call_backward(call, (grad_out, q, k, v, out, lse), s)
                if not grads and parts[0].numel() == q.numel():
                    grads = tuple(p.to(wide).transpose(1, 2).contiguous().view(q.shape) for p in parts)
                    continue
                grads = grads or tuple(q.new_zeros(q.shape, dtype=wide) for _ in range(3))
                for grad, part in zip(grads, parts, strict=True):
                    call.view(grad).add_(part)
    dq, dk, dv = (g.to(q.dtype) for g in grads or (torch.zeros_like(q),) * 3)
    return dq, dk, dv


def _call_backward(call: Call, tensors: Sequence[Tensor], s: _Settings) -> tuple[Tensor, Tensor, Tensor]:
    """One call's part of the gradients, from (grad_out, q, k, v, out, lse) and the merged softmax in the last two."""
    grad_out, q, k, v, out, lse = (call.view(t) for t in tensors)
    if s.detached:  # P of the merged softmax, but the row sum of this branch's own output
        out, own_lse = s.kernel.forward(q, k, v, s.scale)
        out, _ = with_zero_keys(out, own_lse.to(lse.dtype), call.pad_keys)
    return s.kernel.backward(grad_out, q, k, v, out, lse, s.scale)


# --- branches whose results the published code returns at other positions (see `padding`) ---------------------------


def _shifted_calls(q: Tensor, w: int, r: int) -> Iterator[Call]:
    B, N, H, _ = q.shape
    # an offset group beyond w holds zero keys alone: it takes no part
    return calls(Run(B, N), H, w + -w % r, r, padded=False, rows_adjoin=True, offsets=w if w < r else None)


def _shifted_branch(q: Tensor, k: Tensor, v: Tensor, w: int, r: int, s: _Settings) -> tuple[Tensor, Tensor]:
    """→ out (B, N, H, D), lse (B, N, H) of one branch."""
    n, wide = q.shape[1], _wide(q.dtype)
    q, k, v = (spread(t, w, r) for t in (q, k, v))
    out, lse = q.new_zeros(q.shape, dtype=wide), q.new_full(q.shape[:3], -math.inf, dtype=wide)
    for call in _shifted_calls(q, w, r):
        o, l = s.kernel.forward(call.view(q), call.view(k), call.view(v), s.scale)
        call.view(out).copy_(o)
        call.view(lse).copy_(l)
    return out[:, :n], lse[:, :n]


def _shifted_branch_backward(tensors: Sequence[Tensor], w: int, r: int, s: _Settings) -> list[Tensor]:
    grad_out, q, k, v, out, lse = tensors
    n = q.shape[1]
    q, k, v = (spread(t, w, r) for t in (q, k, v))
    behind = q.shape[1] - n  # results that the published code cuts off: no probability, no gradient
    grad_out, out = (F.pad(t, (0, 0, 0, 0, 0, behind)) for t in (grad_out, out))
    lse = F.pad(lse, (0, 0, 0, behind), value=math.inf)
    grads = [torch.zeros_like(q, dtype=lse.dtype) for _ in range(3)]
    for call in _shifted_calls(q, w, r):
        for grad, part in zip(grads, _call_backward(call, (grad_out, q, k, v, out, lse), s), strict=True):
            call.view(grad).add_(part)
    return [gathered(g, n, w, r) for g in grads]


# --- the operators that autograd, torch.compile and the FLOP counter see --------------------------------------------


def _settings(
    q: Tensor,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None,
    detached: bool,
    padded: bool,
    scale: float,
    backend: str,
) -> _Settings:
    branches = tuple(zip(segment_lengths, dilated_ratios, strict=True))
    kernel = pick(q.device, q.dtype, q.shape[-1], backend).backend
    return _Settings(branches, None if lengths is None else tuple(lengths), detached, padded, scale, kernel)


@torch.library.custom_op("longvit::dilated_attention", mutates_args=())
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None,
    detached: bool,
    padded: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _forward(q, k, v, _settings(q, segment_lengths, dilated_ratios, lengths, detached, padded, scale, backend))


@_forward_op.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("longvit::dilated_attention_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None,
    detached: bool,
    padded: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if grad_out.stride(-1) != 1 or 0 in grad_out.stride():
        grad_out = grad_out.contiguous()  # an expanded gradient (of a sum or mean)
    settings = _settings(q, segment_lengths, dilated_ratios, lengths, detached, padded, scale, backend)
    return _backward(grad_out, q, k, v, out, lse, settings)


@_backward_op.register_fake
def _(grad_out: Tensor, q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 10
    q, k, v, out, lse = ctx.saved_tensors
    return (*_backward_op(grad_out, q, k, v, out, lse, *ctx.settings), *(None,) * 7)


_forward_op.register_autograd(_autograd, setup_context=_setup_context)


def attention_pairs(
    batch: int,
    length: int,
    heads: int,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None = None,
) -> int:
    """(query, key) pairs computed over all sequences, heads and branches: about B · H · N · Σ w'/r² (cost note)."""
    return sum(
        call.pairs
        for run in runs(batch, length, lengths)
        for w, r in zip(segment_lengths, dilated_ratios, strict=True)
        for call in calls(run, heads, w, r, padded=False, rows_adjoin=True)
    )


@register_flop_formula(torch.ops.longvit.dilated_attention)
def _forward_flops(q, k, v, segment_lengths, dilated_ratios, lengths, *_, **__):
    """Two products of 2·D FLOPs per (query, key) pair."""
    pairs = attention_pairs(q[0], q[1], q[2], segment_lengths, dilated_ratios, lengths)
    return 4 * q[3] * pairs


@register_flop_formula(torch.ops.longvit.dilated_attention_backward)
def _backward_flops(grad_out, q, k, v, out, lse, segment_lengths, dilated_ratios, lengths, detached, *_, **__):
    """Five products per pair; the detached gradient computes each branch's output again (two more)."""
    products = 7 if detached else 5
    pairs = attention_pairs(q[0], q[1], q[2], segment_lengths, dilated_ratios, lengths)
    return 2 * products * q[3] * pairs
