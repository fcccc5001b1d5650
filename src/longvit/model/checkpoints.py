"""Published checkpoints: reading the file, and translation of its parameter names.

A file is opened without running code from it: safetensors, or `torch.load(weights_only=True)`. Names are translated by
one table, in both directions. A key without a parameter, or a parameter without a key, is an error that names it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from longvit.errors import InputError
from longvit.torch_file import TooMuchError, load_tensors, refusal, refuse_hollow, require_plain

Model = TypeVar("Model", bound=nn.Module)
_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_PREFIXES = ("module.", "backbone.", "model.", "slide_encoder.")
_LAYER = {  # torchscale's name in an encoder layer → ours
    "self_attn_layer_norm": "attn.norm_in",
    "self_attn.inner_attn_ln": "attn.norm",
    "self_attn.out_proj": "attn.proj",
    "final_layer_norm": "mlp.norm_in",
    "ffn.fc1": "mlp.fc1",
    "ffn.ffn_layernorm": "mlp.norm",
    "ffn.fc2": "mlp.fc2",
}
LONGVIT_NAMES = {"pos_embed": "patch_embed.pos_embed", "norm": "fc_norm"}
"""Names outside the layers, the authors' → ours, in a LongViT pretrained with DINO; one with a head has `fc_norm`."""
_DINO_HEAD = re.compile(r"head\.(mlp|last_layer)\b")


def read_tensors(path: str | Path, *, which: str = "teacher") -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth, .pt or .bin file, without its wrappers and prefixes.

    `which`: "teacher" or "student", in a DINO checkpoint that holds both. Raises InputError as `read_content` does, and
    for a file without weights.
    """
    return unwrapped(read_content(path), path, which)


def read_content(path: str | Path) -> Any:
    """The content of a .safetensors, .pth, .pt or .bin file.

    Raises:
        InputError: no such file; a Git-LFS pointer; a pickle that wants to run code; damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a checkpoint; `longvit convert --to dino` makes one of a model folder")
    refuse_hollow(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: not read: {error.strerror}") from error
    if not head:
        raise InputError(f"{path}: the file is empty; copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git-LFS pointer, not the weights; run `git lfs pull` where it came from")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # its header may name an unknown dtype
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a whole safetensors file ({text}); copy or download it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        return load_tensors(path, [argparse.Namespace])  # DINO stores its command line in the file; it runs nothing
    except Exception as error:  # torch raises many types for a bad file
        if wanted := refusal(error):
            raise InputError(
                f"{path}: refused: the pickle wants to run {wanted}; save its tensors alone, as safetensors"
            ) from error
        detail = f": {error}" if isinstance(error, TooMuchError) else ""
        raise InputError(
            f"{path}: not a readable checkpoint ({type(error).__name__}{detail}); copy or download it again"
        ) from error


def unwrapped(content: Any, path: str | Path, which: str) -> dict[str, Tensor]:
    """The backbone in the result of `read_content`, or InputError."""
    if isinstance(content, Mapping) and {"teacher", "student"} & set(content):
        if which not in content:
            raise InputError(f"{path}: holds no {which!r}; it holds {named(content)}")
        content = content[which]
    seen: set[int] = set()
    while isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        inner = next((content[name] for name in _WRAPPERS if name in content), None)
        if inner is None or id(inner) in seen:
            raise InputError(f"{path}: no weights in it; it holds {named(content)}")
        seen.add(id(inner))
        content = inner
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: no weights in it, but a {type(content).__name__}")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for prefix in _PREFIXES * 2:
        known = {k: v for k, v in tensors.items() if not _DINO_HEAD.match(k)}
        if any(k.startswith(prefix + "encoder.") or k.startswith(prefix + "patch_embed.") for k in known) or (
            prefix in ("module.", "backbone.") and any(k.startswith(prefix) for k in known)
        ):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    tensors = {k: v for k, v in tensors.items() if not _DINO_HEAD.match(k)}
    for name, tensor in tensors.items():
        require_plain(tensor, name, path)
    return tensors


def is_published(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of the authors' code (torchscale's encoder)."""
    return any(k.startswith("encoder.layers.") for k in tensors)


def translated(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """torchscale's names → ours; q, k and v become one matrix. `names` translates the names outside the layers.

    An unknown key keeps its name, and `load_strictly` then reports it.
    """
    ours: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            stem = next((s for s in names if key == s or key.startswith(s + ".")), None)
            ours[key if stem is None else names[stem] + key.removeprefix(stem)] = value
            continue
        layer, part, kind = match.groups()
        if part in _LAYER:
            ours[f"blocks.{layer}.{_LAYER[part]}.{kind}"] = value
        elif part == "self_attn.q_proj":
            parts = [tensors.get(f"encoder.layers.{layer}.self_attn.{x}_proj.{kind}") for x in "qkv"]
            if all(p is not None and p.ndim and p.shape == value.shape for p in parts):
                ours[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
            else:
                ours[key] = value
        elif part not in ("self_attn.k_proj", "self_attn.v_proj") or (
            f"encoder.layers.{layer}.self_attn.q_proj.{kind}" not in tensors
        ):
            ours[key] = value
    return ours


def published(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Our names → torchscale's, the inverse of `translated` with the same `names`; q, k and v are split again."""
    in_layer, outside = ({ours: published for published, ours in table.items()} for table in (_LAYER, names))
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            stem = next((s for s in outside if key == s or key.startswith(s + ".")), None)
            renamed[key if stem is None else outside[stem] + key.removeprefix(stem)] = value
            continue
        layer, part, kind = match.groups()
        if part == "attn.qkv":
            for x, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"encoder.layers.{layer}.self_attn.{x}_proj.{kind}"] = third.clone()
        else:
            renamed[f"encoder.layers.{layer}.{in_layer[part]}.{kind}"] = value
    return renamed


