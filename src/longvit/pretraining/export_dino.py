"""A model folder, or the folder of a pretraining, as one checkpoint in the layout of DINO's code.

    RUN/checkpoints/  student, teacher, both heads, centre: the newest valid one     RUN/teacher/  the config
    MODEL/            a backbone: a teacher without head

The layout is that of `longvit.model.dino_checkpoint`. The inverse is `longvit convert` (a model) or
`longvit.dino.load_published`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from longvit.errors import InputError
from longvit.model.dino_checkpoint import DinoCheckpoint, write_dino
from longvit.model.longvit import LongViT
from longvit.model.pretrained import load_model
from longvit.training.checkpoint import read_checkpoint

# of `pretraining.rule.SelfDistillation` in a checkpoint of the loop
_STUDENT, _TEACHER, _CENTER = "model.networks.student.", "model.networks.teacher.", "model.loss.center"


def publish(folder: str | Path, path: str | Path) -> DinoCheckpoint:
    """Writes the file `path`; → what is in it.

    Raises InputError: neither a model nor a pretraining; a model that was fine-tuned, or of tile features; no
    checkpoint in the run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        raise InputError(f"{folder}: {what}; the layout of DINO is made of a model folder or that of a pretraining")
    if (folder / "config.json").is_file():
        checkpoint = _of_model(folder)
    elif (folder / "teacher" / "config.json").is_file():
        checkpoint = _of_run(folder)
    else:
        raise InputError(
            f"{folder}: neither a model folder (config.json) nor that of a pretraining (teacher/config.json)"
        )
    write_dino(path, checkpoint)
    return checkpoint


def _of_model(folder: Path) -> DinoCheckpoint:
    model = _backbone(folder)
    tensors = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    return DinoCheckpoint(teacher=tensors, settings=asdict(model.config))


def _of_run(folder: Path) -> DinoCheckpoint:
    config = _backbone(folder / "teacher").config
    saved = read_checkpoint(folder / "checkpoints")
    if saved is None:
        raise InputError(
            f"{folder / 'checkpoints'}: no checkpoint in it; give {folder / 'teacher'} for the teacher's backbone alone"
        )
    student, teacher = (_below(prefix, saved.tensors) for prefix in (_STUDENT, _TEACHER))
    if not student or not teacher or _CENTER not in saved.tensors:
        raise InputError(f"{saved.path}: not a checkpoint of a pretraining: no student, teacher and centre in it")
    return DinoCheckpoint(teacher, student, saved.tensors[_CENTER], len(saved.state.get("epochs", ())), asdict(config))


def _backbone(folder: Path) -> LongViT:
    """The model of a folder, if it is one that DINO's code would make."""
    model = load_model(folder)
    if not isinstance(model, LongViT):
        raise InputError(f"{folder}: a model of tile features; the layout of DINO is that of a LongViT")
    if model.num_classes or model.config.pool_norm != "token_norm":
        has = f"a head for {model.num_classes} outputs" if model.num_classes else "its norm after the mean"
        raise InputError(
            f"{folder}: a fine-tuned model ({has}); the layout of DINO is that of a pretrained backbone, whose norm "
            "stands before the mean"
        )
    return model


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
