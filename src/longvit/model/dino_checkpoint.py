"""Checkpoints as DINO's code leaves them (`main_dino.py`), in which the authors pretrained LongViT: read and written.

    {"student": {"module.backbone.…", "module.head.…"}, "teacher": {"backbone.…", "head.…"},
     "dino_loss": {"center": (1, K)}, "epoch": …, "args": …}

Below `backbone.` stand the names of the authors' model: `encoder.layers.0.self_attn.q_proj.weight` …, `pos_embed`,
`norm` (the LayerNorm before the mean). The head's names are the same here and there.

What differs in a file that is written here: no state of the optimiser; `args` is no object but a dict of our settings.
So it opens with `torch.load(weights_only=True)`, and says what its tensors do not tell (heads, segments).

K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longvit.errors import InputError
from longvit.files import atomic_path
from longvit.model.checkpoints import LONGVIT_NAMES, named, published, read_content, translated
from longvit.torch_file import require_plain

_UNTOLD = ("num_heads", "segment_lengths", "dilated_ratios", "gradient", "ragged", "image_px", "fit")


@dataclass(frozen=True)
class DinoCheckpoint:
    """What a file holds, under our names: `backbone.blocks.0.attn.qkv.weight` …, `head.mlp.0.weight` ….

    teacher, student: None for a network that is not in the file; one may come without its head.
    center: (1, K), of the teacher's outputs. epoch: how many are done.
    settings: of the backbone, as in `LongViTConfig`; empty for a file from elsewhere.
    """

    teacher: Mapping[str, Tensor] | None = None
    student: Mapping[str, Tensor] | None = None
    center: Tensor | None = None
    epoch: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_dino(path: str | Path, checkpoint: DinoCheckpoint) -> Path:
    """Writes `checkpoint` to the file `path`, atomically; → path. What it lacks is left out."""
    from longvit import __version__

    path, c = Path(path), checkpoint
    if path.is_dir():
        raise InputError(f"{path}: a folder; give the checkpoint a file name, for example {path / 'dino.pth'}")
    content: dict[str, Any] = {}
    if c.student is not None:
        content["student"] = {f"module.{name}": value for name, value in _theirs(c.student).items()}
    if c.teacher is not None:
        content["teacher"] = _theirs(c.teacher)
    if c.center is not None:
        content["dino_loss"] = {"center": c.center.detach().cpu()}
    if c.epoch is not None:
        content["epoch"] = c.epoch
    content["args"] = {"longvit_version": __version__, **c.settings}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch says where it stood, the disk said why
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
    return path


def read_dino(path: str | Path) -> DinoCheckpoint:
    """A file of this layout, DINO's or ours. Raises InputError as `read_content` does, and for another layout."""
    content = read_content(path)
    if not isinstance(content, Mapping) or not {"teacher", "student"} & set(content):
        held = named(content) if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"{path}: no DINO checkpoint: neither teacher nor student in it; it holds {held}")
    networks = {name: _ours(content[name], path, name) for name in ("teacher", "student") if name in content}
    loss = content.get("dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else None
    if isinstance(center, Tensor):
        require_plain(center, "dino_loss.center", path)
    epoch = content.get("epoch")
    return DinoCheckpoint(
        networks.get("teacher"),
        networks.get("student"),
        center if isinstance(center, Tensor) else None,
        epoch if isinstance(epoch, int) else None,
        stored_settings(content),
    )


def stored_settings(content: Any) -> dict[str, Any]:
    """What the tensors do not tell, from the content of a file that was written here; of another one, nothing."""
    args = content.get("args") if isinstance(content, Mapping) else None
    if not isinstance(args, Mapping) or "longvit_version" not in args:
        return {}
    return {name: args[name] for name in _UNTOLD if name in args}


def _theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network under our names → under DINO's."""
    plain = {name: value.detach().cpu() for name, value in tensors.items()}
    backbone = published(_below("backbone.", plain), LONGVIT_NAMES)
    head = {name: value for name, value in plain.items() if name.startswith("head.")}
    return {**{f"backbone.{name}": value for name, value in backbone.items()}, **head}


def _ours(tensors: Any, path: str | Path, which: str) -> dict[str, Tensor]:
    """A network under DINO's names → under ours. What no rule knows keeps its name: `load_strictly` reports it."""
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{path}: its {which} is not a table of tensors")
    for name, value in tensors.items():
        require_plain(value, str(name), path)
    plain = {str(name).removeprefix("module."): value for name, value in tensors.items()}
    backbone = translated(_below("backbone.", plain), LONGVIT_NAMES)
    rest = {name: value for name, value in plain.items() if not name.startswith("backbone.")}
    return {**{f"backbone.{name}": value for name, value in backbone.items()}, **rest}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
