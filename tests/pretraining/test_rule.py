"""Pretraining through the training loop: a mesh, accumulation and a skipped step leave DINO's numbers as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tests.dino.test_student_teacher import CONFIG, SETTINGS, crops
from tests.parallel.ranks import on_mesh
from torch import Tensor

from longvit.dino.loss import DinoLoss
from longvit.dino.schedules import Schedules
from longvit.dino.student_teacher import StudentTeacher, parameter_groups, set_rates
from longvit.model.longvit import LongViTConfig
from longvit.parallel import ALONE, Ranks, shard
from longvit.pretraining.dino_method import DinoMethod, SelfDistillation
from longvit.training.loop import TrainSettings, train

SIDES_PX = (32, 32), (32, 32), (12, 16), (12, 16), (12, 16)
DINO = replace(SETTINGS, drop_path=0.0, epochs=2, warmup_epochs=1, lr=0.01, lr_batch=4, clip_norm=0.02)
TRAIN = TrainSettings(epochs=2, accumulation=2)


@dataclass(frozen=True)
class Batch:
    crops: list[Tensor]
    names: tuple[str, ...]


class Batches:
    """11 regions by twos: three optimiser steps an epoch, the last of them of 2 + 1 regions."""

    samples = 11

    def __init__(self, batch_size: int = 2, poisoned: int | None = None) -> None:
        self.batch_size, self.poisoned = batch_size, poisoned
        self.all = crops(*SIDES_PX, regions=self.samples)

    def epoch(self, epoch: int, numbers: Sequence[int]) -> Iterator[Batch]:
        for number in numbers:
            of = range(self.samples)[number * self.batch_size : (number + 1) * self.batch_size]
            images = [c[list(of)] + epoch for c in self.all]
            if (epoch, number) == (0, self.poisoned):
                images = [torch.full(c.shape, float("nan")) for c in images]
            yield Batch(images, tuple(f"region {i}" for i in of))


def distillation() -> SelfDistillation:
    torch.manual_seed(0)
    model = SelfDistillation(LongViTConfig(**CONFIG), DINO).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def trained(ranks: Ranks, folder: Path, batch_size: int = 2, poisoned: int | None = None):
    """History and parameters after two epochs."""
    model, batches = distillation(), Batches(batch_size, poisoned)
    if ranks.sequence_ranks > 1:
        for network in (model.networks.student, model.networks.teacher):
            network.backbone = shard(network.backbone, ranks.mesh)
    method = DinoMethod(model, Schedules(DINO, steps_per_epoch=3, batch=4))
    settings = replace(TRAIN, accumulation=4 // batch_size)
    result = train(
        model,
        batches,
        method.step,
        settings,
        folder=folder / str(ranks.rank),
        progress=False,
        ranks=ranks,
        method=method,
    )
    return result, model.state_dict()


def by_hand() -> tuple[list[float], dict[str, Tensor]]:
    """The same six steps written out from the paper, a whole step in one pass; gradients clipped one by one."""
    model, batches = distillation(), Batches(4)
    networks, loss = model.networks, model.loss
    schedules, losses = Schedules(DINO, steps_per_epoch=3, batch=4), []
    optimizer = torch.optim.AdamW(parameter_groups(networks.student), lr=0.0)
    for step in range(6):
        (batch,) = batches.epoch(step // 3, [step % 3])
        networks.freeze_last_layer(schedules.last_layer_is_frozen(step))
        set_rates(optimizer, lr=schedules.lr(step), weight_decay=schedules.weight_decay(step))
        terms = loss(*networks(batch.crops), teacher_temperature=schedules.teacher_temperature(step))
        terms.loss.backward()
        for p in networks.student.parameters():
            if p.grad is not None:
                torch.nn.utils.clip_grad_norm_([p], DINO.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        networks.update_teacher(schedules.teacher_momentum(step))
        loss.update_center(terms.statistics)
        losses.append(terms.loss.item())
    return losses, model.state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], at_most: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= at_most, name


@pytest.mark.parametrize("batch_size", [4, 2, 1])
def test_the_loop_takes_the_steps_of_the_paper_however_they_are_accumulated(batch_size: int, tmp_path: Path) -> None:
    losses, expected = by_hand()
    result, found = trained(ALONE, tmp_path, batch_size)
    assert (torch.tensor(result.history["loss"]) - torch.tensor(losses)).abs().max() <= 1e-6  # kept in float32
    assert_same(found, expected, 1e-8)
    start = distillation().state_dict()
    for name in ("networks.teacher.backbone.blocks.0.attn.qkv.weight", "loss.center"):
        assert (expected[name] - start[name]).abs().max() > 1e-6, "steps that move nothing show nothing"
    assert {"teacher_entropy", "kl_to_uniform", "mean_kl_to_uniform", "teacher_momentum"} <= result.history.keys()


@pytest.mark.parametrize(
    ("data", "sequence"),
    [
        (2, 1),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
    ],
)
def test_six_steps_on_a_mesh_are_those_of_one_process(data: int, sequence: int, tmp_path: Path) -> None:
    alone, expected = trained(ALONE, tmp_path / "alone")
    for result, found in on_mesh(data, sequence, trained, tmp_path):
        assert_same(found, expected, 1e-8)
        for name, values in alone.history.items():
            assert abs(result.history[name] - values).max() <= 1e-5, name  # kept in float32


def test_a_step_with_a_nan_moves_neither_teacher_nor_centre(tmp_path: Path) -> None:
    model, seen = distillation(), []
    batches = Batches(2, poisoned=1)
    method = DinoMethod(model, Schedules(DINO, steps_per_epoch=3, batch=4))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def step(both: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return method.step(both, batch)

    result = train(model, batches, step, TRAIN, folder=tmp_path, progress=False, method=method)
    assert len(result.skipped_steps) == 1
    assert "region 2, region 3" in result.skipped_steps[0]
    for name, value in before.items():
        assert torch.equal(seen[2][name], value), name  # the first forward pass of the second step
    assert not model.loss.center.isnan().any()


def test_what_is_resumed_is_the_whole_of_it(tmp_path: Path) -> None:
    _, expected = trained(ALONE, tmp_path / "whole")
    model, calls = distillation(), [0]
    method = DinoMethod(model, Schedules(DINO, steps_per_epoch=3, batch=4))

    def failing(both: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == 6:
            raise RuntimeError("power cut")
        return method.step(both, batch)

    settings = replace(TRAIN, checkpoint_minutes=0.0)
    folder = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="power cut"):
        train(model, Batches(2), failing, settings, folder=folder / "0", progress=False, method=method)
    result, found = trained(ALONE, folder)
    assert result.resumed_at == 2
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_two_networks_and_the_centre_are_named_in_the_checkpoint() -> None:
    names = distillation().state_dict().keys()
    assert {"networks.student.head.last_layer.weight_v", "networks.teacher.backbone.fc_norm.weight"} <= names
    assert "loss.center" in names
    assert isinstance(distillation().networks, StudentTeacher)
    assert isinstance(distillation().loss, DinoLoss)
