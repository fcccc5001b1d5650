"""Names of tile encoders: `timm:NAME`, `longvit:FOLDER`, `uni2-h`, `uni2-h=FILE` … (`tile_encoders` opens them)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from longvit.encoders.presets import PRESETS, Preset
from longvit.errors import InputError

FORMS: Mapping[str, str] = {
    "stain-texture": "stain-texture",
    "timm": "timm:NAME",
    "hipt": "hipt:FILE",
    "longvit": "longvit:FOLDER",
    "torchscript": "torchscript:FILE",
    "export": "export:FILE",
}
"""Kind of an encoder -> form of its name; published encoders are beside these."""


def split_preset(spec: str) -> tuple[Preset, str] | None:
    """The published encoder that a name stands for and its file ("" where none is given); None for other encoders."""
    name, _, file = spec.partition("=")
    return (PRESETS[name], file) if name in PRESETS and spec != f"{name}=" else None


def located(spec: str, *, download: bool = False) -> str:
    """The same encoder with the file of its weights, which for a published encoder may be fetched from the hub.

    Raises `InputError` in one line with the page to visit where it has none; see `encoders.weights.weights_file`.
    """
    named = split_preset(spec)
    if named is None or named[1]:
        return spec
    from longvit.encoders.weights import weights_file

    return f"{spec}={weights_file(named[0], download=download)}"


def check_tiles(spec: str, tile_px: int, mpp: float) -> None:
    """Raises `InputError` for tiles that a published encoder was not made for."""
    if (named := split_preset(spec)) is not None:
        named[0].check_tiles(tile_px, mpp)


def encoder_name(spec: str) -> str:
    """Name of the folder of an encoder's features: `timm:resnet50` -> `timm-resnet50`. Raises `InputError` for an
    unknown kind."""
    if (named := split_preset(spec)) is not None:
        return named[0].name
    kind, source = split(spec)
    name = source
    if kind in ("hipt", "torchscript", "export"):
        name = Path(source).stem
    elif kind != "timm":
        name = Path(source).name
    return re.sub(r"[^\w.+-]+", "-", f"{kind}-{name}" if source else kind)


def absolute(spec: str) -> str:
    """The same encoder with an absolute path, for processes with another working directory."""
    if (named := split_preset(spec)) is not None:
        return f"{named[0].name}={Path(named[1]).absolute()}" if named[1] else spec
    kind, source = split(spec)
    return f"{kind}:{Path(source).absolute()}" if kind != "timm" and source and Path(source).exists() else spec


def split(spec: str) -> tuple[str, str]:
    """Kind and source of an encoder's name."""
    kind, _, source = spec.partition(":")
    if kind not in FORMS or bool(source) == (kind == "stain-texture"):
        raise InputError(f"--encoder {spec}: take one of {', '.join(FORMS.values())}, or a name of `longvit encoders`")
    return kind, source
