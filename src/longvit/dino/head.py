"""Projection head of DINO (Caron et al. 2021, section 3.1 and appendix C).

    h = W₃ gelu(W₂ gelu(W₁ x)),   z = h / ‖h‖,   output_k = z · v_k / ‖v_k‖

Every output is a cosine. Parameter names are those of the authors' checkpoints (`mlp.0.weight` …,
`last_layer.weight_v`, `last_layer.weight_g`). Difference: the lengths g are constants, here a buffer of ones.

B crops, D width, K prototypes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvit.dino.settings import DinoSettings


class UnitRowsLinear(nn.Module):
    """(B, I) → (B, K) without bias; every row of the weights has length `weight_g`, which is 1 and not trained."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())
        self.register_buffer("weight_g", torch.ones(out_features, 1))
        self.weight_g: Tensor

    def forward(self, x: Tensor) -> Tensor:
        # fused: the plain quotient keeps two more copies of the weights (67 MB each) for backward
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DinoHead(nn.Module):
    """Projection head: embeddings (B, D) → cosines (B, K)."""

    def __init__(self, in_features: int, settings: DinoSettings) -> None:
        super().__init__()
        hidden = [settings.head_hidden] * (settings.head_layers - 1)
        widths = [in_features, *hidden, settings.head_bottleneck]
        layers: list[nn.Module] = []
        for i, (width_in, width_out) in enumerate(pairwise(widths)):
            layers += [nn.GELU()] * (i > 0)
            layers.append(nn.Linear(width_in, width_out))
        self.mlp = nn.Sequential(*layers)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)  # cut at ± 2, as in DINO: the plain normal
                nn.init.zeros_(layer.bias)
        self.last_layer = UnitRowsLinear(settings.head_bottleneck, settings.prototypes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


def freeze_last_layer(head: DinoHead, frozen: bool) -> None:
    """Freezes or unfreezes the last layer, before the forward of every step.

    A frozen layer has no gradient at all, so the optimiser leaves its weights and moments alone, and the product for
    the gradient is saved. The authors' code discards the gradient.
    """
    head.last_layer.weight_v.requires_grad_(not frozen)
    if frozen:
        head.last_layer.weight_v.grad = None
