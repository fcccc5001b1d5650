"""CLAM with a single attention branch (Lu et al. 2021, "Data-efficient and weakly supervised computational pathology").

    h_i = dropout(relu(W x_i + b)),  a gated attention,  z = Σ_i a_i h_i,  logits = W z + b
    instances of the true class: the k tiles of largest attention are 1, the k of smallest are 0;
                                 a head of two outputs per class separates them from h_i
    loss = c · CE(logits) + (1 − c) · mean of SVM(head(h_i), target_i),        c = 0.7, k = 8

The instance loss is the smooth top-1 SVM (Berrada, Zisserman and Kumar 2018, equation 7 with k = 1):

    SVM(s, y) = τ log Σ_j exp((s_j + α [j ≠ y] − s_y) / τ),          α = τ = 1

With `other_classes` (CLAM's "subtyping") the heads of the other classes get their k tiles of largest attention as 0,
and the sum over the heads is divided by C. A bag of fewer than 2k tiles takes N // 2 of each, so that no tile is both.
Without a label (evaluation, survival) there is no instance loss.

Difference from the authors' code: there a bag of fewer than k tiles is an error.

N tiles, H hidden width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from longvit.baselines.bag import Bag, Prediction, packed
from longvit.baselines.fusion import Head
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.initialisation import xavier_normal
from longvit.baselines.system import Shape, System, check_settings, hidden_layer, hidden_width
from longvit.errors import InputError


def smooth_top1_svm(scores: Tensor, target: Tensor, *, margin: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Smooth top-1 SVM: scores (B, C) float, target (B,) int64 in 0 … C − 1 → (B,), above 0; see the top of this file.

    `margin` α ≥ 0, `temperature` τ > 0; as τ → 0 it becomes the hinge max_j (s_j + α [j ≠ y]) − s_y.
    """
    correct = functional.one_hot(target, scores.shape[1]).to(scores.dtype)
    raised = scores + margin * (1 - correct)
    return temperature * (raised / temperature).logsumexp(1) - (scores * correct).sum(1)


@dataclass(frozen=True)
class ClamSettings:
    """Settings of CLAM_SB as in HIPT."""

    hidden: int | None = None
    """H; by default 384 for features of 384 numbers, 512 for others (HIPT)."""
    gate: int = 256
    """Width of the attention's gate (HIPT; CLAM's "big": 384)."""
    dropout: float = 0.25
    """Dropout of the hidden layer and the gate (HIPT)."""
    k: int = 8
    """Number of tiles with target 1, and of tiles with target 0 (CLAM's B)."""
    bag_weight: float = 0.7
    """c, weight of the bag's loss in 0 … 1; the instance loss has weight 1 − c (CLAM)."""
    instance_loss: Literal["svm", "cross-entropy"] = "svm"
    """Smooth top-1 SVM (HIPT), or cross-entropy."""
    other_classes: bool = False
    """Also train the heads of the other classes (CLAM's flag "subtyping", off in HIPT)."""
    init: Literal["xavier", "pytorch"] = "xavier"
    """Initial weights: Xavier-normal with biases 0 (CLAM), or PyTorch's default."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"hidden": 1, "gate": 1, "k": 1, "bag_weight": 0})
        if self.bag_weight > 1:
            raise InputError(f"bag_weight {self.bag_weight}: at most 1")


class ClamSB(System):
    """CLAM with a single attention branch."""

    Settings = ClamSettings

    def __init__(self, shape: Shape, settings: ClamSettings) -> None:
        super().__init__(shape)
        self.settings = settings
        hidden = settings.hidden or hidden_width(shape.in_dim)
        self.phi = hidden_layer(shape.in_dim, hidden, settings.dropout)
        self.attention = GatedAttention(hidden, settings.gate, settings.dropout)
        self.head = Head(hidden, shape)
        classes = shape.outputs if shape.task == "subtyping" else 0  # time bins are not classes of tiles
        self.instances = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(classes))
        if settings.init == "xavier":
            self.apply(xavier_normal)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return packed(self.phi, bags)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        a, pooled = self.attention.pool(encoded)
        a = a.detach()
        logits = self.head(pooled, self.omics(bag))
        if label is None or not self.instances:
            return Prediction(logits, a)
        c = self.settings.bag_weight
        return Prediction(logits, a, (1 - c) * self.instance_loss(encoded, a, int(label)), c)

    def instance_loss(self, h: Tensor, attention: Tensor, label: int) -> Tensor:
        """Instance loss: h (N, H), attention (N,), label: the bag's class → a scalar; 0 for a bag of one tile."""
        k = min(self.settings.k, len(h) // 2)
        if not k:
            return h.new_zeros(())
        highest, lowest = attention.topk(k).indices, attention.topk(k, largest=False).indices
        ones, zeros = torch.ones_like(highest), torch.zeros_like(highest)
        losses = [self._head_loss(label, h[torch.cat([highest, lowest])], torch.cat([ones, zeros]))]
        if self.settings.other_classes:
            losses += [self._head_loss(c, h[highest], zeros) for c in range(self.shape.outputs) if c != label]
            return torch.stack(losses).sum() / self.shape.outputs
        return losses[0]

    def _head_loss(self, head: int, h: Tensor, target: Tensor) -> Tensor:
        scores = self.instances[head](h)
        if self.settings.instance_loss == "svm":
            return smooth_top1_svm(scores, target).mean()
        return functional.cross_entropy(scores, target)
