"""Patch embedding: linear projection of uint8 pixels, plus learned positions interpolated on the fly.

LongViT paper, section 2.1: the image is cut into patches of 32 × 32, each embedded linearly, in row-major order.
Learned positions are added (`positions`).

Differences from the authors' code:
- uint8 images stay uint8. ImageNet normalisation is folded into the projection, y = W'(u − 128) + b' with
  W' = W / (255 σ_c); u − 128 is exact in bfloat16 too. Only one chunk of patches is ever floating point, in backward
  too (which needs the uint8 image alone).
- An image may arrive as a stream of strips (`from_strips`), or be in host memory while the parameters are on a GPU.
  Then a few rows of patches are moved at a time, in forward and in backward.

B images, H × W pixels, P patch side, h × w patches, G grid side of the positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from longvit.model import fused_norms
from longvit.model.norm_linear import compute_dtype, linear
from longvit.model.positions import PatchGrid, Positions, positions_on

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CPU_CHUNK_PATCHES = 2048
GPU_CHUNK_PATCHES = 16_384  # each chunk reads all columns of positions, 50 MB at 32,768² px
_MIDDLE = 128  # subtracted from uint8 pixels: centred numbers lose nothing in bfloat16


Projector = Callable[[Tensor, Positions, Tensor], None]
"""Writes the tokens of images (B, 3, H, W), their positions added, to the third argument (B, h, w·D)."""


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) → (B, h·w, D): projection plus position.

    uint8 pixels are raw (0 … 255); floating-point images must be ImageNet-normalised already, as for the authors' code.
    """

    def __init__(self, dim: int, patch_px: int, grid: PatchGrid) -> None:
        super().__init__()
        self.patch_px, self.grid = patch_px, grid
        self._make_projection(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid.height * grid.width, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-0.02, b=0.02)

    def _make_projection(self, dim: int) -> None:
        self.proj = nn.Conv2d(3, dim, self.patch_px, self.patch_px)

    def patches(self, images: Tensor) -> PatchGrid:
        """The patch grid of a batch of images; raises ValueError where the patch does not divide it."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, height, width), got {tuple(images.shape)}")
        return self.patches_in(*images.shape[2:])

    def patches_in(self, height: int, width: int) -> PatchGrid:
        """The patch grid of an image of height × width px; raises ValueError where the patch does not divide it."""
        p = self.patch_px
        if height % p or width % p or not height or not width:
            nearest = [max(p, round(n / p) * p) for n in (height, width)]
            raise ValueError(
                f"an image of {height} × {width} px is not made of {p} × {p} px patches: resize or pad it, for example "
                f"to {nearest[0]} × {nearest[1]}, or take a canvas (longvit.open_slide(path).canvas({nearest[0]}))"
            )
        return PatchGrid(height // p, width // p)

    def forward(self, images: Tensor, *, first: int = 0, rows: int | None = None) -> Tensor:
        """(B, 3, H, W) → (B, h·w, D) on the device of the parameters; the images may be on another device.

        `first`, `rows`: the images are strips that begin at row `first` of the `rows` rows of patches of an image.
        """
        target, weight = self.patches(images), self.pos_embed
        dtype = compute_dtype(weight)  # before autocast is off
        with torch.autocast(weight.device.type, enabled=False):
            positions = positions_on(self.pos_embed, self.grid, PatchGrid(rows or target.height, target.width))
            positions = positions.band(first, first + target.height)
            if images.requires_grad:  # saliency: the plain form gives the gradient of the (float) pixels too
                tokens = self._plain(images.to(weight.device, dtype), dtype)
                return tokens + positions.in_rows(slice(None)).view(1, -1, tokens.shape[2])
            return self._embed(images, positions, dtype)

    def _plain(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Float images → tokens (B, h·w, D) without positions, by plain autograd."""
        weight, bias = self.proj.weight.to(dtype), self._bias.to(dtype)
        return F.conv2d(images, weight, bias, self.patch_px).flatten(2).transpose(1, 2)

    def _embed(self, images: Tensor, positions: Positions, dtype: torch.dtype) -> Tensor:
        """Images → tokens (B, h·w, D) with positions, with memory for a chunk of patches."""
        weight, bias, shift = self._linear(images.dtype)
        embedded: Tensor = _Embed.apply(images, weight, bias, *positions, self.patch_px, shift, dtype)
        return embedded

    def strip_px(self, width: int) -> int:
        """Height in px of strips for which `from_strips` equals `forward`, for an image `width` px wide."""
        return self.patch_px * _rows_at_once(1, width // self.patch_px, self.pos_embed.device)

    @torch.no_grad()
    def from_strips(
        self, strips: Iterable[NDArray[np.uint8]], image: PatchGrid, *, first: int = 0, end: int | None = None
    ) -> Tensor:
        """Tokens (1, (end − first)·w, D) of rows of patches [first, end) of an image that arrives in strips.

        `strips`: uint8 (height, W, 3), top to bottom, whole rows of patches, the first the highest. Each is projected
        on arrival, so no more than a strip is held. With strips of `strip_px` rows the result is that of `forward` to
        the last bit (the products have the same sizes). Raises ValueError for too few or too many rows.
        """
        weight, end = self.pos_embed, image.height if end is None else end
        dtype, dim = compute_dtype(weight), weight.shape[-1]
        with torch.autocast(weight.device.type, enabled=False):
            positions, project = positions_on(self.pos_embed, self.grid, image), self._projector(dtype)
            tokens = weight.new_empty(1, end - first, image.width * dim)
            at = first
            for strip in _on_device(strips, weight.device):
                height, width = self.patches(strip)
                if width != image.width or at + height > end:
                    raise ValueError(f"strips of {at + height} × {width} patches for {end} × {image.width}")
                project(strip, positions.band(at, at + height), tokens[:, at - first : at - first + height])
                at += height
        if at != end:
            raise ValueError(f"the strips end at row {at} of patches, not at {end}")
        return tokens.view(1, -1, dim)

    def _projector(self, dtype: torch.dtype) -> Projector:
        """The projection of uint8 images in `dtype`, without autograd."""
        weight, bias, shift = self._linear(torch.uint8)
        return partial(_project, weight.to(dtype), bias.to(dtype), self.patch_px, shift)

    def _linear(self, pixels: torch.dtype) -> tuple[Tensor, Tensor, int]:
        """weight (D, 3·P·P), bias and shift with tokens = weight (patches − shift) + bias."""
        weight, bias, shift = self.proj.weight, self._bias, 0
        if pixels == torch.uint8:
            weight, bias, shift = *_folded(weight, bias), _MIDDLE
        return weight.flatten(1), bias, shift

    @property
    def _bias(self) -> Tensor:
        assert self.proj.bias is not None
        return self.proj.bias


def _folded(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """W', b' with W'(u − 128) + b' = W((u/255 − mean)/std) + b for raw uint8 u; differentiable in W and b."""
    mean, std = (weight.new_tensor(x) for x in (IMAGENET_MEAN, IMAGENET_STD))
    weight = weight / (255 * std).view(1, 3, 1, 1)
    return weight, bias + (weight.sum((2, 3)) * (_MIDDLE - 255 * mean)).sum(1)


class _Embed(torch.autograd.Function):
    """Projection and positions, a few rows of patches at a time; keeps the unchanged images for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: Tensor,
        columns: Tensor,
        patch_px: int,
        shift: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(images, rows)
        ctx.settings = patch_px, shift, dtype, weight.shape, weight.dtype, columns.shape, columns.dtype
        b, h, w, dim = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px, len(weight)
        y = weight.new_empty(b, h, w * dim, dtype=columns.dtype)
        _project(weight.to(dtype), bias.to(dtype), patch_px, shift, images, Positions(rows, columns), y)
        return y.view(b, h * w, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, rows = ctx.saved_tensors
        patch_px, shift, dtype, shape, weight_dtype, columns_shape, wide = ctx.settings
        b, h, w, dim = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px, shape[0]
        grad = grad.reshape(b, h, w * dim)
        grad_weight = grad.new_zeros(shape, dtype=torch.promote_types(weight_dtype, torch.float32))
        grad_bias = torch.zeros_like(grad_weight[:, 0])
        grad_columns = grad.new_zeros(columns_shape, dtype=wide)
        positions = Positions(rows, grad_columns)
        for r in row_chunks(b, h, w, grad.device):
            part = grad[:, r]
            positions.add_gradient(grad_columns, r, part.sum(0).to(wide))
            g = part.reshape(-1, dim).to(dtype)
            grad_weight += g.t() @ _patches(images, r, patch_px, shift, g)
            grad_bias += g.sum(0)
        return None, grad_weight.to(weight_dtype), grad_bias.to(weight_dtype), None, grad_columns, None, None, None


def _project(
    weight: Tensor, bias: Tensor, patch_px: int, shift: int, images: Tensor, positions: Positions, out: Tensor
) -> None:
    """Tokens and positions of images into `out` (B, h, w·D), a few rows of patches at a time; without autograd."""
    b, h, w = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px
    for r in row_chunks(b, h, w, weight.device):
        x = _patches(images, r, patch_px, shift, weight)  # (b·r·w, 3·P·P)
        tokens = linear(x, weight, bias).view(b, -1, w * len(weight))
        torch.add(tokens, positions.in_rows(r), out=out[:, r])


def _rows_at_once(batch: int, width: int, device: torch.device) -> int:
    return max(1, (GPU_CHUNK_PATCHES if device.type == "cuda" else CPU_CHUNK_PATCHES) // (batch * width))


def row_chunks(batch: int, height: int, width: int, device: torch.device) -> list[slice]:
    """Slices of the rows of patches that are embedded at a time."""
    step = _rows_at_once(batch, width, device)
    return [slice(i, min(i + step, height)) for i in range(0, height, step)]


def _patches(images: Tensor, rows: slice, patch_px: int, shift: int, like: Tensor) -> Tensor:
    """Rows of patches → (B · rows · w, 3 · P · P), minus `shift`, on the device and in the dtype of `like`."""
    strip = moved_rows(images, rows, patch_px, like.device)
    if strip.dtype == torch.uint8 and fused_norms.uses(like, like.dtype, patch_px):
        return fused_norms.patches(strip, patch_px, shift, like.dtype)
    x = strip.unflatten(3, (-1, patch_px)).unflatten(2, (-1, patch_px))  # B 3 r P w P
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * patch_px * patch_px).to(like.dtype)
    return x.sub_(shift) if shift else x


def moved_rows(images: Tensor, rows: slice, patch_px: int, device: torch.device) -> Tensor:
    """Rows of patches of images (B, 3, H, W), as (B, 3, rows · P, W) on `device`."""
    return _moved(images[:, :, rows.start * patch_px : rows.stop * patch_px], device)


def _moved(strip: Tensor, device: torch.device) -> Tensor:
    """Rows of images on `device`.

    From pinned memory the copy is asynchronous, plane by plane: PyTorch would first gather a strip with gaps in memory
    that is not pinned.
    """
    if strip.device == device:
        return strip
    if not strip[0, 0].is_contiguous():  # interleaved colours: the rows of one image have no gaps
        return strip.to(device, non_blocking=True)
    moved = torch.empty(strip.shape, dtype=strip.dtype, device=device)
    for target, image in zip(moved, strip, strict=True):
        for plane, pixels in zip(target, image, strict=True):
            plane.copy_(pixels, non_blocking=True)
    return moved


def _on_device(strips: Iterable[NDArray[np.uint8]], device: torch.device) -> Iterator[Tensor]:
    """uint8 (height, W, 3) → (1, 3, height, W) on `device`.

    To a GPU through two alternating pinned buffers: the next strip is decoded while this one is copied and projected.
    """
    buffers: list[Tensor] = []
    copied: list[torch.cuda.Event] = []
    for index, strip in enumerate(strips):
        pixels = torch.from_numpy(strip)
        if device.type == "cuda":
            if index < 2:
                buffers.append(torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True))
                copied.append(torch.cuda.Event())
            else:
                copied[index % 2].synchronize()
            pixels = buffers[index % 2][: len(pixels)].copy_(pixels).to(device, non_blocking=True)
            copied[index % 2].record(torch.cuda.current_stream(device))
        yield pixels.to(device).permute(2, 0, 1).unsqueeze(0)
