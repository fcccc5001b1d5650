"""Starting networks of student and teacher: a named size at random, a model folder, or a DINO checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from longvit.errors import InputError
from longvit.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT, LongViTConfig
    from longvit.pretraining.dino_method import SelfDistillation


def backbone_config(settings: PretrainSettings) -> LongViTConfig:
    """Config of the backbone, of a named size or of `settings.weights`."""
    from longvit.model.longvit import SIZES, LongViT
    from longvit.model.pretrained import convert, load_model

    if settings.weights is not None:
        loaded = convert(settings.weights) if settings.weights.is_file() else load_model(settings.weights)
        if not isinstance(loaded, LongViT):
            raise InputError(f"{settings.weights}: a model of tile features; pretraining on regions needs a LongViT")
        config = loaded.config
        if config.positions == "per_patch":
            raise InputError(
                f"{settings.weights}: one position per patch; crops of several sizes need a grid of positions"
            )
    elif settings.model not in SIZES:
        raise InputError(f"--model {settings.model}: choose {', '.join(SIZES)}")
    else:
        config = SIZES[settings.model]
    for name in ("global_px", "local_px"):
        if (side_px := getattr(settings, name)) % config.patch_px or side_px < config.patch_px:
            raise InputError(f"{name} {side_px}: not a multiple of the model's patch of {config.patch_px} px")
    return replace(config, image_px=settings.global_px, num_classes=0, class_names=())


def start_from(model: SelfDistillation, weights: Path) -> None:
    """Loads student and teacher from a model folder (heads stay random), or with heads and centre from a checkpoint."""
    from longvit.dino.dino_checkpoint import load_published

    if weights.is_file():
        load_published(model.networks, weights, loss=model.loss)
        return
    for network in (model.networks.student, model.networks.teacher):
        start_backbone(network.backbone, weights)


def start_backbone(backbone: LongViT, weights: Path) -> None:
    """Loads a backbone from a model folder or a checkpoint, without its head."""
    from longvit.model.pretrained import convert, load_model

    loaded = (convert(weights) if weights.is_file() else load_model(weights)).state_dict()
    backbone.load_state_dict({name: tensor for name, tensor in loaded.items() if not name.startswith("head.")})
