"""Variants of `trainability.py`: LongViT-tiny with and without parts, and plain vision transformers as references.

The references are written here without a line of the package's models: a pre-norm transformer (Dosovitskiy et al. 2021)
of the same depth, width, heads and hidden width. Its stem has four convolutions of 3 × 3 and stride 2, each with norm
and GELU, and one of 2 × 2 (Xiao et al. 2021, "Early convolutions help transformers see better"). Tokens are normed,
then pooled. `plain_stem` convolves the image. `plain_patch_stem` convolves each patch of 32 px by itself, as the stem
of the package does: the difference of the two is what pixels beyond the border of a patch contribute.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvit.model.longvit import SIZES, create_model
from trainability_tasks import PATCH_PX

TINY = "longvit_tiny_patch32"
REFERENCE = "plain_stem"
NAMED = "longvit_tiny_stem_patch32"
_NO_SUB_NORM = {"stem": "conv", "sub_norm": False}


class PlainBlock(nn.Module):
    """Pre-norm attention and FFN, each with a residual connection."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def conv_stem(dim: int) -> nn.Sequential:
    """Five convolutions: (N, 3, S, S) -> (N, D, S / 32, S / 32)."""
    widths = (3, dim // 8, dim // 4, dim // 2, dim)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(dim, dim, 2, 2))


class PlainViT(nn.Module):
    """Plain vision transformer with a convolutional stem, of the size of LongViT-tiny."""

    def __init__(self, image_px: int, by_patch: bool = False) -> None:
        super().__init__()
        c = SIZES[TINY]
        self.by_patch, self.stem = by_patch, conv_stem(c.embed_dim)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image_px // PATCH_PX) ** 2, c.embed_dim))
        self.blocks = nn.Sequential(*[PlainBlock(c.embed_dim, c.num_heads, c.ffn_dim) for _ in range(c.depth)])
        self.norm, self.head = nn.LayerNorm(c.embed_dim), nn.Linear(c.embed_dim, 2)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def forward(self, images: Tensor) -> Tensor:
        if self.by_patch:
            patches = images.unfold(2, PATCH_PX, PATCH_PX).unfold(3, PATCH_PX, PATCH_PX)  # N 3 h w P P
            tokens = (
                self.stem(patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)).flatten(1).unflatten(0, (len(images), -1))
            )
        else:
            tokens = self.stem(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed)).mean(1))


def longvit(**settings: object) -> Callable[[int], nn.Module]:
    """Maker of a LongViT-tiny with these fields of `LongViTConfig`."""
    return lambda image_px: create_model(TINY, num_classes=2, image_px=image_px, **settings)


VARIANTS: dict[str, Callable[[int], nn.Module]] = {
    REFERENCE: PlainViT,
    "plain_patch_stem": partial(PlainViT, by_patch=True),
    "longvit": longvit(),
    "longvit_stem": longvit(stem="conv"),
    "longvit_stem_nosub": longvit(**_NO_SUB_NORM),
    "longvit_stem_nosub_token_norm": longvit(**_NO_SUB_NORM, pool_norm="token_norm"),
    "longvit_token_norm": longvit(pool_norm="token_norm"),
    NAMED: lambda image_px: create_model("longvit_tiny_stem_patch32", num_classes=2, image_px=image_px),
}
"""Name -> maker of a model for images of a side in px. The first is the reference."""
