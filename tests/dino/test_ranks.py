"""Steps of pretraining on a mesh: crops shared out over the data axis, strips of each over the sequence axis."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dino.test_student_teacher import CONFIG, SETTINGS, crops
from longvit.dino import DinoLoss, Schedules, StudentTeacher, parameter_groups, set_rates
from longvit.model.longvit import LongViTConfig
from longvit.parallel import ALONE, Ranks, ShardedLongViT, shard
from parallel.ranks import on_mesh

STEPS, REGIONS = 5, 4
SIDES_PX = (32, 32), (32, 32), (12, 16), (12, 16), (12, 16)


def trained(ranks: Ranks = ALONE, steps: int = STEPS) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses, and student, teacher and centre after five steps of SGD (AdamW would blow up rounding)."""
    settings = replace(SETTINGS, drop_path=0.0, epochs=2, warmup_epochs=1, lr=0.1, lr_batch=REGIONS)
    schedules = Schedules(settings, steps_per_epoch=3, batch=REGIONS)
    torch.manual_seed(0)
    both = StudentTeacher(LongViTConfig(**CONFIG), settings).double()
    with torch.no_grad():
        for p in both.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    if ranks.sequence_ranks > 1:
        for network in (both.student, both.teacher):
            network.backbone = shard(network.backbone, ranks.mesh)
    optimizer = torch.optim.SGD(parameter_groups(both.student), lr=0.0, momentum=0.9)
    loss, losses = DinoLoss(settings.prototypes).double(), []
    for step in range(steps):
        images = [c.roll(step, 0) + step for c in crops(*SIDES_PX, regions=REGIONS)]
        images = [c.chunk(ranks.data_ranks)[ranks.data_rank] for c in images]
        if isinstance(both.student.backbone, ShardedLongViT):
            rows = [slice(*both.student.backbone.rows_px(c.shape[2])) for c in images]
            images = [c[:, :, own] for c, own in zip(images, rows, strict=True)]
        both.freeze_last_layer(schedules.last_layer_is_frozen(step))
        set_rates(optimizer, lr=schedules.lr(step), weight_decay=schedules.weight_decay(step))
        terms = loss(*both(images), teacher_temperature=schedules.teacher_temperature(step), ranks=ranks)
        terms.loss.backward()
        ranks.average_gradients(both.student.parameters())
        optimizer.step()
        optimizer.zero_grad()
        both.update_teacher(schedules.teacher_momentum(step))
        loss.update_center(terms.center)
        losses.append(terms.loss.detach())
    return losses, {**both.state_dict(), "center": loss.center}


@pytest.mark.parametrize(
    ("data", "sequence"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 2, marks=pytest.mark.slow)],
)
def test_five_steps_on_a_mesh_are_those_of_one_process(data: int, sequence: int) -> None:
    losses, expected = trained()
    _, start = trained(steps=0)
    found = on_mesh(data, sequence, trained)
    for step in range(STEPS):
        mean = sum(f[0][step] for f in found) / len(found)
        assert abs(mean - losses[step]) <= 1e-8
    for _, state in found:
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert (state[name] - value).abs().max() <= 1e-8, name
    for part in ("student", "teacher"):
        name = f"{part}.backbone.blocks.0.attn.qkv.weight"
        assert (expected[name] - start[name]).abs().max() > 1e-6, "a step that moves nothing shows nothing"
