"""Networks of published encoders: timm's trunk, and the pooling of its tokens to the vector of a tile.

B tiles, P side of the input, N tokens, C width of the tokens, D width of the vector.
"""

from __future__ import annotations

import re
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longvit.encoders.attention_pooling import PooledByMultihead, PooledByProjections
from longvit.encoders.presets import Preset
from longvit.errors import InputError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable


OLDEST_TIMM = (1, 0, 26)
"""Older ones, e.g. 1.0.15, cannot build a network without memory, on the meta device."""


class PublishedEncoder(nn.Module):
    """Network of a preset: normalised images (B, 3, P, P) → vectors (B, D)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.pooling, self.prefix_tokens = preset.pooling, preset.prefix_tokens
        self.trunk = _trunk(preset)
        width = self.trunk.num_features
        if preset.names == "conch":
            self.attn_pool_contrast: nn.Module = PooledByMultihead(width, preset.dim)
        elif preset.names == "conch_v1_5":
            self.attn_pool_contrast = PooledByProjections(width, preset.dim)
        if preset.pooling == "attention":
            self.ln_contrast = nn.LayerNorm(preset.dim)

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, N, C) after the last norm: class token, registers, patches row by row."""
        return self.trunk.forward_features(images)

    def forward(self, images: Tensor) -> Tensor:
        if self.pooling == "average":
            return self.trunk(images)
        tokens = self.tokens(images)
        if self.pooling == "attention":
            return self.ln_contrast(self.attn_pool_contrast(tokens))
        cls = tokens[:, 0]
        return cls if self.pooling == "cls" else torch.cat([cls, tokens[:, self.prefix_tokens :].mean(1)], dim=1)


def timm_package() -> ModuleType:
    """The package timm. Raises `InputError` in one line where it is not installed, too old, or cannot be imported."""
    if find_spec("timm") is None:
        raise InputError("the package timm is not installed; pip install 'longvit[encoders]'")
    try:
        import timm
    except Exception as error:  # torchvision of another build of torch fails in many ways
        raise InputError(
            f"the package timm cannot be imported ({one_line(error, 120)}); install the torchvision that belongs to "
            f"torch {torch.__version__}, from the same index as torch"
        ) from error
    if tuple(int(number) for number in re.findall(r"\d+", timm.__version__)[:3]) < OLDEST_TIMM:
        raise InputError(f"timm {timm.__version__} is too old; pip install -U 'longvit[encoders]'")
    return timm


def _trunk(preset: Preset) -> Any:
    timm = timm_package()
    arguments: dict[str, Any] = dict(preset.arguments)
    if preset.swiglu:
        arguments |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    if preset.tokens:
        norm: Callable[..., nn.Module] = partial(nn.LayerNorm, eps=preset.norm_eps)
        arguments |= {"global_pool": "token", "norm_layer": norm}
    return timm.create_model(preset.network, pretrained=False, num_classes=0, **arguments)
