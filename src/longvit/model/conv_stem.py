"""Convolutional stem: each patch is a separate small image, and 3 × 3 convolutions of stride 2 make its token.

A linear projection of 32 × 32 pixels learns a texture only from very many images. A stem of convolutions shares its
small filters over all places, and learns it from few (Xiao et al. 2021, arXiv 2106.14881). For a patch of P = 2^n px:

    x = (u / 255 − mean) / std                                    ImageNet, per colour
    x = GELU(GroupNorm(conv(x)))                                  n − 1 times: 3 × 3, stride 2, zeros around the patch
    token = conv(x) + position                                    2 × 2 px → 1

The convolutions have D/2^(n−2), …, D/2, D channels (P = 32: D/8, D/4, D/2, D). GroupNorm has one group: its statistics
are those of a patch. Differences from the published stem:
- Nothing crosses the border of a patch. So a token depends on the pixels of its patch alone, as with the projection,
  and strips, ranks, crops and streams need no neighbours.
- GroupNorm instead of BatchNorm, since a batch is one slide; GELU instead of ReLU.

Memory is that of `embedding`: uint8 images stay uint8, and only one chunk of patches is ever floating point. Backward
runs the convolutions of a chunk again.

B images, P patch side, h × w patches, D width, n patches of a chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longvit.model.embedding import IMAGENET_MEAN, IMAGENET_STD, PatchEmbedding, Projector, moved_rows, row_chunks
from longvit.model.positions import Positions

CPU_CHUNK = 256
GPU_CHUNK = 4096
"""Patches that are convolved at a time: for LongViT-tiny 138 kB each in float32, three tensors of every layer."""
EPS = 1e-5


def check_patch(patch_px: int) -> None:
    """Raises ValueError for a patch that convolutions of stride 2 do not halve to one pixel."""
    if patch_px < 4 or patch_px & (patch_px - 1):
        raise ValueError(f"stem 'conv' halves a patch to one pixel: patch_px {patch_px} is no power of two from 4 on")


def channels(dim: int, patch_px: int) -> list[int]:
    """Channels after each of the 3 × 3 convolutions."""
    layers = patch_px.bit_length() - 2
    return [max(1, dim >> (layers - 1 - i)) for i in range(layers)]


class ConvStem(nn.Module):
    """Parameters of the stem; `convolved` computes with them, in the compute dtype."""

    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        widths = [3, *channels(dim, patch_px)]
        pairs = list(itertools.pairwise(widths))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1, bias=False) for i, o in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(1, o, eps=EPS) for _, o in pairs)
        self.proj = nn.Conv2d(dim, dim, 2)


def convolved(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Normalised patches (n, 3, P, P) → tokens (n, D); `parameters` in the order of `ConvStem.parameters()`."""
    *layers, proj_w, proj_b = parameters
    depth = len(layers) // 3
    convs, norms = layers[:depth], layers[depth:]
    for i, w in enumerate(convs):
        x = F.gelu(F.group_norm(F.conv2d(x, w, stride=2, padding=1), 1, norms[2 * i], norms[2 * i + 1], EPS))
    return F.conv2d(x, proj_w, proj_b).flatten(1)


class ConvPatchEmbedding(PatchEmbedding):
    """(B, 3, H, W) → (B, h·w, D): a convolutional stem per patch, plus position."""

    def _make_projection(self, dim: int) -> None:
        check_patch(self.patch_px)
        self.stem = ConvStem(dim, self.patch_px)

    def _plain(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        patches = _cut(images, self.patch_px)
        parameters = [p.to(dtype) for p in self.stem.parameters()]
        return convolved(patches, parameters).view(len(images), -1, self.pos_embed.shape[2])

    def _embed(self, images: Tensor, positions: Positions, dtype: torch.dtype) -> Tensor:
        embedded: Tensor = _Embed.apply(images, *positions, self.patch_px, dtype, *self.stem.parameters())
        return embedded

    def _projector(self, dtype: torch.dtype) -> Projector:
        return partial(_project, [p.to(dtype) for p in self.stem.parameters()], self.patch_px)


class _Embed(torch.autograd.Function):
    """Stem and positions, a chunk of patches at a time; keeps the unchanged images for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        rows: Tensor | None,
        columns: Tensor,
        patch_px: int,
        dtype: torch.dtype,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(images, rows, *parameters)
        ctx.settings = patch_px, dtype, columns.shape, columns.dtype
        b, h, w, dim = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px, len(parameters[-1])
        y = columns.new_empty(b, h, w * dim)
        _project([p.to(dtype) for p in parameters], patch_px, images, Positions(rows, columns), y)
        return y.view(b, h * w, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, rows, *parameters = ctx.saved_tensors
        patch_px, dtype, columns_shape, wide = ctx.settings
        b, h, w, dim = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px, len(parameters[-1])
        grad = grad.reshape(b, h, w * dim)
        grad_columns = grad.new_zeros(columns_shape, dtype=wide)
        positions = Positions(rows, grad_columns)
        leaves = [p.to(dtype, copy=True).requires_grad_() for p in parameters]
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        for r in row_chunks(b, h, w, grad.device):
            part = grad[:, r]
            positions.add_gradient(grad_columns, r, part.sum(0).to(wide))
            flat = part.reshape(-1, dim)
            for c, patches in _chunks(images, r, patch_px, leaves[0]):
                with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
                    tokens = convolved(patches, leaves)
                for total, g in zip(sums, torch.autograd.grad(tokens, leaves, flat[c].to(dtype)), strict=True):
                    total += g
        return None, None, grad_columns, None, None, *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))


def _project(parameters: Sequence[Tensor], patch_px: int, images: Tensor, positions: Positions, out: Tensor) -> None:
    """Tokens and positions of images into `out` (B, h, w·D); without autograd. `parameters` in the compute dtype."""
    b, h, w, dim = len(images), images.shape[2] // patch_px, images.shape[3] // patch_px, len(parameters[-1])
    for r in row_chunks(b, h, w, parameters[0].device):
        at = positions.in_rows(r)
        tokens = torch.cat([convolved(x, parameters) for _, x in _chunks(images, r, patch_px, parameters[0])])
        torch.add(tokens.view(b, -1, w * dim), at, out=out[:, r])


def _chunks(images: Tensor, rows: slice, patch_px: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the (B · rows · w) patches of these rows, and their patches normalised, (n, 3, P, P) like `like`."""
    patches = _cut(moved_rows(images, rows, patch_px, like.device), patch_px)
    step = GPU_CHUNK if like.device.type == "cuda" else CPU_CHUNK
    for i in range(0, len(patches), step):
        c = slice(i, min(i + step, len(patches)))
        yield c, _normalised(patches[c], like.dtype)


def _cut(images: Tensor, patch_px: int) -> Tensor:
    """(B, 3, H, W) → patches (B · h · w, 3, P, P), row-major, each pixel's colours adjacent in memory."""
    x = images.unflatten(3, (-1, patch_px)).unflatten(2, (-1, patch_px))  # B 3 h P w P
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, patch_px, patch_px, 3).contiguous().permute(0, 3, 1, 2)


def _normalised(patches: Tensor, dtype: torch.dtype) -> Tensor:
    """Raw uint8 pixels are normalised as ImageNet's, in float32 or wider; floating-point ones are so already."""
    if patches.dtype != torch.uint8:
        return patches.to(dtype)
    x = patches.to(torch.promote_types(dtype, torch.float32))
    mean, std = (255 * x.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return x.sub_(mean).div_(std).to(dtype)
