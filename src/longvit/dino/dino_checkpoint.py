"""Student, teacher and centre to and from a checkpoint in the layout of DINO's code (`longvit.model.dino_checkpoint`).

Weights alone: the optimiser's moments are not in it, so a run that starts here starts its schedules anew. A run that
was interrupted goes on from its own checkpoints, to the bit.
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
    both: StudentTeacher, path: str | Path, *, loss: DinoLoss | None = None, epoch: int | None = None
) -> Path:
    """Writes both networks, and the centre of `loss` where given, to the file `path`; → path."""
    checkpoint = DinoCheckpoint(
        both.teacher.state_dict(),
        both.student.state_dict(),
        None if loss is None else loss.center,
        epoch,
        asdict(both.teacher.backbone.config),
    )
    return write_dino(path, checkpoint)


def load_published(
    both: StudentTeacher, path: str | Path, *, loss: DinoLoss | None = None, fresh_head: bool = False
) -> tuple[str, ...]:
    """Fills both networks, and the centre of `loss` where given, from a DINO checkpoint; → what keeps its first values.

    A network that the file lacks gets the other one's weights, as at the start of a run. `fresh_head`: the heads and
    the centre, which belong to the prototypes, stay as they are, whatever the file has. To be called before a model is
    shared out over ranks.

    Raises InputError: no DINO checkpoint; a backbone or head of another size (both shapes); no head in the file and
    no `fresh_head`; another number of attention heads.
    """
    found = read_dino(path)
    heads = both.student.backbone.config.num_heads
    if found.settings.get("num_heads", heads) != heads:
        raise InputError(f"{path}: a model of {found.settings['num_heads']} attention heads, this one has {heads}")
    fresh: list[str] = []
    for name, network, own, other in (
        ("student", both.student, found.student, found.teacher),
        ("teacher", both.teacher, found.teacher, found.student),
    ):
        tensors = dict(own or other or {})
        head = {key: value for key, value in tensors.items() if key.startswith("head.")}
        if fresh_head:
            tensors = {key: value for key, value in tensors.items() if key not in head}
            tensors |= {f"head.{key}": value for key, value in network.head.state_dict().items()}
            fresh.append(f"head of the {name}")
        elif not head:
            raise InputError(
                f"{path}: no head in it, only a backbone; take the checkpoint of the whole run, or start with a fresh "
                "head"
            )
        load_strictly(network, tensors, path)
    if loss is not None and found.center is not None and not fresh_head:
        load_strictly(loss, {"center": found.center}, path)
    elif loss is not None:
        fresh.append("centre")
    return tuple(fresh)
