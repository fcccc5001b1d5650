"""Short sequences: all branches as one dense attention.

The mixture of the branches is one softmax of each query over the multiset union of its branches' keys (see `dilated`).
A key that c branches share counts c times. So the result equals one dense attention with log c added to its logits
(−inf where no branch has the pair). One call of N² pairs per head replaces about twenty, whose launches and merges
dominate for a short sequence: crops of DINO, canvases of a few hundred pixels.

B sequences, N tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

aten = torch.ops.aten
# Against the calls of the branches (`benchmarks/short.py`, AMD EPYC with AVX2, 2026-11): 3 × faster at 9 to 64 tokens,
# 2 × at 100, 1.5 × at 196 with 8 heads, equal with 16; slower from 256 on. The CPU kernel keeps no scores. Elsewhere
# the scores of a layer are written out, N per token and head; not measured on a card.
_CPU_TOKENS, _TOKENS = 224, 64


def is_short(n: int, branches: Sequence[tuple[int, int]], device: torch.device) -> bool:
    """True for sequences of few tokens `n` with a branch of ratio 1, so that every query has a key."""
    limit = _CPU_TOKENS if device.type == "cpu" else _TOKENS
    return 0 < n <= limit and any(r == 1 for _, r in branches)


def forward(q: Tensor, k: Tensor, v: Tensor, branches: tuple[tuple[int, int], ...], scale: float) -> tuple[Tensor, ...]:
    """q, k, v (B, N, H, D) → out (B, N, H, D), lse (B, N, H), contiguous, float32 or float64."""
    q, k, v = _wide(q, k, v)
    bias = _log_counts(q.shape[2], q.shape[1], branches, q.device, q.dtype)
    if _has_fused_kernel(q):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    else:
        s = _scores(q, k, bias, scale)
        lse = s.logsumexp(-1)
        out = s.sub_(lse.unsqueeze(-1)).exp_() @ v
    return out.transpose(1, 2).contiguous(), lse.transpose(1, 2).contiguous()


def backward(tensors: Sequence[Tensor], branches: tuple[tuple[int, int], ...], scale: float) -> tuple[Tensor, ...]:
    """grad_out, q, k, v, out (B, N, H, D), lse (B, N, H) → the gradients of q, k and v, float32 or float64."""
    *inputs, lse = tensors
    grad_out, q, k, v, out = _wide(*inputs)
    lse, bias = lse.transpose(1, 2), _log_counts(q.shape[2], q.shape[1], branches, q.device, q.dtype)
    if _has_fused_kernel(q):
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale
        )
    else:
        p = _scores(q, k, bias, scale).sub_(lse.unsqueeze(-1)).exp_()
        grad_v = p.transpose(-1, -2) @ grad_out
        delta = (grad_out * out).sum(-1, keepdim=True)
        ds = p.mul_((grad_out @ v.transpose(-1, -2)).sub_(delta)).mul_(scale)
        grads = ds @ k, ds.transpose(-1, -2) @ q, grad_v
    return tuple(g.transpose(1, 2) for g in grads)


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """(B, N, H, D) → (B, H, N, D), float32 at least."""
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return tuple(t.transpose(1, 2).to(wide) for t in tensors)


def _has_fused_kernel(q: Tensor) -> bool:
    """True for a fused kernel that takes a bias in forward and backward, and any (out, lse)."""
    return q.device.type == "cpu"


def _scores(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    return torch.matmul(q * scale, k.transpose(-1, -2)).add_(bias)


@lru_cache(maxsize=16)
def _log_counts(
    n: int, heads: int, branches: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(1, H, N, N): log of the number of branches with query and key in one segment and offset group."""
    i, h = torch.arange(n, device=device), torch.arange(heads, device=device)
    counts = torch.zeros(heads, n, n, device=device, dtype=dtype)
    for w, r in branches:
        segment, position = i // min(w, n), i % min(w, n)
        takes_part = position % r == (h // -(-heads // r))[:, None]  # (H, N)
        same = segment[:, None] == segment
        counts += same & takes_part[:, :, None] & takes_part[:, None]
    return counts.log()[None]
