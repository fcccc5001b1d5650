"""Student and teacher of DINO (Caron et al. 2021, section 3.1): two copies of one network, the second the EMA of the
first.

    θ_t ← λ θ_t + (1 − λ) θ_s      after every optimiser step, λ by `Schedules.teacher_momentum`

Both are a LongViT with a LayerNorm (eps 1e-6) on the tokens before their mean, and a head. State names are those of the
authors' checkpoints: `student.backbone.…`, `student.head.…`, `teacher.…`.

B regions, C crops, G global crops, D width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from longvit.dino.head import DinoHead, freeze_last_layer
from longvit.dino.multicrop import features
from longvit.dino.settings import DinoSettings
from longvit.model.longvit import LongViT, LongViTConfig


class DinoNetwork(nn.Module):
    """Crops → outputs (C·B, K): a LongViT and its head."""

    def __init__(self, config: LongViTConfig, settings: DinoSettings) -> None:
        super().__init__()
        self.backbone = LongViT(config)
        self.head = DinoHead(config.embed_dim, settings)

    def forward(self, crops: Sequence[Tensor], *, packed: bool = True, scales: Tensor | None = None) -> Tensor:
        return self.head(features(self.backbone, crops, packed=packed, scales=scales))


class StudentTeacher(nn.Module):
    """Both networks, with equal weights at the start; only the student has gradients and drop path.

    `config` is the backbone's. Its head, drop path and order of mean and norm are always DINO's.
    """

    def __init__(self, config: LongViTConfig, settings: DinoSettings) -> None:
        super().__init__()
        config = replace(config, pool_norm="token_norm", num_classes=0, class_names=(), drop_path=settings.drop_path)
        self.settings = settings
        self.student = DinoNetwork(config, settings)
        self.teacher = DinoNetwork(replace(config, drop_path=0.0), settings)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> StudentTeacher:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, crops: Sequence[Tensor], *, packed: bool = True) -> tuple[Tensor, Tensor]:
        """C crops (B, 3, h, w), the global ones first → the student's outputs (C·B, K) and the teacher's (G·B, K)."""
        expected = self.settings.global_crops + self.settings.local_crops
        if len(crops) != expected:
            raise ValueError(f"{len(crops)} crops of every region; the settings have {expected}")
        with torch.no_grad():
            teacher = self.teacher(crops[: self.settings.global_crops], packed=packed)
        return self.student(crops, packed=packed), teacher

    def freeze_last_layer(self, frozen: bool) -> None:
        """Freezes or unfreezes the student's last layer before a step; see `Schedules.last_layer_is_frozen`."""
        freeze_last_layer(self.student.head, frozen)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Updates the teacher after every optimiser step that was not skipped; `momentum` λ in 0 … 1."""
        torch._foreach_lerp_(
            list(self.teacher.parameters()), [p.detach() for p in self.student.parameters()], 1 - momentum
        )


def parameter_groups(student: nn.Module) -> list[dict[str, Any]]:
    """Two groups for the optimiser, with parameter names: decayed (`is_decayed`), and biases and norms, which are not.

    As in the authors' code, parameters with a single axis are not decayed; positions and the last layer are. All
    parameters of the student are included, also a last layer that is frozen for now. Their order is that of
    `named_parameters`.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "is_decayed": is_decayed, "lr_scale": 1.0, "weight_decay": 0.0}
        for is_decayed in (True, False)
    ]
    for name, p in student.named_parameters():
        group = groups[p.ndim < 2 or name.endswith(".bias")]
        group["params"].append(p)
        group["names"].append(name)
    return groups


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Sets the values of a step in the groups of `parameter_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["is_decayed"] else 0.0
