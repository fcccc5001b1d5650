"""Launches of the Triton kernels: a branch of dilated attention at once, or one call as the other back ends take it.

All tensors are (B, N, H, D) or (B, N, H) with any strides, but stride 1 in the last axis of the former. B sequences,
N tokens, H heads, D head dim, w segment length, r dilated ratio, L tokens of one offset group in one segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from longvit.attention import triton_kernels
from longvit.attention.backends import matmul_precision

LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class Tile:
    """Rows of a block (each program's own tokens), columns (what it steps through), warps, stages of the pipeline.

    `tiles`: blocks of rows per program, 1 or 2 (`padded_kernels` alone); `registers`: most per thread, None: any.
    `polynomials`: how many of four exponentials are polynomials (`padded_kernels` alone).
    """

    rows: int
    columns: int
    warps: int
    stages: int
    tiles: int = 1
    registers: int | None = None
    polynomials: int = 0

    def fitting(self, tokens: int, row_bytes: int) -> Tile:
        """Smaller blocks for offset groups of fewer `tokens`, and for rows wider than 32 numbers of 16 bits."""
        most = max(16, next_power_of_2(tokens))
        columns = max(16, self.columns * 64 // max(64, row_bytes))
        tiles = self.tiles if tokens > self.rows else 1
        return replace(self, rows=min(self.rows, most), columns=min(columns, most), tiles=tiles)


# The fastest of twelve each on the segments of 16,384² px (`benchmarks/gpu.py`, H200, head dim 24, bfloat16, 2026-11).
TILES = {
    "forward": Tile(128, 64, 8, 3),
    "keys": Tile(64, 128, 4, 2),
    "queries": Tile(64, 64, 4, 3),
}


def launch(
    kernel: Any,
    tile: Tile,
    own: Tensor,
    tensors: dict[str, Tensor],
    w: int,
    r: int,
    others: int = -1,
    head_dim: int | None = None,
    **settings: Any,
) -> None:
    """`kernel` over all (row, segment, head, block of `own`); its pointers and strides from `tensors`, by name.

    `tensors`: in the order of the kernel's pointers. `head_dim`: of q, k and v, where `own` is padded.
    """
    strides = tuple([t.stride() for t in tensors.values()])
    plan = _planned(
        kernel, tile, own.shape, own.dtype, tuple(tensors), strides, w, r, others, head_dim, precision(own.dtype),
        tuple(settings.items()),
    )  # fmt: skip
    if plan is not None:
        grid, numbers, options = plan
        with torch.cuda.device_of(own):  # Triton launches on the current card
            kernel[grid](*tensors.values(), *numbers, **options)


@lru_cache(maxsize=1024)
def _planned(
    kernel: Any,
    tile: Tile,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    names: tuple[str, ...],
    strides: tuple[tuple[int, ...], ...],
    w: int,
    r: int,
    others: int,
    head_dim: int | None,
    precision: str,
    settings: tuple[tuple[str, Any], ...],
) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]] | None:
    """→ grid, arguments behind the pointers, options of the compiler; None: nothing to do."""
    B, N, H, D = shape
    D = head_dim or D
    if not B * N * H:
        return None
    w = min(w, N)
    longest = cdiv(w, r)  # L of the first offset group in a whole segment
    tile = tile.fitting(longest, tile_width(D) * dtype.itemsize)
    blocks = cdiv(longest, tile.rows * tile.tiles)
    step = r * max(abs(stride[1]) for stride in strides)
    if step * max(tile.rows, tile.columns) >= 2**31:  # offsets within a tile are 32 bits
        raise ValueError(f"attention back end 'triton': a dilated ratio of {r} is too large for these strides")
    values = {
        f"{name}_{axis}": stride[i]
        for name, stride in zip(names, strides, strict=True)
        for i, axis in enumerate(("row", "n", "h"))
    }
    values |= dict(settings) | {
        "N": N,
        "w": w,
        "r": r,
        "H": H,
        "g": cdiv(H, r),
        "BLOCKS": blocks,
        "others": others,
        "D": D,
        "D_TILE": tile_width(D),
        "rows": tile.rows,
        "columns": tile.columns,
        "TILES": tile.tiles,
        "POLYNOMIALS": tile.polynomials,
        "PRECISION": precision,
    }
    pointers, rest = kernel.arg_names[: len(names)], kernel.arg_names[len(names) :]
    assert pointers == [name.upper() for name in names], (pointers, names)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}  # s · scale − m in one
    options |= {"maxnreg": tile.registers} if tile.registers else {}
    return (blocks * H * cdiv(N, w) * B,), tuple(values[name] for name in rest), options


# Triton's own two functions of these names take 20 µs a call: they unwrap constants of the compiler.


def cdiv(x: int, y: int) -> int:
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    """For x ≥ 1."""
    return 1 << (x - 1).bit_length()


def tile_width(D: int) -> int:
    return max(16, next_power_of_2(D))


def precision(dtype: torch.dtype) -> str:
    """Of matrix products: see `matmul_precision`."""
    return matmul_precision() if dtype == torch.float32 else "ieee"


def forward_operands(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Operands of `branch_forward`: q, k, v (B, N, H, D) unchanged, float32, bfloat16 or float16."""
    return q, k, v


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
    """Goes on with the softmax (out, lse) over the keys of one branch, in place.

    Args:
        operands: see `forward_operands`.
        out, lse: (B, N, H, D) and (B, N, H), float32; lse is −inf (and out 0) where no branch has come by.
        w, r: segment length and dilated ratio, ≥ 1.
        scale: factor on q·k, > 0.
        padded: short offset groups are filled up with zero keys (see `padding`), where r divides w or w ≥ N.
        first: what out and lse hold is not read. The branch must reach every token and head (r = 1), or the caller
            must want only what it reaches.

    Raises:
        ValueError: `scale` is not positive.
    """
    group = cdiv(min(w, out.shape[1]), r)
    q, k, v = operands
    _forward(q, k, v, out, lse, w, r, scale, FIRST=first, PADDED=padded, group=group)


def check_scale(scale: float) -> None:
    """Raises ValueError where the kernels cannot take this factor on q·k."""
    if not scale > 0:
        raise ValueError(f"attention back end 'triton' needs a scale above 0, got {scale}")


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    w: int,
    r: int,
    scale: float,
    others: int = -1,
    **settings: Any,
) -> None:
    check_scale(scale)
    tensors = {"q": q, "k": k, "v": v, "out": out, "lse": lse}
    launch(triton_kernels.forward, TILES["forward"], q, tensors, w, r, others, scale=scale * LOG2_E, **settings)


