"""Attention pooling of CONCH and CONCH v1.5: a learned query over all tokens, then LayerNorm.

The module names are those of the published files. B tiles, N tokens, C width of the tokens, D width of the vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HEADS = 8


class PooledByMultihead(nn.Module):
    """Pooling of CONCH: torch's multi-head attention."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.attn = nn.MultiheadAttention(dim, HEADS, kdim=width, vdim=width, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) → (B, D)."""
        keys = self.ln_k(tokens)
        queries = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.attn(queries, keys, keys, need_weights=False)[0][:, 0]


class PooledByProjections(nn.Module):
    """Pooling of CONCH v1.5: projections without bias, keys and values in one matrix."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) → (B, D)."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), -1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        heads = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value)]
        pooled = nn.functional.scaled_dot_product_attention(*heads)
        return self.to_out(pooled.transpose(1, 2).flatten(2))[:, 0]
