"""The computation: branch after branch merged into one running (out, lse), and the backward from that pair alone.

The mixture of the branches is one softmax of each query over the multiset union of its branches' keys (see `dilated`).
So a branch (o, l) is merged in place, and backward calls each branch's flash backward with the merged (out, lse).

B sequences, N tokens, H heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longvit.attention import short
from longvit.attention.backends import Backend
from longvit.attention.branches import Call, Run, calls, runs
from longvit.attention.padding import gathered, is_shifted, spread, with_zero_keys


@dataclass(frozen=True)
class Settings:
    """What one operator call needs beside its tensors."""

    branches: tuple[tuple[int, int], ...]  # (segment length, dilated ratio)
    lengths: tuple[int, ...] | None
    detached: bool
    padded: bool
    scale: float
    kernel: Backend
    short: bool = False  # short sequences as one dense attention; not with `padded`


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-sum-exps."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows_adjoin(*tensors: Tensor) -> bool:
    return all(t.stride(0) == t.shape[1] * t.stride(1) for t in tensors)


def merge_into(out: Tensor, lse: Tensor, o: Tensor, l: Tensor) -> None:
    """Equations 9 and 10, one branch at a time, in place: (out, lse) ← (out, lse) ∪ (o, l). No part: l = −inf."""
    weight = torch.sigmoid(l - lse).nan_to_num_(0.0)  # exp(l) / (exp(l) + exp(lse)); both −inf: nan
    out.lerp_(o.to(out.dtype), weight.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, l))


def forward(q: Tensor, k: Tensor, v: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """→ merged out (B, N, H, D), contiguous, and lse (B, N, H) with −inf where no branch reaches."""
    B, N, H, D = q.shape
    wide, adjoin = wide_dtype(q.dtype), _rows_adjoin(q, k, v)
    out: Tensor | None = None
    operands: Sequence[Tensor] = ()
    lse = q.new_full((B, N, H), -math.inf, dtype=wide)
    for run in runs(B, N, s.lengths):
        tokens, untouched = run.batch * run.length, True
        if s.short and short.is_short(run.length, s.branches, q.device):
            o, l = short.forward(run.view(q), run.view(k), run.view(v), s.branches, s.scale)
            if tokens == B * N:
                out, lse = o.view(q.shape), l.view(lse.shape)
                continue
            out = q.new_zeros(q.shape, dtype=wide) if out is None else out
            run.view(out).copy_(o)
            run.view(lse).copy_(l)
            continue
        for w, r in s.branches:
            if s.padded and is_shifted(run.length, w, r):
                out = q.new_zeros(q.shape, dtype=wide) if out is None else out
                o, l = _shifted_branch(run.view(q), run.view(k), run.view(v), w, r, s)
                merge_into(run.view(out), run.view(lse), o, l)
                untouched = False
                continue
            if s.kernel.branches:
                first, untouched = untouched and r == 1, False  # reaches every token and head of the run
                if out is None:
                    out = (q.new_empty if first and tokens == B * N else q.new_zeros)(q.shape, dtype=wide)
                operands = operands or s.kernel.branches.forward_operands(q, k, v)
                views = [run.view(t) for t in operands]
                s.kernel.branches.forward(views, run.view(out), run.view(lse), w, r, s.scale, s.padded, first)
                continue
            for call in calls(run, H, w, r, padded=s.padded, rows_adjoin=adjoin and run.length == N):
                o, l = s.kernel.forward(call.view(q), call.view(k), call.view(v), s.scale)
                o, l = with_zero_keys(o, l.to(wide), call.pad_keys)
                first, untouched = untouched and o.numel() == tokens * H * D, False
                if first and tokens == B * N:
                    # covers everything; (B·S, H, L, D) as the kernels lay it out is (B, N, H, D) in memory
                    out = o.to(wide).transpose(1, 2).contiguous().view(B, N, H, D)
                    lse = l.transpose(1, 2).contiguous().view(B, N, H)
                    continue
                out = q.new_zeros(q.shape, dtype=wide) if out is None else out
                if first:
                    call.view(out).copy_(o)
                    call.view(lse).copy_(l)
                else:
                    merge_into(call.view(out), call.view(lse), o, l)
    return q.new_zeros(q.shape) if out is None else out.to(q.dtype), lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    s: Settings,
    into: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:
    """→ the gradients of q, k and v in `wide_dtype`, each (B, N, H, D): `into`, set whatever it held, or new ones."""
    B, N, H, D = q.shape
    wide, adjoin = wide_dtype(q.dtype), _rows_adjoin(q, k, v, grad_out, *(into or ()))
    grads: Sequence[Tensor] | None = None
    operands: Sequence[Tensor] = ()
    for run in runs(B, N, s.lengths):
        tokens, untouched = run.batch * run.length, True
        if s.short and not s.detached and short.is_short(run.length, s.branches, q.device):
            tensors = [run.view(t) for t in (grad_out, q, k, v, out, lse)]
            parts = short.backward(tensors, s.branches, s.scale)
            grads = grads or ((into or _empty(q)) if tokens == B * N else _zeros(q, into))
            for grad, part in zip(grads, parts, strict=True):
                run.view(grad).copy_(part)
            continue
        for w, r in s.branches:
            if s.padded and is_shifted(run.length, w, r):
                tensors = [run.view(t) for t in (grad_out, q, k, v, out, lse)]
                grads = grads or _zeros(q, into)
                for grad, part in zip(grads, _shifted_branch_backward(tensors, w, r, s), strict=True):
                    run.view(grad).add_(part)
                untouched = False
                continue
            if s.kernel.branches:
                first, untouched = untouched and r == 1, False
                grads = grads or ((into or _empty(q)) if first and tokens == B * N else _zeros(q, into))
                if s.detached or not operands:
                    of_branch = _own_out(q, k, v, w, r, run, s) if s.detached else out
                    operands = s.kernel.branches.backward_operands(grad_out, q, k, v, of_branch, lse, s.scale)
                views = [run.view(t) for t in operands]
                s.kernel.branches.backward(views, [run.view(g) for g in grads], w, r, s.scale, first)
                continue
            for call in calls(run, H, w, r, padded=s.padded, rows_adjoin=adjoin and run.length == N):
                parts = call_backward(call, (grad_out, q, k, v, out, lse), s)
                first, untouched = untouched and parts[0].numel() == tokens * H * D, False
                if first and tokens == B * N and into is None:  # covers everything, as in `forward`
                    grads = [p.to(wide).transpose(1, 2).contiguous().view(q.shape) for p in parts]
                    continue
                grads = grads or ((into or _empty(q)) if first and tokens == B * N else _zeros(q, into))
                for grad, part in zip(grads, parts, strict=True):
                    call.view(grad).copy_(part) if first else call.view(grad).add_(part)
    return grads or _zeros(q, into)


def _own_out(q: Tensor, k: Tensor, v: Tensor, w: int, r: int, run: Run, s: Settings) -> Tensor:
    """(B, N, H, D) output of this branch alone, defined where it reaches."""
    assert s.kernel.branches
    out, lse = q.new_zeros(q.shape, dtype=wide_dtype(q.dtype)), q.new_full(q.shape[:3], -math.inf, dtype=torch.float32)
    views = [run.view(t) for t in s.kernel.branches.forward_operands(q, k, v)]
    s.kernel.branches.forward(views, run.view(out), run.view(lse), w, r, s.scale, s.padded, False)
    return out


def _empty(q: Tensor) -> Sequence[Tensor]:
    return [q.new_empty(q.shape, dtype=wide_dtype(q.dtype)) for _ in range(3)]


def _zeros(q: Tensor, into: Sequence[Tensor] | None) -> Sequence[Tensor]:
    if into is None:
        return [q.new_zeros(q.shape, dtype=wide_dtype(q.dtype)) for _ in range(3)]
    return [grad.zero_() for grad in into]


def call_backward(call: Call, tensors: Sequence[Tensor], s: Settings) -> tuple[Tensor, Tensor, Tensor]:
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


def _shifted_branch(q: Tensor, k: Tensor, v: Tensor, w: int, r: int, s: Settings) -> tuple[Tensor, Tensor]:
    """→ out (B, N, H, D), lse (B, N, H) of one branch."""
    n, wide = q.shape[1], wide_dtype(q.dtype)
    q, k, v = (spread(t, w, r) for t in (q, k, v))
    out, lse = q.new_zeros(q.shape, dtype=wide), q.new_full(q.shape[:3], -math.inf, dtype=wide)
    for call in _shifted_calls(q, w, r):
        o, l = s.kernel.forward(call.view(q), call.view(k), call.view(v), s.scale)
        call.view(out).copy_(o)
        call.view(lse).copy_(l)
    return out[:, :n], lse[:, :n]


def _shifted_branch_backward(tensors: Sequence[Tensor], w: int, r: int, s: Settings) -> list[Tensor]:
    grad_out, q, k, v, out, lse = tensors
    n = q.shape[1]
    q, k, v = (spread(t, w, r) for t in (q, k, v))
    behind = q.shape[1] - n  # results that the published code cuts off: no probability, no gradient
    grad_out, out = (F.pad(t, (0, 0, 0, 0, 0, behind)) for t in (grad_out, out))
    lse = F.pad(lse, (0, 0, 0, behind), value=math.inf)
    grads = [torch.zeros_like(q, dtype=lse.dtype) for _ in range(3)]
    for call in _shifted_calls(q, w, r):
        for grad, part in zip(grads, call_backward(call, (grad_out, q, k, v, out, lse), s), strict=True):
            call.view(grad).add_(part)
    return [gathered(g, n, w, r) for g in grads]
