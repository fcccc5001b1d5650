"""Dilated attention as PyTorch operators, for autograd, `torch.compile` and the FLOP counter.

`longvit::dilated_attention` takes [q, k, v] or one fused projection [qkv]. Its backward returns the gradient in the
same layout, so that a fused projection needs no copy. Both have fake kernels (shapes without data) and FLOP formulas.

They are registered with `torch.library.define`. The wrapper of `custom_op` imports the whole compiler at the first
call: some 80 MB and a second in every process that never compiles.

B sequences, N tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longvit.attention import online_softmax, routes
from longvit.attention.backends import pick
from longvit.attention.branches import calls, sequence_groups
from longvit.attention.pattern import DilatedPattern

# The operators' arguments after the tensors; a schema takes no objects. `flat_settings` and `_settings` convert them.
_SETTINGS = (
    "SymInt[] segment_lengths, SymInt[] dilated_ratios, SymInt[]? lengths, bool detached, bool padded, "
    "float scale, str backend"
)


def flat_settings(
    pattern: DilatedPattern, lengths: Sequence[int] | None, scale: float, backend: str = "auto"
) -> tuple[Any, ...]:
    """Arguments of the operators after the tensors."""
    segment_lengths, dilated_ratios = list(pattern.segment_lengths), list(pattern.dilated_ratios)
    return segment_lengths, dilated_ratios, lengths, pattern.detached, pattern.padded, scale, backend


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
    gradient: Literal["exact", "detached"] = "detached" if detached else "exact"
    ragged: Literal["masked", "padded"] = "padded" if padded else "masked"
    pattern = DilatedPattern(tuple(segment_lengths), tuple(dilated_ratios), gradient, ragged)
    choice = pick(q.device, q.dtype, q.shape[-1], backend)
    rows = None if lengths is None else tuple(lengths)
    return online_softmax.Settings(pattern, scale, choice.backend, rows, choice.is_free and not padded)


def _three(qkv: Sequence[Tensor]) -> Sequence[Tensor]:
    return qkv[0].unbind(2) if len(qkv) == 1 else qkv


def _operator(name: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers `function`, which changes none of its arguments, and returns the operator."""
    torch.library.define(name, schema)
    torch.library.impl(name, "default", function)
    torch.library.register_fake(name, fake)
    namespace, op = name.split("::")
    return getattr(getattr(torch.ops, namespace), op).default


def _forward(qkv: Sequence[Tensor], *flat: Any) -> tuple[Tensor, Tensor]:
    """→ out (B, N, H, D), lse (B, N, H); no gradient flows through lse."""
    q, k, v = _three(qkv)
    return routes.forward(q, k, v, _settings(q, *flat))


def _forward_fake(qkv: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    q = _three(qkv)[0]
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=online_softmax.wide_dtype(q.dtype))


def _backward(grad_out: Tensor, qkv: Sequence[Tensor], out: Tensor, lse: Tensor, *flat: Any) -> list[Tensor]:
    """→ the gradients in the layout of `qkv`: three (B, N, H, D), or one (B, N, 3, H, D)."""
    if grad_out.stride(-1) != 1 or 0 in grad_out.stride():
        grad_out = grad_out.contiguous()  # an expanded gradient (of a sum or mean)
    q, k, v = _three(qkv)
    settings = _settings(q, *flat)
    if len(qkv) == 3:
        return [g.to(q.dtype) for g in routes.backward(grad_out, q, k, v, out, lse, settings)]
    fused = torch.empty(qkv[0].shape, dtype=online_softmax.wide_dtype(q.dtype), device=q.device)
    routes.backward(grad_out, q, k, v, out, lse, settings, fused.unbind(2))
    return [fused.to(q.dtype)]


def _backward_fake(grad_out: Tensor, qkv: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in qkv]


forward_op = _operator(
    "longvit::dilated_attention", f"(Tensor[] qkv, {_SETTINGS}) -> (Tensor, Tensor)", _forward, _forward_fake
)
backward_op = _operator(
    "longvit::dilated_attention_backward",
    f"(Tensor grad_out, Tensor[] qkv, Tensor out, Tensor lse, {_SETTINGS}) -> Tensor[]",
    _backward,
    _backward_fake,
)


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
        for group in sequence_groups(batch, length, lengths)
        for w, r in zip(segment_lengths, dilated_ratios, strict=True)
        for call in calls(group, heads, w, r, padded=False, rows_adjoin=True)
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
