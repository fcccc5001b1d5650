"""Four systems that process each tile separately and pool once. h_i = dropout(relu(W x_i + b)).

    mean pooling    logits = W mean_i x_i + b                      (no hidden layer)
    MIL             logits = W h_i* + b of one tile i*, the critical one                          (HIPT's baseline)
    Deep Sets       logits = W ρ(Σ_i h_i) + b                      (Zaheer et al. 2017, theorem 2)
    Attention MIL   logits = W ρ(Σ_i a_i h_i) + b, a gated         (Ilse, Tomczak and Welling 2018, equations 7, 9)

ρ is again dropout(relu(W · + b)). With two classes the critical tile of MIL has the largest probability of class 1.
With more outputs it has the largest probability of any (Campanella et al. 2019 and CLAM's MIL_fc_mc). Numbers, cuts
between grades and several labels have a critical tile per output, the one of the highest logit.

Sizes, initialisation and dropout are those of HIPT's and MCAT's baselines. Deep Sets' *sum* over thousands of tiles
saturates the hazards: risks tie in float32 and the c-index is .5, as published (0.500 ± 0 in three of five cohorts).
`pooling="mean"` avoids that. MIL with omics has no published form. Here half of the logits comes from the tile alone,
so that its selection still learns. The other half comes from the tile's h and the omics.

N tiles, D width of their features, H hidden width, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction, packed
from longvit.baselines.fusion import Head
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.initialisation import xavier_normal
from longvit.baselines.system import Shape, System, check_settings, hidden_layer, hidden_width


@dataclass(frozen=True)
class MeanPoolingSettings:
    """Mean pooling has no settings."""


class MeanPooling(System):
    """Logistic regression on the mean of the features, trained like the others."""

    Settings = MeanPoolingSettings

    def __init__(self, shape: Shape, settings: MeanPoolingSettings) -> None:
        super().__init__(shape)
        self.head = Head(shape.in_dim, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return [bag.features for bag in bags]

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        return Prediction(self.head(encoded.mean(0), self.omics(bag)), None)


@dataclass(frozen=True)
class MilSettings:
    """Settings of HIPT's MIL_fc and MIL_fc_mc."""

    hidden: int | None = None
    """H; by default 384 for features of 384 numbers, 512 for others (HIPT)."""
    dropout: float = 0.25
    """Dropout of the hidden layer (HIPT)."""
    init: Literal["xavier", "pytorch"] = "xavier"
    """Initial weights: Xavier-normal with biases 0 (HIPT), or PyTorch's default."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"hidden": 1})


class MaxPoolingMil(System):
    """MIL with max pooling. Attention: the score that selects the critical tile, divided by its sum over the tiles."""

    Settings = MilSettings

    def __init__(self, shape: Shape, settings: MilSettings) -> None:
        super().__init__(shape)
        hidden = settings.hidden or hidden_width(shape.in_dim)
        self.phi = hidden_layer(shape.in_dim, hidden, settings.dropout)
        self.instances = nn.Linear(hidden, shape.outputs)
        if settings.init == "xavier":
            self.apply(xavier_normal)
            if shape.outputs > 2:  # published as a layer of one output for each class, so with a fan_out of 1
                nn.init.normal_(self.instances.weight, std=(2 / (hidden + 1)) ** 0.5)
        self.fused = Head(hidden, shape) if shape.fusion else None

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return packed(self.phi, bags)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        logits = self.instances(encoded)  # (N, C)
        if self.shape.task == "other":  # outputs that do not exclude each other: the highest of each
            selection_score = logits.detach().sigmoid().amax(1)
            critical = selection_score.argmax()
            bag_logits = logits.amax(0)
        else:
            p = logits.detach().softmax(1)
            selection_score = p[:, 1] if p.shape[1] == 2 else p.amax(1)
            critical = selection_score.argmax()
            bag_logits = logits[critical]
        if self.fused is not None:
            bag_logits = (bag_logits + self.fused(encoded[critical], self.omics(bag))) / 2
        return Prediction(bag_logits, selection_score / selection_score.sum())


@dataclass(frozen=True)
class DeepSetsSettings:
    """Settings of MCAT's MIL_Sum_FC_surv."""

    hidden: int | None = None
    """H; by default 384 for features of 384 numbers, 512 for others (MCAT: 512 of 1,024)."""
    rho: int = 256
    """Width of ρ (MCAT)."""
    dropout: float = 0.25
    """Dropout of both layers (MCAT)."""
    pooling: Literal["sum", "mean"] = "sum"
    """Pooling over the tiles; "sum" as published, although it saturates."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"hidden": 1, "rho": 1})


class DeepSets(System):
    """Deep Sets: a sum or mean over the tiles, without attention."""

    Settings = DeepSetsSettings

    def __init__(self, shape: Shape, settings: DeepSetsSettings) -> None:
        super().__init__(shape)
        self.settings = settings
        hidden = settings.hidden or hidden_width(shape.in_dim)
        self.phi = hidden_layer(shape.in_dim, hidden, settings.dropout)
        self.rho = hidden_layer(hidden, settings.rho, settings.dropout)
        self.head = Head(settings.rho, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return packed(self.phi, bags)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        pooled = encoded.sum(0) if self.settings.pooling == "sum" else encoded.mean(0)
        return Prediction(self.head(self.rho(pooled), self.omics(bag)), None)


@dataclass(frozen=True)
class AttentionMilSettings:
    """Settings of MCAT's MIL_Attention_FC_surv."""

    hidden: int | None = None
    """H; by default 384 for features of 384 numbers, 512 for others (MCAT: 512 of 1,024)."""
    gate: int = 256
    """Width of the attention's gate (MCAT)."""
    rho: int = 256
    """Width of ρ (MCAT)."""
    dropout: float = 0.25
    """Dropout of both layers and of the gate (MCAT)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"hidden": 1, "gate": 1, "rho": 1})


class AttentionMil(System):
    """Attention MIL with gated attention."""

    Settings = AttentionMilSettings

    def __init__(self, shape: Shape, settings: AttentionMilSettings) -> None:
        super().__init__(shape)
        hidden = settings.hidden or hidden_width(shape.in_dim)
        self.phi = hidden_layer(shape.in_dim, hidden, settings.dropout)
        self.attention = GatedAttention(hidden, settings.gate, settings.dropout)
        self.rho = hidden_layer(hidden, settings.rho, settings.dropout)
        self.head = Head(settings.rho, shape)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return packed(self.phi, bags)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        a, pooled = self.attention.pool(encoded)
        return Prediction(self.head(self.rho(pooled), self.omics(bag)), a.detach())
