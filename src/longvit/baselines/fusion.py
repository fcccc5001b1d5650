"""Last layers of a system, and the fusion of an omic vector with the vector h of the tiles: "w/ genomic features".

    none       logits = W h + b
    concat     f = relu(W₂ relu(W₁ [h; g]))                                  (MCAT's late fusion; the paper's rows)
    bilinear   f = dropout(relu(W₂ dropout(relu(W₁ dropout(vec([o_h; 1] ⊗ [o_g; 1]))))))         (Pathomic Fusion)
               o_h = dropout(relu(W (sigmoid(W_z [h; g]) ⊙ relu(W_h h)))),  o_g likewise
    then       logits = W f + b,      g: the omics through two blocks of SNN, 256 wide

Pathomic Fusion is Chen et al. 2020. The gate of each side depends on both, by one linear layer on [h; g]. Each side is
reduced to 32 numbers before the product, as in MCAT (256 / 8).

H width of h, G genes, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longvit.baselines.snn import snn_layers
from longvit.baselines.system import Shape, hidden_layer

OMIC_WIDTH = 256  # of g and of f (MCAT)
_NARROW = 32  # each side of the product: 256 / 8 (MCAT)
_DROPOUT = 0.25  # of the omic branch and of the bilinear fusion (MCAT)


class ConcatFusion(nn.Module):
    """Late fusion by concatenation: h (H,), g (G',) → f (256,)."""

    def __init__(self, width: int, omic_width: int = OMIC_WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width + omic_width, OMIC_WIDTH), nn.ReLU(), nn.Linear(OMIC_WIDTH, OMIC_WIDTH), nn.ReLU()
        )

    def forward(self, h: Tensor, g: Tensor) -> Tensor:
        return self.layers(torch.cat([h, g], -1))


class _GatedSide(nn.Module):
    """Gated reduction of one side: x (X,), both sides (X + Y,) → o (32,)."""

    def __init__(self, width: int, both: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Linear(width, _NARROW), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(both, _NARROW), nn.Sigmoid())
        self.out = hidden_layer(_NARROW, _NARROW, _DROPOUT)

    def forward(self, x: Tensor, both: Tensor) -> Tensor:
        return self.out(self.gate(both) * self.narrow(x))


class BilinearFusion(nn.Module):
    """Fusion by the outer product of both sides: h (H,), g (G',) → f (256,)."""

    def __init__(self, width: int, omic_width: int = OMIC_WIDTH) -> None:
        super().__init__()
        both = width + omic_width
        self.tiles, self.omics = _GatedSide(width, both), _GatedSide(omic_width, both)
        self.dropout = nn.Dropout(_DROPOUT)
        self.layers = nn.Sequential(
            hidden_layer((_NARROW + 1) ** 2, OMIC_WIDTH, _DROPOUT), hidden_layer(OMIC_WIDTH, OMIC_WIDTH, _DROPOUT)
        )

    def forward(self, h: Tensor, g: Tensor) -> Tensor:
        both = torch.cat([h, g], -1)
        one = h.new_ones(1)
        o_h, o_g = torch.cat([self.tiles(h, both), one]), torch.cat([self.omics(g, both), one])
        return self.layers(self.dropout(torch.outer(o_h, o_g).flatten()))


FUSIONS: dict[str, type[ConcatFusion] | type[BilinearFusion]] = {"concat": ConcatFusion, "bilinear": BilinearFusion}


class Head(nn.Module):
    """Classifier with fusion: h (H,) and the omic vectors of the bag → logits (C,)."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.omics, self.fusion = None, None
        if shape.fusion is not None:
            assert isinstance(shape.omics, int)
            self.omics = snn_layers([shape.omics, OMIC_WIDTH, OMIC_WIDTH], _DROPOUT)
            self.fusion = FUSIONS[shape.fusion](width)
        self.classifier = nn.Linear(width if self.fusion is None else OMIC_WIDTH, shape.outputs)

    def forward(self, h: Tensor, omics: Sequence[Tensor]) -> Tensor:
        if self.fusion is not None:
            assert self.omics is not None
            h = self.fusion(h, self.omics(omics[0]))
        return self.classifier(h)
