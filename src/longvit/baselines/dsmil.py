"""DS-MIL (Li, Li and Eliceiri 2021, "Dual-stream multiple instance learning network", equations 3–9).

    first stream    s_ic = w_c · x_i + b_c,     m_c = max_i s_ic, reached at the critical tile i*_c
    second stream   q_i = W_q x_i + b_q  (128 wide),   v_i = W_v dropout(x_i) + b_v
                    a_ic = softmax over i of q_i · q_{i*_c} / sqrt(128),      B_c = Σ_i a_ic v_i
                    bag_c = Σ_{c', d} K_{cc'd} B_{c'd} + k_c                  (a convolution over the rows of B)
    logits = (bag + m) / 2

q has no non-linearity, and the cross-entropy is of the averaged logits, as in HIPT (in the original each stream has its
own loss). There is no published form with omics: here they are fused with the mean of the rows of B, instead of the
convolution.

Attention: column a_·c of the class with the largest logit; for survival the mean of the columns.

N tiles, D width of their features, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction, all_tiles
from longvit.baselines.fusion import Head
from longvit.baselines.system import Shape, System, check_settings


@dataclass(frozen=True)
class DsmilSettings:
    """Settings of HIPT's MILNet."""

    query: int = 128
    """Width of q (DS-MIL)."""
    dropout_v: float = 0.0
    """Dropout before v (HIPT: 0)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"query": 1})


class DualStreamMil(System):
    """DS-MIL: a max-pooling stream and an attention stream."""

    Settings = DsmilSettings

    def __init__(self, shape: Shape, settings: DsmilSettings) -> None:
        super().__init__(shape)
        d, c = shape.in_dim, shape.outputs
        self.instances = nn.Linear(d, c)
        self.q = nn.Linear(d, settings.query)
        self.v = nn.Sequential(nn.Dropout(settings.dropout_v), nn.Linear(d, d))
        if shape.fusion is None:
            self.bag: nn.Module = nn.Conv1d(c, c, d)
        else:
            self.bag = Head(d, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        x = all_tiles(bags)
        sizes = [len(bag) for bag in bags]
        return list(zip(*(part(x).split(sizes) for part in (self.instances, self.q, self.v)), strict=True))

    def pool(self, encoded: tuple[Tensor, Tensor, Tensor], bag: Bag, label: Tensor | None) -> Prediction:
        scores, q, v = encoded  # (N, C), (N, 128), (N, D)
        most, critical = scores.max(0)  # (C,)
        a = (q @ q[critical].T / q.shape[1] ** 0.5).softmax(0)  # (N, C)
        b = a.T @ v  # (C, D)
        if isinstance(self.bag, Head):
            bag_logits = self.bag(b.mean(0), self.omics(bag))
        else:
            bag_logits = self.bag(b.unsqueeze(0)).flatten()
        logits = (bag_logits + most) / 2
        detached = a.detach()
        return Prediction(logits, detached[:, logits.argmax()] if self.shape.task == "subtyping" else detached.mean(1))
