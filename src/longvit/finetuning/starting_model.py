"""Starting model of a fine-tuning: pretrained weights with a new head, or random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from longvit.errors import InputError
from longvit.finetuning.settings import FinetuneSettings

if TYPE_CHECKING:
    from longvit.model.longvit import LongViT


def starting_model(settings: FinetuneSettings, outputs: Sequence[str], *, random: bool = False) -> LongViT:
    """Model before its first step: `settings.weights` with a new head, or (also if `random`) random weights.

    With `settings.keep_head` the head of the weights stays.

    `outputs`: names of the head's outputs. Raises `InputError`: no such model, weights of another kind, a size that the
    weights do not fit.
    """
    import torch

    from longvit.model.longvit import SIZES, LongViT
    from longvit.model.pretrained import load_model

    if settings.weights is None and settings.model not in SIZES:
        raise InputError(f"--model {settings.model}: choose {', '.join(SIZES)}")
    loaded = None if settings.weights is None else load_model(settings.weights)
    if loaded is not None and not isinstance(loaded, LongViT):
        raise InputError(f"{settings.weights}: a model of tile features; fine-tuning on slides needs a LongViT")
    start = SIZES[settings.model] if loaded is None else loaded.config
    if start.positions == "per_patch" and start.image_px != settings.side_px:
        raise InputError(
            f"{settings.weights}: one position per patch of {start.image_px} px; use --side-px {start.image_px}, or "
            f"weights with positions on the pretraining grid"
        )
    if settings.side_px % start.patch_px:
        raise InputError(f"--side-px {settings.side_px}: not a multiple of the model's patch of {start.patch_px} px")
    config = replace(
        start,
        num_classes=len(outputs),
        class_names=tuple(outputs),
        task=settings.task,
        drop_path=settings.drop_path,
        image_px=settings.side_px,
        fit=settings.fit,
    )
    torch.manual_seed(settings.seed)
    model = LongViT(config)
    if settings.keep_head:
        check_head(loaded, settings, outputs)
    if loaded is not None and not random:
        own = {
            name: tensor
            for name, tensor in loaded.state_dict().items()
            if settings.keep_head or not name.startswith("head.")
        }
        missing = model.load_state_dict(own, strict=False)
        assert not missing.unexpected_keys
        assert all(name.startswith("head.") for name in missing.missing_keys), missing.missing_keys
    model.set_recompute(settings.recompute, offload=settings.offload)
    return model


def check_head(loaded: LongViT | None, settings: FinetuneSettings, outputs: Sequence[str]) -> None:
    """Raises `InputError` where the head of the starting weights cannot be kept: none, another task, other classes."""
    if loaded is None:
        raise InputError("keep_head: random weights have no trained head; give --weights")
    has = loaded.config
    if (has.task, tuple(has.class_names)) != (settings.task, tuple(outputs)):
        what = f"{has.task}: {', '.join(has.class_names)}" if has.num_classes else "none"
        raise InputError(
            f"{settings.weights}: its head ({what}) is not that of {settings.task}: {', '.join(outputs)}; "
            f"omit --keep-head"
        )
