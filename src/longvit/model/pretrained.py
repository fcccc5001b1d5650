"""Saving and loading models: a folder with model.safetensors and config.json; importers for published checkpoints.

    model.save_pretrained("runs/brca/model");  load_model("runs/brca/model")
    convert("longvit_small_dino.pth", num_heads=16).save_pretrained("longvit-s")

A missing or extra key, a wrong shape, a NaN or a pickle is an error that names it, never a random weight.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longvit.config import typed
from longvit.errors import InputError
from longvit.files import atomic_path, make_folder, write_text
from longvit.json_file import read_json_object
from longvit.model.checkpoints import (
    LONGVIT_NAMES,
    depth_of,
    filled,
    is_published,
    read_content,
    read_tensors,
    translated,
    unwrapped,
)
from longvit.model.dino_checkpoint import stored_settings
from longvit.model.gigapath import GigaPathConfig, GigaPathSlideEncoder
from longvit.model.longvit import LongViT, LongViTConfig

FORMAT = 1
_CONFIG_BYTES = 2**20
SHIPPED = Path(__file__).parents[1] / "weights"
"""Folder of the models shipped with the package; each has its own folder with a model card, README.md."""
_KINDS: dict[str, tuple[type, type]] = {
    "longvit": (LongViTConfig, LongViT),
    "gigapath": (GigaPathConfig, GigaPathSlideEncoder),
}
_STEM = "patch_embed.stem."
_SUB_NORMS = ("self_attn.inner_attn_ln.weight", "ffn.ffn_layernorm.weight")
_GIGAPATH_NAMES = {"patch_embed.proj": "patch_embed", "encoder.layer_norm": "encoder_norm"}


def save_pretrained(
    model: LongViT | GigaPathSlideEncoder, folder: str | Path, *, dtype: Literal["float16", "bfloat16"] | None = None
) -> Path:
    """Writes `folder`/model.safetensors and config.json, each atomically; → folder.

    dtype: half the bytes, with each weight rounded to 11 or 8 bits (config.json then has `weights_dtype`); None: the
    model's own dtype. Loading always gives float32 parameters. Raises InputError for a weight beyond float16.
    """
    from safetensors.torch import save_file

    from longvit import __version__

    folder = make_folder(folder)
    kind = next(name for name, (_, cls) in _KINDS.items() if isinstance(model, cls))
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    config = {"format": FORMAT, "model": kind, "longvit_version": __version__, **asdict(model.config)}
    if dtype is not None:
        config["weights_dtype"] = dtype
        for name, value in tensors.items():
            tensors[name] = value.to(getattr(torch, dtype))
            if not torch.isfinite(tensors[name]).all():
                raise InputError(f"{folder}: not written: {name} does not fit {dtype}; take bfloat16")
    with atomic_path(folder / "model.safetensors") as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would leave a file that only its owner may read
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return folder


def load_model(name: str | Path) -> Any:
    """A model in eval mode on the CPU, from a folder (config.json, model.safetensors), a shipped name or a hub id.

    Shipped is "longvit-tiny-stem"; a hub id is "owner/name". A folder takes precedence over the other two. Only a hub
    id downloads, and only files that are not in the hub's cache.

    Raises:
        InputError: no such folder or file; an unknown format; weights that do not fit the config (which, both shapes).

    >>> import longvit
    >>> longvit.load_model("longvit-tiny-stem").config.embed_dim
    192
    """
    folder = Path(name)
    if not folder.exists() and str(name) in shipped_names():
        folder = SHIPPED / name
    elif not folder.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
            raise InputError(
                f"{name}: no such folder; a model is a folder with config.json, {' or '.join(shipped_names())} "
                f"(shipped with longvit), or a hub id owner/name"
            )
        folder = _from_hub(str(name))
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise InputError(f"{folder}: no config.json in it; a published checkpoint is read with `longvit convert`")
    make, weights = _read_config(config_path), folder / "model.safetensors"
    return filled(make, read_tensors(weights), weights).eval()


def shipped_names() -> tuple[str, ...]:
    """Names of the models shipped with the package."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/config.json")))


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name}: no such folder; to download it from the hub, `pip install longvit[hub]` first"
        ) from None
    return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))


def _read_config(path: Path) -> Callable[[], nn.Module]:
    """→ a function that makes the model of a config.json, with random weights."""
    try:
        content = read_json_object(path, most_bytes=_CONFIG_BYTES, nan=False)
    except OSError as error:
        raise InputError(f"{path}: not read: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{error}; not the config of a longvit model") from error
    kind, version = content.pop("model", None), content.pop("format", None)
    if not isinstance(kind, str) or not isinstance(version, int):
        raise InputError(f"{path}: not the config of a longvit model (it names no model and format)")
    for note in ("longvit_version", "weights_dtype"):
        content.pop(note, None)
    if kind not in _KINDS or version > FORMAT:
        raise InputError(f"{path}: model {kind[:40]!r} in format {version} is newer than this longvit; update it")
    config_type, model_type = _KINDS[kind]
    known = {f.name for f in fields(config_type)}
    if unknown := sorted(content.keys() - known):
        few = ", ".join(key[:40] if key.isprintable() else repr(key[:40]) for key in unknown[:5])
        raise InputError(f"{path}: unknown settings {few}; update longvit")
    return partial(model_type, _config(config_type, content, path))


