"""What student and teacher start from: a named size at random, a model folder, or a checkpoint in DINO's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from longvit.errors import InputError
from longvit.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    from longvit.model.longvit import LongViTConfig
    from longvit.pretraining.dino_method import SelfDistillation


def backbone_config(settings: PretrainSettings) -> LongViTConfig:
    """The backbone's, of a named size or of `settings.weights`."""
    from longvit.model.longvit import SIZES, LongViT
    from longvit.model.pretrained import convert, load_model

    if settings.weights is not None:
        loaded = convert(settings.weights) if settings.weights.is_file() else load_model(settings.weights)
        if not isinstance(loaded, LongViT):
            raise InputError(f"{settings.weights}: a model of tile features; regions of slides need a LongViT")
        config = loaded.config
        if config.positions == "per_patch":
            raise InputError(f"{settings.weights}: one position per patch; crops of several sizes need a grid of them")
    elif settings.model not in SIZES:
        raise InputError(f"--model {settings.model}: choose {', '.join(SIZES)}")
    else:
        config = SIZES[settings.model]
    for name in ("global_px", "local_px"):
        if (side_px := getattr(settings, name)) % config.patch_px or side_px < config.patch_px:
            raise InputError(f"{name} {side_px}: not a multiple of the model's patch of {config.patch_px} px")
    return replace(config, image_px=settings.global_px, num_classes=0, class_names=())


def start_from(model: SelfDistillation, weights: Path) -> None:
    """Student and teacher from a model folder, their heads stay at random; or both, heads and centre from a checkpoint
    in DINO's layout."""
    from longvit.dino.dino_checkpoint import load_published
    from longvit.model.pretrained import load_model

    if weights.is_file():
        load_published(model.networks, weights, loss=model.loss)
        return
    loaded = load_model(weights).state_dict()
    own = {name: tensor for name, tensor in loaded.items() if not name.startswith("head.")}
    for network in (model.networks.student, model.networks.teacher):
        network.backbone.load_state_dict(own)
