"""The convolutional stem and a block without sub-LayerNorm, float64, from their equations: pixel by pixel.

Nothing here is shared with the package, and no convolution is called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

MEAN, STD = (torch.tensor(v, dtype=torch.float64) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def standardised(x: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + eps).sqrt()


def halved(x: Tensor, kernel: Tensor) -> Tensor:
    """(C, s, s) → (C', s / 2, s / 2): kernel (C', C, 3, 3), centred on every second pixel, zeros around."""
    bordered, half = pad(x, (1, 1, 1, 1)), x.shape[1] // 2
    rows = []
    for i in range(half):
        pixels = [(kernel * bordered[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum((1, 2, 3)) for j in range(half)]
        rows.append(torch.stack(pixels, 1))
    return torch.stack(rows, 1)


def token(patch: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """Raw pixels (3, P, P), and the stem's parameters → (D,)."""
    x = (patch.double() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    layer = 0
    while x.shape[1] > 2:
        x = standardised(halved(x, w[f"convs.{layer}.weight"]), (0, 1, 2))
        scale, shift = (w[f"norms.{layer}.{name}"].view(-1, 1, 1) for name in ("weight", "bias"))
        x, layer = gelu(x * scale + shift), layer + 1
    return (w["proj.weight"] * x).sum((1, 2, 3)) + w["proj.bias"]


def tokens(image: Tensor, patch_px: int, w: Mapping[str, Tensor]) -> Tensor:
    """Raw pixels (3, H, W) → (h · w, D), row-major."""
    _, height, width = image.shape
    places = [(y, x) for y in range(0, height, patch_px) for x in range(0, width, patch_px)]
    return torch.stack([token(image[:, y : y + patch_px, x : x + patch_px], w) for y, x in places])


def ffn(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """Second half of a plain pre-norm block, (N, D) → (N, D), the residual sum included."""
    normed = standardised(x, (-1,)) * w["norm_in.weight"] + w["norm_in.bias"]
    hidden = gelu(normed @ w["fc1.weight"].T + w["fc1.bias"])
    return x + hidden @ w["fc2.weight"].T + w["fc2.bias"]


def queries_keys_values(x: Tensor, w: Mapping[str, Tensor]) -> list[Tensor]:
    """(N, D) → q, k, v (N, D) of the first half."""
    normed = standardised(x, (-1,)) * w["norm_in.weight"] + w["norm_in.bias"]
    return list((normed @ w["qkv.weight"].T + w["qkv.bias"]).chunk(3, -1))


def project(x: Tensor, attended: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """x + proj(attended): no norm in between."""
    return x + attended @ w["proj.weight"].T + w["proj.bias"]
