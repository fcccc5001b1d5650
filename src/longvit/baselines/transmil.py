"""TransMIL (Shao et al. 2021): self-attention over all tiles by Nyström's approximation, convolutions for positions.

    h_i = relu(W x_i + b), padded to a square of s² tokens by repeating the first ones, CLS in front
    h ← h + A(norm(h));   PPEG;   h ← h + A(norm(h));   logits = W norm(h)_CLS + b
    PPEG: the s × s map + depthwise convolutions of it, 7 × 7, 5 × 5 and 3 × 3; CLS stays

A is Nyströmformer's attention (Xiong et al. 2021, equation 13), 8 heads, with landmarks q̃, k̃, the means of m = 256
ranges of the sequence, and a depthwise convolution of 33 tokens on the values:

    F = softmax(q k̃ᵀ),  M = softmax(q̃ k̃ᵀ),  B = softmax(q̃ kᵀ),      out = F M⁺ (B v) + conv(v)
    M⁺ by six steps of  Z ← ¼ Z (13 I − M Z (15 I − M Z (7 I − M Z))),  Z₀ = Mᵀ / (‖M‖₁ ‖M‖_∞)    (equation 14)

F and B are never stored: F X and B v are fused attention calls with 256 keys or queries, so memory and time are linear.
As in the authors' code the sequence is padded in front with zeros to a multiple of m, and these are part of the
softmax. Difference: ‖M‖ is per head, as in the paper (the authors' code takes the largest of all heads).

Attention: CLS's row of F M⁺ B in the last layer, mean of the heads, clipped at 0. Repeated tokens are added to their
tiles. It costs as much as the layer again, so in training it is None.

N tiles, D width of their features, H width, C outputs, S tokens, m landmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longvit.baselines.bag import Bag, Prediction, packed
from longvit.baselines.fusion import Head
from longvit.baselines.system import Shape, System, check_settings
from longvit.errors import InputError

_RESIDUAL_TOKENS = 33  # of the convolution on the values (Nyströmformer)


@dataclass(frozen=True)
class TransMilSettings:
    """Settings of TransMIL."""

    hidden: int = 512
    """H (TransMIL)."""
    heads: int = 8
    """Attention heads (TransMIL)."""
    landmarks: int = 256
    """m (TransMIL: H / 2)."""
    pinv_steps: int = 6
    """Iterations for M⁺ (TransMIL)."""
    dropout: float = 0.1
    """Dropout after each attention's projection (TransMIL)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"hidden": 1, "heads": 1, "landmarks": 1, "pinv_steps": 1})
        if self.hidden % self.heads:
            raise InputError(f"hidden {self.hidden}: a multiple of the {self.heads} heads")


def pseudo_inverse(m: Tensor, steps: int) -> Tensor:
    """Iterative pseudo-inverse: M (…, m, m) → an approximation of its Moore-Penrose inverse."""
    one = m.abs().sum(-2).amax(-1)
    infinity = m.abs().sum(-1).amax(-1)
    z = m.transpose(-1, -2) / (one * infinity)[..., None, None]
    i = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    for _ in range(steps):
        mz = m @ z
        z = 0.25 * z @ (13 * i - mz @ (15 * i - mz @ (7 * i - mz)))
    return z