def _config(config_type: Any, settings: Mapping[str, Any], path: str | Path) -> Any:
    """The config from a file's settings, types and bounds checked; `InputError` names the first wrong one."""
    try:
        config = config_type(**typed(config_type, settings, path))
    except (TypeError, ValueError) as error:
        raise InputError(str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}") from error
    if config_type is LongViTConfig and (config.image_px < config.patch_px or config.image_px % config.patch_px):
        raise InputError(f"{path}: image_px {config.image_px}: a multiple of patch_px {config.patch_px} is needed")
    return config


def convert(
    path: str | Path,
    *,
    num_heads: int | None = None,
    which: str = "teacher",
    image_px: int | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    class_names: tuple[str, ...] = (),
    **settings: Any,
) -> LongViT | GigaPathSlideEncoder:
    """A published checkpoint as a model: the authors' LongViT (DINO teacher or student, fine-tuned) or Prov-GigaPath's.

    Sizes are derived from the tensors, as are stem and sub-LayerNorm. Arguments give the others: `num_heads` (16 by
    default, as in both papers), `segment_lengths` ("auto" by default). A file that longvit wrote (`dino_checkpoint`)
    states these too. Positions per patch of a larger grid than 32 × 32 give a model with `positions="per_patch"`.

    Raises InputError as `read_tensors` and `load_strictly` do.
    """
    content = read_content(path)
    tensors = unwrapped(content, path, which)
    stored = stored_settings(content)
    if not is_published(tensors):
        raise InputError(f"{path}: not a LongViT or Prov-GigaPath checkpoint: no encoder.layers.* among its names")
    ffn = _sized(tensors, "encoder.layers.0.ffn.fc1.weight", (2,), path)
    has_stem = any(name.startswith(_STEM) for name in tensors)
    key, dims = (f"{_STEM}proj.weight", (4,)) if has_stem else ("patch_embed.proj.weight", (2, 4))
    embedding = _sized(tensors, key, dims, path)
    common = {
        "depth": depth_of(tensors),
        "embed_dim": ffn.shape[1],
        "ffn_dim": ffn.shape[0],
        "num_heads": 16,
        **stored,
        **({"num_heads": num_heads} if num_heads else {}),
        **({"segment_lengths": tuple(segment_lengths)} if segment_lengths else {}),
        **settings,
    }
    if embedding.ndim == 2:
        return _gigapath(tensors, path, common)
    stored_px = common.pop("image_px", None)
    return _longvit(tensors, path, common, image_px or stored_px, class_names)


def _sized(tensors: Mapping[str, Tensor], key: str, dims: tuple[int, ...], path: str | Path) -> Tensor:
    """A tensor from which sizes are derived; `InputError` where it is missing or has other dimensions."""
    if key not in tensors:
        raise InputError(f"{path}: lacks {key}: not a whole LongViT or Prov-GigaPath checkpoint")
    if tensors[key].ndim not in dims:
        raise InputError(f"{path}: {key} has {tensors[key].ndim} dimensions, not {' or '.join(map(str, dims))}")
    return tensors[key]


def _longvit(
    tensors: dict[str, Tensor], path: str | Path, common: dict[str, Any], image_px: int | None, names: tuple[str, ...]
) -> LongViT:
    positions = _sized(tensors, "pos_embed", (3,), path).shape[1]
    side = math.isqrt(positions)
    if side * side != positions:
        raise InputError(f"{path}: {positions} positions are no square grid")
    per_patch = side > 32
    num_classes = len(_sized(tensors, "head.weight", (2,), path)) if "head.weight" in tensors else 0
    dino = "fc_norm.weight" not in tensors
    linear = tensors.get("patch_embed.proj.weight")
    convolutions = sum(name.startswith(f"{_STEM}convs.") for name in tensors)
    patch_px = linear.shape[-1] if linear is not None else 2 ** min(convolutions + 1, 30)  # each halves the patch
    settings = {
        "patch_px": patch_px,
        "stem": "conv" if linear is None else "linear",
        "sub_norm": any(name.endswith(_SUB_NORMS) for name in tensors),
        "grid_patches": min(side, 32),
        "positions": "per_patch" if per_patch else "grid",
        "image_px": side * patch_px if per_patch or image_px is None else image_px,
        "num_classes": num_classes,
        "class_names": names,
        "pool_norm": "token_norm" if dino else "fc_norm",
        **common,
    }
    config = _config(LongViTConfig, settings, path)
    ours = translated(tensors, LONGVIT_NAMES)
    if dino and "fc_norm.weight" not in ours:  # a bare backbone: the mean of its tokens, as it was pretrained
        ours |= {"fc_norm.weight": torch.ones(config.embed_dim), "fc_norm.bias": torch.zeros(config.embed_dim)}
    return filled(partial(LongViT, config), ours, path).eval()


def _gigapath(tensors: dict[str, Tensor], path: str | Path, common: dict[str, Any]) -> GigaPathSlideEncoder:
    tensors = {k: v for k, v in tensors.items() if k != "pos_embed"}  # fixed, computed from the coordinates here
    config = _config(GigaPathConfig, {"in_dim": tensors["patch_embed.proj.weight"].shape[1], **common}, path)
    return filled(partial(GigaPathSlideEncoder, config), translated(tensors, _GIGAPATH_NAMES), path).eval()
