"""Training method of DINO: networks, loss and centre as one module, the step, and the updates after it.

    freeze, rates → forward, loss, backward (any number of forward passes) → every gradient clipped by itself
    → AdamW on the student → teacher ← EMA, centre ← batch

A skipped step (a NaN) updates neither teacher nor centre. The batch statistics are means over all regions of the
optimiser step: over accumulated passes and over the ranks of the data axis.

B regions of a forward pass, C crops, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from longvit.dino.loss import DinoLoss, mean_kl_to_uniform
from longvit.dino.schedules import Schedules
from longvit.dino.settings import DinoSettings
from longvit.dino.student_teacher import StudentTeacher, parameter_groups, set_rates
from longvit.model.longvit import LongViTConfig
from longvit.parallel import ShardedLongViT


class Crops(Protocol):
    """Batch of crops."""

    @property
    def crops(self) -> Sequence[Tensor]:
        """Crops: C tensors uint8 (B, 3, h, w), the global ones first."""


def clip_each(gradients: Sequence[Tensor], longest: float) -> None:
    """Clips the gradient of each parameter by itself, in place, as DINO's code does."""
    factors = [(longest / (length + 1e-6)).clamp(max=1.0) for length in torch._foreach_norm(list(gradients))]
    torch._foreach_mul_(list(gradients), factors)


class SelfDistillation(nn.Module):
    """Student, teacher and centre: the model of a pretraining's checkpoint."""

    def __init__(self, config: LongViTConfig, settings: DinoSettings) -> None:
        super().__init__()
        self.networks = StudentTeacher(config, settings)
        self.loss = DinoLoss(
            settings.prototypes,
            student_temperature=settings.student_temperature,
            center_momentum=settings.center_momentum,
            global_crops=settings.global_crops,
        )


class DinoMethod:
    """Training method of DINO: rates of every step, clipping by parameter, updates of teacher and centre."""

    def __init__(self, model: SelfDistillation, schedules: Schedules, *, packed: bool = True) -> None:
        self.model, self.schedules, self.packed = model, schedules, packed
        self.teacher_temperature = schedules.teacher_temperature(0)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW of DINO's code, with its default betas."""
        fused = {p.device.type for p in model.parameters()} <= {"cpu", "cuda"}
        return torch.optim.AdamW(parameter_groups(self.model.networks.student), lr=0.0, fused=fused)

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Mapping[str, float]:
        s = self.schedules
        self.model.networks.freeze_last_layer(s.last_layer_is_frozen(step))
        self.teacher_temperature = s.teacher_temperature(step)
        rates = {"lr": s.lr(step), "weight_decay": s.weight_decay(step)}
        set_rates(optimizer, **rates)
        return {**rates, "teacher_momentum": s.teacher_momentum(step), "teacher_temperature": self.teacher_temperature}

    def step(self, model: nn.Module, batch: Crops) -> dict[str, Tensor]:
        """Step of the loop: loss of a forward pass, its metrics, its part of the batch statistics."""
        networks = self.model.networks
        backbone = networks.student.backbone
        device = next(backbone.parameters()).device
        crops = list(batch.crops)
        if isinstance(backbone, ShardedLongViT):
            crops = [crop[:, :, slice(*backbone.rows_px(crop.shape[2]))] for crop in crops]
        outputs = networks([crop.to(device, non_blocking=True) for crop in crops], packed=self.packed)
        terms = self.model.loss(*outputs, teacher_temperature=self.teacher_temperature)
        return {"loss": terms.loss, **terms.metrics(), "statistics": terms.statistics}

    def metrics(self, statistics: Tensor) -> Mapping[str, Tensor]:
        return {"mean_kl_to_uniform": mean_kl_to_uniform(statistics)}

    def transform_gradients(self, gradients: Sequence[Tensor], norm: float) -> None:
        clip_each(gradients, self.schedules.settings.clip_norm)

    def after_step(self, step: int, statistics: Tensor | None) -> None:
        assert statistics is not None
        self.model.networks.update_teacher(self.schedules.teacher_momentum(step))
        self.model.loss.update_center(statistics)