class NystromAttention(nn.Module):
    """Nyström attention: x (S, H) → (S, H)."""

    def __init__(self, settings: TransMilSettings) -> None:
        super().__init__()
        s, self.settings = settings, settings
        self.qkv = nn.Linear(s.hidden, 3 * s.hidden, bias=False)
        kernel = (_RESIDUAL_TOKENS, 1)
        self.residual = nn.Conv2d(s.heads, s.heads, kernel, padding=(kernel[0] // 2, 0), groups=s.heads, bias=False)
        self.out = nn.Sequential(nn.Linear(s.hidden, s.hidden), nn.Dropout(s.dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._projected(x)
        q_mean, k_mean = self._landmarks(q), self._landmarks(k)
        inverse = pseudo_inverse(self._kernel(q_mean, k_mean), self.settings.pinv_steps)
        attended = functional.scaled_dot_product_attention(q_mean, k, v)  # B v, (1, heads, m, H / heads)
        out = functional.scaled_dot_product_attention(q, k_mean, inverse @ attended) + self.residual(v)
        return self.out(out.squeeze(0).transpose(0, 1).flatten(1)[-len(x) :])

    @torch.no_grad()
    def first_row(self, x: Tensor) -> Tensor:
        """Attention of the first token to each: its row of F M⁺ B, mean of the heads, (S,); may be slightly below 0."""
        q, k, _ = self._projected(x)
        q_mean, k_mean = self._landmarks(q), self._landmarks(k)
        inverse = pseudo_inverse(self._kernel(q_mean, k_mean), self.settings.pinv_steps)
        weights = self._kernel(q[:, :, -len(x)].unsqueeze(2), k_mean) @ inverse  # (1, heads, 1, m)
        row = q.new_zeros(q.shape[2])
        for head in range(self.settings.heads):  # one head at a time: m × S numbers
            row += (weights[0, head] @ self._kernel(q_mean[0, head], k[0, head])).squeeze(0)
        return row[-len(x) :] / self.settings.heads

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """→ q, k, v (1, heads, S', H / heads) with zeros in front, S' a multiple of m."""
        missing = -len(x) % self.settings.landmarks
        qkv = functional.pad(self.qkv(x), (0, 0, missing, 0)).unflatten(1, (3, self.settings.heads, -1))
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)
        return q, k, v

    def _landmarks(self, t: Tensor) -> Tensor:
        return t.unflatten(2, (self.settings.landmarks, -1)).mean(3)

    @staticmethod
    def _kernel(q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)


class Ppeg(nn.Module):
    """Pyramid position encoding: x (1 + s², H), CLS first → the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(len(x) - 1)
        grid = x[1:].T.unflatten(1, (side, side)).unsqueeze(0)  # (1, H, s, s)
        for convolution in self.convolutions:
            grid = grid + convolution(x[1:].T.unflatten(1, (side, side)).unsqueeze(0))
        return torch.cat([x[:1], grid.squeeze(0).flatten(1).T])


class TransMil(System):
    """TransMIL; the order of the tiles matters, and is that of the file."""

    Settings = TransMilSettings

    def __init__(self, shape: Shape, settings: TransMilSettings) -> None:
        super().__init__(shape)
        h = settings.hidden
        self.phi = nn.Sequential(nn.Linear(shape.in_dim, h), nn.ReLU())
        self.cls_token = nn.Parameter(torch.randn(1, h))
        self.norms = nn.ModuleList(nn.LayerNorm(h) for _ in range(2))
        self.attentions = nn.ModuleList(NystromAttention(settings) for _ in range(2))
        self.ppeg = Ppeg(h)
        self.norm = nn.LayerNorm(h)
        self.head = Head(h, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return packed(self.phi, bags)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        n = len(encoded)
        repeated = (math.isqrt(n - 1) + 1) ** 2 - n
        x = torch.cat([self.cls_token, encoded, encoded[:repeated]])
        x = x + self.attentions[0](self.norms[0](x))
        x = self.ppeg(x)
        normed = self.norms[1](x)
        x = x + self.attentions[1](normed)
        logits = self.head(self.norm(x[0]), self.omics(bag))
        return Prediction(logits, None if self.training else self._attention(normed, n))

    @torch.no_grad()
    def _attention(self, x: Tensor, tiles: int) -> Tensor:
        last = self.attentions[1]
        assert isinstance(last, NystromAttention)
        row = last.first_row(x)[1:].clamp(min=0)
        a, repeats = row[:tiles].clone(), row[tiles:]
        a[: len(repeats)] += repeats
        total = a.sum()
        return a / total if total > 0 else torch.full_like(a, 1 / tiles)
