"""Student, teacher and centre in checkpoints with the layout of DINO's code (`longvit.model.dino_checkpoint`).

They hold weights only, without the optimiser's moments, so a run that starts from one restarts its schedules. An
interrupted run resumes from its own checkpoints, bit-exactly.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from longvit.dino.loss import DinoLoss
from longvit.dino.student_teacher import StudentTeacher
from longvit.errors import InputError
from longvit.model.checkpoints import load_strictly
from longvit.model.dino_checkpoint import DinoCheckpoint, read_dino, write_dino


def save_published(
    networks: StudentTeacher, path: str | Path, *, loss: DinoLoss | None = None, epoch: int | None = None
) -> Path:
    """Writes both networks, and the centre of `loss` if given, to the file `path`; → path."""
    checkpoint = DinoCheckpoint(
        networks.teacher.state_dict(),
        networks.student.state_dict(),
        None if loss is None else loss.center,
        epoch,
        asdict(networks.teacher.backbone.config),
    )
    return write_dino(path, checkpoint)


def load_published(
    networks: StudentTeacher, path: str | Path, *, loss: DinoLoss | None = None, fresh_head: bool = False
) -> tuple[str, ...]:
    """Loads both networks, and the centre of `loss` if given, from a DINO checkpoint; → names of parts that keep their
    initial values.

    A network missing in the file gets the other one's weights, as at the start of a run. With `fresh_head` the heads
    and the centre, which belong to the prototypes, keep their values. Call it before a model is sharded over ranks.

    Raises InputError for a file that is not a DINO checkpoint, and for a backbone or head of another size (both
    shapes). It also refuses another number of attention heads, and a file without head unless `fresh_head`.
    """
    checkpoint = read_dino(path)
    heads = networks.student.backbone.config.num_heads
    if checkpoint.settings.get("num_heads", heads) != heads:
        raise InputError(
            f"{path}: a model with {checkpoint.settings['num_heads']} attention heads, this one has {heads}"
        )
    fresh: list[str] = []
    for name, network, stored, fallback in (
        ("student", networks.student, checkpoint.student, checkpoint.teacher),
        ("teacher", networks.teacher, checkpoint.teacher, checkpoint.student),
    ):
        tensors = dict(stored or fallback or {})
        head = {key: value for key, value in tensors.items() if key.startswith("head.")}
        if fresh_head:
            tensors = {key: value for key, value in tensors.items() if key not in head}
            tensors |= {f"head.{key}": value for key, value in network.head.state_dict().items()}
            fresh.append(f"head of the {name}")
        elif not head:
            raise InputError(
                f"{path}: no head in it, only a backbone; use the checkpoint of the whole run, or start with a fresh "
                "head"
            )
        load_strictly(network, tensors, path)
    if loss is not None and checkpoint.center is not None and not fresh_head:
        load_strictly(loss, {"center": checkpoint.center}, path)
    elif loss is not None:
        fresh.append("centre")
    return tuple(fresh)
