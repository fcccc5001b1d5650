"""FEATHER (Shao et al. 2025, "Do multiple instance learning models transfer?"): gated attention pretrained on slides.

    h_i = relu(W x_i + b),     a = softmax_i wᵀ (tanh(V h_i) ⊙ sigmoid(U h_i)),     logits = W Σ_i a_i h_i + b

The widths are 512 and, of the gate, 384; dropout .25 follows tanh and sigmoid. The authors trained it on 108 classes of
24,000 slides, on features of UNI, UNI2-h or CONCH v1.5. They publish the weights without the head. `checkpoint` names
such a file. The new head starts at random, and all layers are trained (`frozen`: the head alone).

Written from the paper. The weights have a separate licence (CC-BY-NC-ND-4.0) and are not part of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction, packed
from longvit.baselines.fusion import Head
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.system import Shape, System, check_settings
from longvit.errors import InputError
from longvit.model.checkpoints import load_strictly, read_tensors

_NAMES = {
    "patch_embed.0": "phi.0",
    "global_attn.attention_a.0": "attention.tanh.0",
    "global_attn.attention_b.0": "attention.sigmoid.0",
    "global_attn.attention_c": "attention.score",
}
"""Layers of a published file -> ours."""
_WIDTHS = "1024: UNI, 1536: UNI2-h, 768: CONCH v1.5"


@dataclass(frozen=True)
class FeatherSettings:
    """Settings of the pretrained pooling."""

    checkpoint: str = ""
    """File of published weights, .safetensors or .bin. Empty: random weights."""
    frozen: bool = False
    """Train the head alone (a linear probe of the slide vector); needs a checkpoint."""
    hidden: int = 512
    """Width of a tile's vector (FEATHER)."""
    gate: int = 384
    """Width of the attention's gate (FEATHER)."""
    dropout: float = 0.25
    """Dropout of the gate (FEATHER)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"hidden": 1, "gate": 1})
        if self.frozen and not self.checkpoint:
            raise InputError("frozen: only weights of a checkpoint can be; give checkpoint=FILE")


class Pooling(nn.Module):
    """Pretrained part: features (N, D) → scores (N,) and h (N, hidden)."""

    def __init__(self, in_dim: int, settings: FeatherSettings) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(in_dim, settings.hidden), nn.ReLU())
        self.attention = GatedAttention(settings.hidden, settings.gate, settings.dropout)


class Feather(System):
    """Gated attention MIL that starts from published weights."""

    Settings = FeatherSettings

    def __init__(self, shape: Shape, settings: FeatherSettings) -> None:
        super().__init__(shape)
        self.settings = settings
        self.pooling = Pooling(shape.in_dim, settings)
        self.pooling.requires_grad_(not settings.frozen)
        self.head = Head(settings.hidden, shape)

    def fit(self, bags: Sequence[Bag]) -> None:
        """Fills the pooling from the checkpoint. `InputError`: no such file, or one for features of another width."""
        super().fit(bags)
        if self.settings.checkpoint:
            load_pooling(self.pooling, self.settings.checkpoint)

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        return packed(self.pooling.phi, bags)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        a, pooled = self.pooling.attention.pool(encoded)
        return Prediction(self.head(pooled, self.omics(bag)), a.detach())


def load_pooling(pooling: Pooling, path: str) -> None:
    """Fills the pooling from a published file; a head in the file is left out.

    `InputError`: a file that cannot be read, features of another width, other layers than FEATHER's.
    """
    tensors = {}
    for key, tensor in read_tensors(path).items():
        layer, _, kind = key.rpartition(".")
        if not layer.startswith("classifier"):
            tensors[f"{_NAMES.get(layer, layer)}.{kind}"] = tensor
    first = tensors.get("phi.0.weight")
    own = pooling.state_dict()["phi.0.weight"]
    if isinstance(first, Tensor) and first.ndim == 2 and first.shape[1] != own.shape[1]:
        raise InputError(
            f"{path}: for features {first.shape[1]} wide, these are {own.shape[1]} wide ({_WIDTHS}); give the file of "
            f"the encoder of the features"
        )
    load_strictly(pooling, tensors, path)
