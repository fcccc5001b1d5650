"""Gated attention pooling (Ilse, Tomczak and Welling 2018, equations 7 and 9), shared by most systems.

    s_i = wᵀ (tanh(V h_i) ⊙ sigmoid(U h_i)),     a = softmax over the instances of s,     z = Σ_i a_i h_i

V, U and w have biases, and dropout follows tanh and sigmoid, as in CLAM, MCAT and HIPT.

N instances, H their width, A width of the gate.
"""

from __future__ import annotations

from torch import Tensor, nn


class GatedAttention(nn.Module):
    """Gated attention: h (…, N, H) → scores (…, N), before the softmax."""

    def __init__(self, width: int, gate_width: int, dropout: float) -> None:
        super().__init__()
        self.tanh = nn.Sequential(nn.Linear(width, gate_width), nn.Tanh(), nn.Dropout(dropout))
        self.sigmoid = nn.Sequential(nn.Linear(width, gate_width), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(gate_width, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.score(self.tanh(h) * self.sigmoid(h)).squeeze(-1)

    def pool(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (N, H) → a (N,), z (H,)."""
        return weighted(h, self(h))


def weighted(h: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """h (N, H), scores (N,) → a = softmax(scores), Σ_i a_i h_i (H,)."""
    a = scores.softmax(0)
    return a, a @ h
