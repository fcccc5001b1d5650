"""Launches of the kernels on padded operands (`padded_kernels`), behind the functions of `triton_branch`.

Shapes and arguments are those of `triton_branch`; `unpadded_reason` in `backends` says where these kernels do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longvit.attention import padded_kernels
from longvit.attention.triton_branch import LOG2_E, Tile, cdiv, check_scale, launch, next_power_of_2, tile_width

# The fastest of 12 to 15 each on the segments of 16,384² px (`benchmarks/gpu_kernels.py`, H200, head dim 24, bfloat16,
# 2026-11). At 128 registers 16 warps fit on a multiprocessor; forward and keys spill 16–72 bytes outside their loops.
TILES = {
    "forward": Tile(64, 64, 4, 3, tiles=2, registers=128),
    "keys": Tile(64, 64, 4, 3, registers=128),
    "queries": Tile(64, 64, 4, 3, tiles=2, registers=128),
}
_TOKENS = 4  # of a program that pads: 1.3 ms for keys and values of 1,048,576 patches, 1.7 ms with 16


def _pad(kernel: Any, like: Tensor, *args: Any) -> None:
    """Launches a kernel that pads over all tokens of `like`, (B, N, H, D)."""
    H, D = like.shape[2:]
    constants = {"D": D, "D_TILE": tile_width(D), "H_TILE": next_power_of_2(H), "tokens": _TOKENS}
    with torch.cuda.device_of(like):
        kernel[(_programs(like),)](*args, **constants)


def _programs(x: Tensor) -> int:
    return cdiv(x.shape[1], _TOKENS) * x.shape[0]


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for t in tensors for stride in t.stride()[:3]]


def _padded(x: Tensor) -> Tensor:
    return torch.empty((*x.shape[:3], tile_width(x.shape[3])), dtype=x.dtype, device=x.device)


def _padded_keys(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """→ k', v', and (programs, H, 2) of the largest |k|² and the largest |v|."""
    N, H = k.shape[1:3]
    k_padded, v_padded = _padded(k), _padded(v)
    largest = torch.empty((_programs(k), H, 2), dtype=torch.float32, device=k.device)
    if k.numel():
        _pad(padded_kernels.pad_keys, k, k, v, k_padded, v_padded, largest, N, H, *_strides(k, v))
    return k_padded, v_padded, largest


def forward_operands(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """(B, N, H, D) → q, k' and v' (B, N, H, D_TILE), and per head the largest |k|²; one number on, the largest |v|."""
    k_padded, v_padded, largest = _padded_keys(k, v)
    if not len(largest):
        return q, k_padded, v_padded, largest.new_zeros(q.shape[:3])
    return q, k_padded, v_padded, largest.amax(0)[:, 0].expand(q.shape[:3])


def branch_forward(
    operands: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
    w: int,
    r: int,
    scale: float,
    padded: bool = False,
    first: bool = False,
) -> None:
    """See `triton_branch.branch_forward`."""
    group = cdiv(min(w, out.shape[1]), r)
    _forward(operands, out, lse, w, r, scale, FIRST=first, PADDED=padded, group=group)


def _forward(
    operands: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
    w: int,
    r: int,
    scale: float,
    others: int = -1,
    **settings: Any,
) -> None:
    check_scale(scale)
    tensors = dict(zip(("q", "k", "v", "largest"), operands, strict=True)) | {"out": out, "lse": lse}
    settings |= _scales(scale)
    launch(padded_kernels.forward, TILES["forward"], operands[0], tensors, w, r, others, **settings)


def _scales(scale: float) -> dict[str, Any]:
    """A scale of ln 2 (`model.query_scale`) needs no factor per pair."""
    return {"scale_log2": scale * LOG2_E, "FOLDED": math.isclose(scale * LOG2_E, 1, rel_tol=1e-6)}


def backward_operands(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """→ q', k', v', g' (B, N, H, D_TILE); see `triton_branch.backward_operands`."""
    N, H = q.shape[1:3]
    q_padded, grad_padded = _padded(q), _padded(grad_out)
    if q.numel():
        args = (q, grad_out, out, lse, q_padded, grad_padded, N, H, 1 / scale, *_strides(q, grad_out, out, lse))
        _pad(padded_kernels.pad_queries, q, *args)
    return q_padded, *_padded_keys(k, v)[:2], grad_padded


def branch_backward(
    operands: Sequence[Tensor], grads: Sequence[Tensor], w: int, r: int, scale: float, first: bool = False
) -> None:
    """See `triton_branch.branch_backward`."""
    keys_backward(operands, grads[1:], w, r, scale, first)
    queries_backward(operands, grads[0], w, r, scale, first)


def keys_backward(
    operands: Sequence[Tensor],
    grads: Sequence[Tensor],
    w: int,
    r: int,
    scale: float,
    first: bool = False,
    others: int = -1,
) -> None:
    """`branch_backward` of k and v; others: how many queries, where not as many."""
    tensors = dict(zip(("q", "k", "v", "grad", "dk", "dv"), (*operands, *grads), strict=True))
    settings = _scales(scale) | {"scale": scale, "FIRST": first}
    settings |= {"head_dim": grads[0].shape[-1]}
    launch(padded_kernels.keys_backward, TILES["keys"], operands[1], tensors, w, r, others, **settings)


def queries_backward(
    operands: Sequence[Tensor], grad_q: Tensor, w: int, r: int, scale: float, first: bool = False, others: int = -1
) -> None:
    """`branch_backward` of q; others: how many keys, where not as many."""
    tensors = dict(zip(("q", "k", "v", "grad", "dq"), (*operands, grad_q), strict=True))
    settings = _scales(scale) | {"scale": scale, "FIRST": first}
    settings |= {"head_dim": grad_q.shape[-1]}
    launch(padded_kernels.queries_backward, TILES["queries"], operands[0], tensors, w, r, others, **settings)


# --- one call, (B, H, L, D) views, queries and keys of any two lengths ----------------------------------------------


def call_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See `triton_branch.call_forward`."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    operands = forward_operands(q, k, v)
    _forward(operands, out, lse, q.shape[1], 1, scale, k.shape[1], FIRST=True, PADDED=False, group=0)
    return out.transpose(1, 2), lse.transpose(1, 2)


def call_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `triton_branch.call_backward`."""
    grad_out, q, k, v, out, lse = (t.transpose(1, 2) for t in (grad_out, q, k, v, out, lse))
    dq, dk, dv = (torch.empty(t.shape, dtype=torch.float32, device=q.device) for t in (q, k, v))
    operands = backward_operands(grad_out, q, k, v, out, lse, scale)
    keys_backward(operands, (dk, dv), k.shape[1], 1, scale, True, q.shape[1])
    queries_backward(operands, dq, q.shape[1], 1, scale, True, k.shape[1])
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
