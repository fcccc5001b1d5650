"""Export of a model or of a pretraining run as one checkpoint in the layout of DINO's code.

    RUN/checkpoints/  newest valid checkpoint: student, teacher, both heads, centre     RUN/teacher/  config
    MODEL/            a backbone, exported as a teacher without head

The layout is described in `longvit.model.dino_checkpoint`. The inverse is `longvit convert` (a model) or
`longvit.dino.dino_checkpoint.load_published`.
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

# Names of `pretraining.dino_method.SelfDistillation` in a checkpoint of the training loop.
_STUDENT, _TEACHER, _CENTER = "model.networks.student.", "model.networks.teacher.", "model.loss.center"


def publish(folder: str | Path, path: str | Path) -> DinoCheckpoint:
    """Writes the file `path`; returns its content.

    Raises `InputError`: neither a model nor a pretraining run; a fine-tuned model, or one of tile features; no
    checkpoint in the run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        raise InputError(f"{folder}: {what}; give a model folder or the folder of a pretraining run")
    if (folder / "config.json").is_file():
        checkpoint = _from_model(folder)
    elif (folder / "teacher" / "config.json").is_file():
        checkpoint = _from_run(folder)
    else:
        raise InputError(f"{folder}: neither a model folder (config.json) nor a pretraining run (teacher/config.json)")
    write_dino(path, checkpoint)
    return checkpoint


def _from_model(folder: Path) -> DinoCheckpoint:
    model = _backbone(folder)
    tensors = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    return DinoCheckpoint(teacher=tensors, settings=asdict(model.config))


def _from_run(folder: Path) -> DinoCheckpoint:
    config = _backbone(folder / "teacher").config
    saved = read_checkpoint(folder / "checkpoints")
    if saved is None:
        raise InputError(
            f"{folder / 'checkpoints'}: no checkpoint in it; give {folder / 'teacher'} for the teacher's backbone only"
        )
    student, teacher = (_with_prefix(prefix, saved.tensors) for prefix in (_STUDENT, _TEACHER))
    if not student or not teacher or _CENTER not in saved.tensors:
        raise InputError(f"{saved.path}: not a checkpoint of a pretraining run: it has no student, teacher and centre")
    return DinoCheckpoint(teacher, student, saved.tensors[_CENTER], len(saved.state.get("epochs", ())), asdict(config))


def _backbone(folder: Path) -> LongViT:
    """Loads the model of a folder; `InputError` unless it is a pretrained backbone."""
    model = load_model(folder)
    if not isinstance(model, LongViT):
        raise InputError(f"{folder}: a model of tile features; only a LongViT can be exported")
    if model.num_classes or model.config.pool_norm != "token_norm":
        has = f"a head for {model.num_classes} outputs" if model.num_classes else "its norm after the mean"
        raise InputError(
            f"{folder}: a fine-tuned model ({has}); only a pretrained backbone can be exported, with its norm before "
            "the mean"
        )
    return model


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
