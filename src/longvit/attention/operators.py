"""Dilated attention as PyTorch operators: what autograd, `torch.compile` and the FLOP counter see.

`longvit::dilated_attention` takes [q, k, v] or one fused projection [qkv]; its backward returns the gradient in the
same layout, so that a fused projection needs no copy. Both have fake kernels (shapes without data) and FLOP formulas.

Registered with `torch.library.define` rather than `custom_op`, whose wrapper imports the whole compiler at the first
call: some 80 MB and a second in every process that never compiles.

B sequences, N tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longvit.attention import online_softmax
from longvit.attention.backends import pick
from longvit.attention.branches import calls, runs


def _three(qkv: Sequence[Tensor]) -> Sequence[Tensor]:
    return qkv[0].unbind(2) if len(qkv) == 1 else qkv


def _settings(
    q: Tensor,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None,
    detached: bool,
    padded: bool,
    scale: float,
    backend: str,
) -> online_softmax.Settings:
    branches = tuple(zip(segment_lengths, dilated_ratios, strict=True))
    choice = pick(q.device, q.dtype, q.shape[-1], backend)
    rows = None if lengths is None else tuple(lengths)
    return online_softmax.Settings(
        branches, rows, detached, padded, scale, choice.backend, choice.is_free and not padded
    )


def _operator(function: Callable[..., Any], name: str, fake: Callable[..., Any]) -> Any:
    """Registers `function`, which changes none of its arguments, and returns the operator."""
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "default", function)
    torch.library.register_fake(name, fake)
    namespace, op = name.split("::")
    return getattr(getattr(torch.ops, namespace), op).default


def _forward(
    qkv: Sequence[Tensor],
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None,
    detached: bool,
    padded: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """→ out (B, N, H, D), lse (B, N, H); no gradient flows through lse."""
    q, k, v = _three(qkv)
    settings = _settings(q, segment_lengths, dilated_ratios, lengths, detached, padded, scale, backend)
    return online_softmax.forward(q, k, v, settings)


def _forward_fake(qkv: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    q = _three(qkv)[0]
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=online_softmax.wide_dtype(q.dtype))


def _backward(
    grad_out: Tensor,
    qkv: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
    segment_lengths: Sequence[int],
    dilated_ratios: Sequence[int],
    lengths: Sequence[int] | None,
    detached: bool,
    padded: bool,
    scale: float,
    backend: str,
) -> list[Tensor]:
    """→ the gradients in the layout of `qkv`: three (B, N, H, D), or one (B, N, 3, H, D)."""
    if grad_out.stride(-1) != 1 or 0 in grad_out.stride():
        grad_out = grad_out.contiguous()  # an expanded gradient (of a sum or mean)
    q, k, v = _three(qkv)
    settings = _settings(q, segment_lengths, dilated_ratios, lengths, detached, padded, scale, backend)
    if len(qkv) == 3:
        return [g.to(q.dtype) for g in online_softmax.backward(grad_out, q, k, v, out, lse, settings)]
    fused = torch.empty(qkv[0].shape, dtype=online_softmax.wide_dtype(q.dtype), device=q.device)
    online_softmax.backward(grad_out, q, k, v, out, lse, settings, fused.unbind(2))
    return [fused.to(q.dtype)]


def _backward_fake(grad_out: Tensor, qkv: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in qkv]


forward_op = _operator(_forward, "longvit::dilated_attention", _forward_fake)
backward_op = _operator(_backward, "longvit::dilated_attention_backward", _backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, *ctx.settings = inputs
    ctx.save_for_backward(*qkv, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *qkv, out, lse = ctx.saved_tensors
    unused = (None,) * len(ctx.settings)
    if grad_out is None:
        return [None] * len(qkv), *unused
    return backward_op(grad_out, list(qkv), out, lse, *ctx.settings), *unused


torch.library.register_autograd("longvit::dilated_attention", _autograd, setup_context=_setup_context)


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


def _flops(shapes: Any, products: int, settings: Sequence[Any]) -> int:
    """`products` matrix products of 2·D FLOPs per (query, key) pair."""
    (B, N), (H, D) = shapes[0][:2], shapes[0][-2:]
    segment_lengths, dilated_ratios, lengths, *_ = settings
    return 2 * products * D * attention_pairs(B, N, H, segment_lengths, dilated_ratios, lengths)


@register_flop_formula(torch.ops.longvit.dilated_attention)
def _forward_flops(qkv: Any, *settings: Any, **_: Any) -> int:
    return _flops(qkv, 2, settings)


@register_flop_formula(torch.ops.longvit.dilated_attention_backward)
def _backward_flops(grad_out: Any, qkv: Any, out: Any, lse: Any, *settings: Any, **_: Any) -> int:
    return _flops(qkv, 7 if settings[3] else 5, settings)  # detached: each branch's output once more
