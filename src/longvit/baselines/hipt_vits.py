"""The two frozen levels of HIPT (Chen et al. 2022): ViT-256 over pixels, ViT-4096 over the tokens of ViT-256.

    ViT-256     256 × 256 px at 20×  → 16 × 16 patches of 16 px  → CLS 384     (ViT-S/16: 12 layers, 6 heads)
    ViT-4096    16 × 16 tokens of 384 → gelu(W t + b), 192 wide  → CLS 192     (6 layers, 6 heads)

Both are DINO's vision transformer (Caron et al. 2021), pre-norm, with its parameter names, so the published
`vit256_small_dino.pth` and `vit4k_xs_dino.pth` load unchanged. Their positions are a grid of 14 × 14, interpolated to
16 × 16 (bicubic) with DINO's factor (16 + 0.1) / 14, as the weights were used. That is a fraction of a patch away from
aligned corners of the grids. Pixels are normalised as for ViT-256: mean and SD .5 for each colour.

Differences: attention is fused, and regions may lack tiles.

B images or regions, N tokens without CLS, D width, T width of the tile features.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from longvit.model.checkpoints import load_strictly, read_tensors

_TRAINED_GRID = 14  # positions per side in the published weights: 224 px at 16
_EPS = 1e-6


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        """x (B, 1 + N, D); present (B, 1, 1, 1 + N) bool: tokens that are attended to."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=present)
        return self.proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=_EPS), nn.LayerNorm(dim, eps=_EPS)
        self.attn, self.mlp = _Attention(dim, num_heads), _Mlp(dim)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), present)
        return x + self.mlp(self.norm2(x))


class _DinoVit(nn.Module):
    """Part that both levels share: tokens with positions → CLS."""

    def __init__(self, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _TRAINED_GRID**2, dim))
        self.blocks = nn.ModuleList(_Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=_EPS)

    def _start(self) -> None:
        """Draws DINO's initial weights."""
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _cls(self, tokens: Tensor, rows: int, columns: int, present: Tensor | None = None) -> Tensor:
        """tokens (B, rows · columns, D), present (B, rows · columns) bool → (B, D)."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self._positions(rows, columns)
        if present is not None:
            present = functional.pad(present, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            # recomputed layer by layer in backward: regions of a slide have as many tokens as it has tiles
            x = checkpoint(block, x, present, use_reentrant=False) if torch.is_grad_enabled() else block(x, present)
        return self.norm(x[:, 0])

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings, interpolated to the grid (1, 1 + rows · columns, D)."""
        if rows == columns == _TRAINED_GRID:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (_TRAINED_GRID, _TRAINED_GRID))
        factors = [(n + 0.1) / _TRAINED_GRID for n in (rows, columns)]
        grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
        assert grid.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_px, stride=patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels)


class Vit256(_DinoVit):
    """ViT-256: pixels (B, 3, h, w) float from `normalised`, h and w multiples of 16 px → CLS (B, 384)."""

    def __init__(self, dim: int = 384, depth: int = 12, num_heads: int = 6) -> None:
        super().__init__(dim, depth, num_heads)
        self.patch_embed = _PatchEmbed(dim, 16)
        self._start()

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels)  # (B, D, rows, columns)
        return self._cls(patches.flatten(2).transpose(1, 2), *patches.shape[2:])


class Vit4096(_DinoVit):
    """ViT-4096: tile features (B, N, T), a square grid row by row → CLS (B, 192)."""

    def __init__(self, in_dim: int = 384, dim: int = 192, depth: int = 6, num_heads: int = 6) -> None:
        super().__init__(dim, depth, num_heads)
        self.phi = nn.Sequential(nn.Linear(in_dim, dim), nn.GELU())
        self._start()

    def forward(self, tiles: Tensor, present: Tensor | None = None) -> Tensor:
        """`present` (B, N) bool: tiles that exist; the others are not attended to. None: all exist."""
        side = math.isqrt(tiles.shape[1])
        assert side * side == tiles.shape[1], f"{tiles.shape[1]} tiles are not a square"
        return self._cls(self.phi(tiles), side, side, present)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, h, w) → float32 in −1 … 1, the input range of ViT-256."""
    return pixels.float() / 127.5 - 1


def load_vit256(path: str | Path) -> Vit256:
    """Published weights of ViT-256 (the teacher), in eval mode; errors as in `checkpoints.read_tensors`."""
    model = Vit256()
    load_strictly(model, read_tensors(path), path)
    return model.eval()


def load_vit4096(path: str | Path) -> Vit4096:
    """Published weights of ViT-4096 (the teacher), in eval mode; errors as in `checkpoints.read_tensors`."""
    model = Vit4096()
    load_strictly(model, read_tensors(path), path)
    return model.eval()
