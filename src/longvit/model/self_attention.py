"""Self-attention of a LongNet block: pre-norm, projection to q, k and v, dilated attention, sub-LayerNorm, projection.

B sequences, N tokens, D model width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from longvit.attention.dilated import attend
from longvit.attention.pattern import DilatedPattern
from longvit.model.norm_linear import compute_dtype, norm_linear
from longvit.model.query_scale import projection


class DilatedSelfAttention(nn.Module):
    """(B, N, D) → (B, N, D) of the block's first half, its pre-norm included; `norm` is None without `sub_norm`."""

    def __init__(self, dim: int, num_heads: int, eps: float, *, sub_norm: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_in = nn.LayerNorm(dim, eps=eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps) if sub_norm else None
        self.proj = nn.Linear(dim, dim)

    def attend(self, x: Tensor, pattern: DilatedPattern, lengths: Sequence[int] | None = None) -> Tensor:
        """(B, N, D) → (B, N, H, D / H): attention, before the output projection."""
        weights = projection(self.qkv, self.num_heads, compute_dtype(x))
        qkv = norm_linear(x, self.norm_in, weights).unflatten(-1, (3, self.num_heads, -1))
        return attend([qkv], pattern, lengths=lengths, scale=weights.scale)

    def forward(self, x: Tensor, pattern: DilatedPattern, lengths: Sequence[int] | None = None) -> Tensor:
        return norm_linear(self.attend(x, pattern, lengths).flatten(-2), self.norm, self.proj)
