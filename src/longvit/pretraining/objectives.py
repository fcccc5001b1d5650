"""Objectives of a pretraining: the module that is trained, the networks in it, and their training method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from longvit.dino.schedules import Schedules
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.pretraining.dino_method import DinoMethod, SelfDistillation
from longvit.pretraining.settings import PretrainSettings
from longvit.pretraining.starting_networks import start_backbone, start_from
from longvit.pretraining.texture_method import TextureMethod, TextureRegression

Method = DinoMethod | TextureMethod


@dataclass(frozen=True)
class Objective:
    """Parts of an objective."""

    model: nn.Module
    """Everything that a checkpoint holds."""
    method: Method
    prepare: Callable[[Sequence[NDArray[np.uint8]]], None] = lambda regions: None
    """Called with the monitored regions, before the first step and before a resume."""

    @property
    def trained(self) -> LongViT:
        """Network that the optimiser trains."""
        model = self.model
        return model.networks.student.backbone if isinstance(model, SelfDistillation) else _backbone(model)

    @property
    def evaluated(self) -> LongViT:
        """Network that is evaluated and saved: DINO's teacher, or the trained one."""
        model = self.model
        return model.networks.teacher.backbone if isinstance(model, SelfDistillation) else _backbone(model)


def make_objective(config: LongViTConfig, settings: PretrainSettings, schedules: Schedules) -> Objective:
    """The objective that the settings name, with their starting weights; draws from torch's global random state."""
    if settings.objective == "texture":
        texture = TextureRegression(config, settings.drop_path)
        if settings.weights is not None:
            start_backbone(texture.backbone, settings.weights)
        method = TextureMethod(texture, schedules, recolour=settings.recolour)
        return Objective(texture, method, texture.fit_whitening)
    model = SelfDistillation(config, settings)
    if settings.weights is not None:
        start_from(model, settings.weights)
    return Objective(model, DinoMethod(model, schedules, packed=settings.packed))


def _backbone(model: nn.Module) -> LongViT:
    assert isinstance(model, TextureRegression)
    return model.backbone
