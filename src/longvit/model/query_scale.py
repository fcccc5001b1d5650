"""Projection to queries, keys and values, with the scale of attention in its weights for kernels that fold it.

Kernels on padded operands (`attention.padded_kernels`) save a product per pair of query and key if q·k is the logit in
base 2 already. The float32 weights are multiplied before their cast, so queries are still rounded once.

D width, H heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longvit.attention.backends import pick


class Projection(NamedTuple):
    """Weight (3·D, D) and bias (3·D), float32 or wider, and their factor on q·k."""

    weight: Tensor
    bias: Tensor
    scale: float


def projection(qkv: nn.Linear, heads: int, dtype: torch.dtype) -> Projection:
    """`qkv` unchanged, with the scale (D / H)^-0.5; or scaled, with the scale ln 2. `dtype`: of q, k and v."""
    dim = qkv.out_features // 3
    scale = (dim // heads) ** -0.5
    if not pick(qkv.weight.device, dtype, dim // heads).backend.folds_scale:
        return Projection(qkv.weight, qkv.bias, scale)
    factor = torch.ones(3 * dim, dtype=qkv.weight.dtype, device=qkv.weight.device)
    factor[:dim] = scale / math.log(2)
    return Projection(qkv.weight * factor[:, None], qkv.bias * factor, math.log(2))
