"""MCAT: genomic-guided co-attention (Chen et al. 2021, "Multimodal co-attention transformer for survival prediction").

    h_i = dropout(relu(W x_i + b)),   g_s = two blocks of SNN on the genes of signature s = 1 … 6      (both 256 wide)
    a_s = softmax over i of (W_q g_s)ᵀ (W_k h_i) / 16,    ĥ_s = W_o Σ_i a_si W_v h_i                  (equation 5)
    each side (the ĥ, and the g): 2 layers of transformer encoder, a gated attention over the six, ρ
    logits = W fusion(side of the tiles, side of the omics) + b,     fusion: concat or bilinear, as in `fusion`

The encoders are post-norm: 8 heads, 512 wide within, ReLU, dropout .25. The omic side takes the g from before the
co-attention. Only the co-attention sees all tiles. It has six queries, so it is linear in the tiles.

Attention: a_s, mean over the six signatures.

N tiles, D width of their features, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction, packed
from longvit.baselines.fusion import FUSIONS, OMIC_WIDTH
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.snn import snn_layers
from longvit.baselines.system import Shape, System, check_settings, hidden_layer
from longvit.errors import InputError

_WIDTH = OMIC_WIDTH
SIGNATURES = (
    "tumor suppressor genes",
    "oncogenes",
    "protein kinases",
    "cell differentiation markers",
    "transcription factors",
    "cytokines and growth factors",
)


@dataclass(frozen=True)
class McatSettings:
    """Settings of MCAT_Surv."""

    layers: int = 2
    """Layers of each side's transformer (MCAT)."""
    heads: int = 8
    """Heads of each side's transformer (MCAT)."""
    ffn: int = 512
    """Width within the transformers' layers (MCAT)."""
    dropout: float = 0.25
    """Dropout of all layers (MCAT)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"layers": 1, "heads": 1, "ffn": 1})
        if _WIDTH % self.heads:
            raise InputError(f"heads {self.heads}: a divisor of {_WIDTH}")


class _Side(nn.Module):
    """Encoder of one side: six tokens (6, 256) → (256,)."""

    def __init__(self, settings: McatSettings) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(_WIDTH, settings.heads, settings.ffn, settings.dropout)
        self.transformer = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.attention = GatedAttention(_WIDTH, _WIDTH, settings.dropout)
        self.rho = hidden_layer(_WIDTH, _WIDTH, settings.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        _, pooled = self.attention.pool(self.transformer(tokens))
        return self.rho(pooled)


class Mcat(System):
    """MCAT; `omics` are the sizes of the signatures, any number ≥ 1 (published: six)."""

    Settings = McatSettings

    def __init__(self, shape: Shape, settings: McatSettings) -> None:
        super().__init__(shape)
        assert isinstance(shape.omics, tuple)
        self.phi = hidden_layer(shape.in_dim, _WIDTH, settings.dropout)
        self.signatures = nn.ModuleList(snn_layers([g, _WIDTH, _WIDTH], settings.dropout) for g in shape.omics)
        self.coattention = nn.MultiheadAttention(_WIDTH, 1)
        self.tiles, self.genes = _Side(settings), _Side(settings)
        self.fusion = FUSIONS[shape.fusion or "concat"](_WIDTH)
        self.classifier = nn.Linear(_WIDTH, shape.outputs)

    @classmethod
    def check_shape(cls, shape: Shape) -> None:
        if not isinstance(shape.omics, tuple) or not shape.omics:
            raise InputError(f"omics {shape.omics}: mcat needs a vector per signature; give the six sizes")

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return packed(self.phi, bags)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        genes = torch.stack([net(x) for net, x in zip(self.signatures, self.omics(bag), strict=True)])  # (6, 256)
        attended, a = self.coattention(genes, encoded, encoded)  # (6, 256), (6, N)
        logits = self.classifier(self.fusion(self.tiles(attended), self.genes(genes)))
        return Prediction(logits, a.detach().mean(0))