def row_sums(grad_out: Tensor, out: Tensor) -> Tensor:
    """Two (B, N, H, D) → Σ_d grad_out · out, float32 (B, N, H): what the softmax's backward subtracts."""
    B, N, H, D = out.shape
    sums = torch.empty((B, N, H), dtype=torch.float32, device=out.device)
    rows = 128
    if not sums.numel():
        return sums
    with torch.cuda.device_of(out):
        triton_kernels.row_sums[(cdiv(sums.numel(), rows),)](
            grad_out, out, sums, sums.numel(), N, H, *grad_out.stride()[:3], *out.stride()[:3],
            D=D, D_TILE=tile_width(D), rows=rows,
        )  # fmt: skip
    return sums


def backward_operands(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Operands of `branch_backward`.

    Args:
        grad_out, q, k, v: (B, N, H, D) in one dtype.
        out: (B, N, H, D), of the merged softmax (detached: the branch's own).
        lse: float32 (B, N, H), of the merged softmax.
    """
    return grad_out, q, k, v, lse * LOG2_E, row_sums(grad_out, out)


def branch_backward(
    operands: Sequence[Tensor], grads: Sequence[Tensor], w: int, r: int, scale: float, first: bool = False
) -> None:
    """Adds one branch's part to the gradients of q, k and v: three float32 (B, N, H, D); `first`: sets them."""
    grad_out, q, k, v, lse2, sums = operands
    keys_backward(grad_out, q, k, v, lse2, sums, grads[1:], w, r, scale, first)
    queries_backward(grad_out, q, k, v, lse2, sums, grads[0], w, r, scale, first)


def keys_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse2: Tensor,
    sums: Tensor,
    grads: Sequence[Tensor],
    w: int,
    r: int,
    scale: float,
    first: bool = False,
    others: int = -1,
) -> None:
    """`branch_backward` of k and v; lse2: the log-sum-exp in base 2; others: how many queries, where not as many."""
    tensors = {"q": q, "k": k, "v": v, "grad": grad_out, "lse2": lse2, "sums": sums, "dk": grads[0], "dv": grads[1]}
    settings: dict[str, Any] = {"scale": scale, "scale_log2": scale * LOG2_E, "FIRST": first}
    launch(triton_kernels.keys_backward, TILES["keys"], k, tensors, w, r, others, **settings)


def queries_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse2: Tensor,
    sums: Tensor,
    grad_q: Tensor,
    w: int,
    r: int,
    scale: float,
    first: bool = False,
    others: int = -1,
) -> None:
    """`branch_backward` of q; others: how many keys, where not as many."""
    tensors = {"q": q, "k": k, "v": v, "grad": grad_out, "lse2": lse2, "sums": sums, "dq": grad_q}
    settings: dict[str, Any] = {"scale": scale, "scale_log2": scale * LOG2_E, "FIRST": first}
    launch(triton_kernels.queries_backward, TILES["queries"], q, tensors, w, r, others, **settings)


# --- the interface of the other back ends: one call, (B, H, L, D) views, queries and keys of any two lengths ---------


def call_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """→ out (B, H, L, D), lse (B, H, L), float32."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _forward(q, k, v, out, lse, q.shape[1], 1, scale, k.shape[1], FIRST=True, PADDED=False, group=0)
    return out.transpose(1, 2), lse.transpose(1, 2)


def call_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """→ the gradients of q, k and v, float32 (B, H, L, D), from any (out, lse)."""
    grad_out, q, k, v, out, lse = (t.transpose(1, 2) for t in (grad_out, q, k, v, out, lse))
    dq, dk, dv = (torch.empty(t.shape, dtype=torch.float32, device=q.device) for t in (q, k, v))
    *_, lse2, sums = backward_operands(grad_out, q, k, v, out, lse, scale)
    keys_backward(grad_out, q, k, v, lse2, sums, (dk, dv), k.shape[1], 1, scale, True, q.shape[1])
    queries_backward(grad_out, q, k, v, lse2, sums, dq, q.shape[1], 1, scale, True, k.shape[1])
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