def depth_of(tensors: Mapping[str, Tensor]) -> int:
    """Number of encoder layers in a published state dict."""
    numbers = (re.match(r"encoder\.layers\.(\d{1,9})\.", key) for key in tensors)
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Fills every parameter of `model` from `tensors`: no missing key, no extra key, every value finite.

    Raises InputError with the reason: missing and extra keys, both shapes, non-finite values.
    """
    _check_fit(model, tensors, path)
    model.load_state_dict(dict(tensors))


def filled(make: Callable[[], Model], tensors: Mapping[str, Tensor], path: str | Path) -> Model:
    """The model from `make`, filled from `tensors` as by `load_strictly`.

    It is first built on the meta device, so a file that declares 10⁹ weights and holds ten is refused without memory.
    """
    with torch.device("meta"):
        _check_fit(make(), tensors, path)
    model = make()
    model.load_state_dict(dict(tensors))
    return model


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        parts = [f"{verb} {_few(keys)}" for verb, keys in (("lacks", missing), ("also has", extra)) if keys]
        raise InputError(f"{path}: these are not the weights of this model: the file {' and '.join(parts)}")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} is {_shape(value)} in the file, {_shape(own[name])} in the model: a checkpoint of "
                "another size"
            )
        if not value.is_floating_point() or not torch.isfinite(value.float()).all():
            bad = "not floating point" if not value.is_floating_point() else "NaN or infinite"
            raise InputError(f"{path}: {name} is {bad}; take an earlier checkpoint")


def named(content: Mapping[Any, Any]) -> str:
    """The first keys of a mapping as text, for error messages."""
    names = [" ".join(str(name)[:40].split()) for name in list(content)[:8]]
    return ", ".join([*names, *(["…"] if len(content) > 8 else [])]) or "nothing"


def _few(keys: list[str]) -> str:
    return ", ".join(" ".join(key[:80].split()) for key in keys[:3]) + (
        f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    )


def _shape(x: Tensor) -> str:
    return " × ".join(map(str, x.shape)) or "a number"
