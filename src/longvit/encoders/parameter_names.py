"""Parameter names of published encoders, translated to those of the networks that `networks` builds.

- timm: timm's own names, perhaps with a classifier, which is left out.
- transformers: `ViTModel` and `Dinov2Model`; query, key and value become one matrix.
- conch: the image half of the CoCa model, below `visual.`; the parts for captions are left out.
- conch_v1_5: trunk and pooling, as they are.

An unknown name is kept, and `checkpoints.filled` reports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from longvit.encoders.presets import Names

if TYPE_CHECKING:
    from torch import Tensor

_OUTSIDE = {  # transformers' names outside the layers → timm's
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_LAYER = {  # transformers' names in a layer → timm's; ViTModel and Dinov2Model have no name in common that differs
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
_QKV = ("query", "key", "value")
_UNUSED = {
    "timm": ("head.", "fc."),
    "transformers": ("pooler.", "classifier.", "embeddings.mask_token"),
    "conch": ("attn_pool_caption.", "ln_caption.", "proj_contrast"),
    "conch_v1_5": (),
}


def translated(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Tensors of a file under the names of the network; those without a place in it are left out."""
    if names == "conch":
        tensors = {key.removeprefix("visual."): t for key, t in tensors.items() if key.startswith("visual.")}
    if names == "transformers":
        tensors = {re.sub(r"^(vit|dinov2)\.", "", key): tensor for key, tensor in tensors.items()}
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_UNUSED[names])}
    if names == "transformers":
        tensors = _of_transformers(tensors)
    pooled = names in ("conch", "conch_v1_5")
    return {key if pooled else f"trunk.{key}": tensor.float() for key, tensor in tensors.items()}


def _of_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    ours: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)", key)
        if match is None:
            stem = next((stem for stem in _OUTSIDE if key == stem or key.startswith(stem + ".")), None)
            ours[key if stem is None else _OUTSIDE[stem] + key.removeprefix(stem)] = value
            continue
        layer, part, kind = match.groups()
        block = f"blocks.{layer}"
        if kind == "lambda1":  # layer_scale1 → ls1
            ours[f"{block}.{part.replace('layer_scale', 'ls')}.gamma"] = value
        elif part in _LAYER:
            ours[f"{block}.{_LAYER[part]}.{kind}"] = value
        elif part.removeprefix("attention.attention.") in _QKV:
            parts = [tensors.get(f"encoder.layer.{layer}.attention.attention.{x}.{kind}") for x in _QKV]
            if all(p is not None and p.shape == value.shape for p in parts):
                ours[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
            else:
                ours[key] = value
        else:
            ours[key] = value
    return ours
