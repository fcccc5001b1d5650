"""Pixels → tokens: linear patch embedding straight from uint8, plus learned positions interpolated on the fly.

Seed paper, section 2.1: the image is cut into patches of 32 × 32, each embedded linearly, in row-major order; learned
positions live on the pretraining grid (32 × 32 patches of a 1,024² image) and are interpolated bicubically to another
grid with the scale factor (target + 0.1) / source, as in DINO.

What differs from the authors' code:
- uint8 images stay uint8. ImageNet normalisation is folded into the projection, y = W'(u − 128) + b' with
  W' = W / (255 σ_c); u − 128 is exact in bfloat16 too. Only one chunk of patches is ever floating point, in backward
  too (the image itself is what is kept).
- the interpolation is a product with two small matrices, so positions for a strip of the image are made for that strip
  alone. The published code makes a parameter of 400 M numbers of them at 32,768².

B images, H × W pixels, P patch side, h × w patches, G grid side, D width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvit.model.norm_linear import compute_dtype, linear

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CHUNK_PATCHES = 2048
_MIDDLE = 128  # subtracted from uint8 pixels: centred numbers lose nothing in bfloat16


class PatchGrid(NamedTuple):
    """Patches along the height and the width of an image."""

    height: int
    width: int


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) → (B, h·w, D): projection plus position.

    uint8 pixels are raw (0 … 255); floating-point images must be ImageNet-normalised already, as the authors' code
    takes them.
    """

    def __init__(self, dim: int, patch_px: int, grid: PatchGrid) -> None:
        super().__init__()
        self.patch_px, self.grid = patch_px, grid
        self.proj = nn.Conv2d(3, dim, patch_px, patch_px)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid.height * grid.width, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-0.02, b=0.02)

    def patches(self, images: Tensor) -> PatchGrid:
        """The patch grid of a batch of images; raises ValueError where the patch does not divide it."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, height, width), got {tuple(images.shape)}")
        height, width, p = *images.shape[2:], self.patch_px
        if height % p or width % p or not height or not width:
            nearest = [max(p, round(n / p) * p) for n in (height, width)]
            raise ValueError(
                f"an image of {height} × {width} px is not made of {p} × {p} px patches: resize or pad it, for example "
                f"to {nearest[0]} × {nearest[1]}, or take a canvas (longvit.open_slide(path).canvas({nearest[0]}))"
            )
        return PatchGrid(height // p, width // p)

    def forward(self, images: Tensor) -> Tensor:
        target = self.patches(images)
        dtype = compute_dtype(self.proj.weight)
        with torch.autocast(images.device.type, enabled=False):
            return self._embedded(images, target, dtype)

    def _embedded(self, images: Tensor, target: PatchGrid, dtype: torch.dtype) -> Tensor:
        assert self.proj.bias is not None
        weight, bias, shift = self.proj.weight, self.proj.bias, 0
        if images.dtype == torch.uint8:
            weight, bias, shift = *_folded(weight, bias), _MIDDLE
        rows, columns = self._positions(target)
        if images.requires_grad:  # saliency: the plain form gives the gradient of the pixels too
            tokens = F.conv2d(images.to(dtype), weight.to(dtype), bias.to(dtype), self.patch_px)
            positions = columns if rows is None else rows @ columns
            return tokens.flatten(2).transpose(1, 2) + positions.view(1, -1, tokens.shape[1])
        return _Embed.apply(images, weight.flatten(1), bias, rows, columns, self.patch_px, shift, dtype)

    def _positions(self, target: PatchGrid) -> tuple[Tensor | None, Tensor]:
        """(A_h (h, G_h), C (G_h, w·D)): the positions are A_h @ C; A_h None: C is (h, w·D) already."""
        grid = self.pos_embed.view(self.grid.height, self.grid.width, -1)
        if target == self.grid and (target.height == target.width or self.grid.height != self.grid.width):
            return None, grid.flatten(1)
        to_columns = interpolation(target.width, self.grid.width).to(grid)
        to_rows = interpolation(target.height, self.grid.height).to(grid)
        return to_rows, torch.einsum("gkd,xk->gxd", grid, to_columns).flatten(1)


def _folded(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """W', b' with W'(u − 128) + b' = W((u/255 − mean)/std) + b for raw uint8 u; differentiable in W and b."""
    mean, std = (weight.new_tensor(x) for x in (IMAGENET_MEAN, IMAGENET_STD))
    weight = weight / (255 * std).view(1, 3, 1, 1)
    return weight, bias + (weight.sum((2, 3)) * (_MIDDLE - 255 * mean)).sum(1)


@lru_cache(maxsize=64)
def interpolation(target: int, source: int) -> Tensor:
    """(target, source) float64: bicubic weights along one axis, scale (target + 0.1) / source as in DINO.

    Read off PyTorch's own `interpolate` (a = −0.75, border repeated) with unit vectors.
    """
    with torch.inference_mode(False), torch.no_grad():  # the cached matrix must serve training too
        eye = torch.eye(source, dtype=torch.float64).view(1, source, source, 1)
        result = F.interpolate(eye, scale_factor=((target + 0.1) / source, 1.0), mode="bicubic")
        assert result.shape[2] == target, (result.shape, target)
        return result[0, :, :, 0].t().contiguous()


class _Embed(torch.autograd.Function):
    """Projection and positions, a few rows of patches at a time; keeps the images as they came."""

    @staticmethod
    def forward(ctx: Any, images, weight, bias, rows, columns, patch_px: int, shift: int, dtype):
        ctx.save_for_backward(images, rows)
        ctx.settings = patch_px, shift, dtype, weight.shape, weight.dtype, columns.shape, columns.dtype
        b, h, w, dim = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px, len(weight)
        weight, bias = weight.to(dtype), bias.to(dtype)
        y = weight.new_empty(b, h, w * dim, dtype=columns.dtype)
        for r in _row_chunks(b, h, w):
            x = _patches(images, r, patch_px, shift, dtype)  # (b·r·w, 3·P·P)
            tokens = linear(x, weight, bias).view(b, -1, w * dim)
            torch.add(tokens, columns[r] if rows is None else rows[r] @ columns, out=y[:, r])
        return y.view(b, h * w, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        images, rows = ctx.saved_tensors
        patch_px, shift, dtype, shape, weight_dtype, columns_shape, wide = ctx.settings
        b, h, w, dim = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px, shape[0]
        grad = grad.reshape(b, h, w * dim)
        grad_weight = grad.new_zeros(shape, dtype=torch.promote_types(weight_dtype, torch.float32))
        grad_bias = torch.zeros_like(grad_weight[:, 0])
        grad_columns = grad.new_zeros(columns_shape, dtype=wide)
        for r in _row_chunks(b, h, w):
            part = grad[:, r]
            over_batch = part.sum(0).to(wide)
            if rows is None:
                grad_columns[r] = over_batch
            else:
                grad_columns.addmm_(rows[r].t(), over_batch)
            g = part.reshape(-1, dim).to(dtype)
            grad_weight += g.t() @ _patches(images, r, patch_px, shift, dtype)
            grad_bias += g.sum(0)
        return None, grad_weight.to(weight_dtype), grad_bias.to(weight_dtype), None, grad_columns, None, None, None


def _row_chunks(batch: int, height: int, width: int) -> list[slice]:
    step = max(1, _CHUNK_PATCHES // (batch * width))
    return [slice(i, min(i + step, height)) for i in range(0, height, step)]


def _patches(images: Tensor, rows: slice, patch_px: int, shift: int, dtype: torch.dtype) -> Tensor:
    """Rows of patches → (B · rows · w, 3 · P · P) in `dtype`, minus `shift`."""
    strip = images[:, :, rows.start * patch_px : rows.stop * patch_px]
    x = strip.unflatten(3, (-1, patch_px)).unflatten(2, (-1, patch_px))  # B 3 r P w P
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * patch_px * patch_px).to(dtype)
    return x.sub_(shift) if shift else x
