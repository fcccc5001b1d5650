"""Crops of all sizes in one pass, and the two networks: packed is separate, the teacher is the student's average."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.oracles import dino as oracle
from torch import Tensor

from longvit.dino.loss import DinoLoss
from longvit.dino.multicrop import _packs, drop_path_scales, features
from longvit.dino.schedules import Schedules
from longvit.dino.settings import DinoSettings
from longvit.dino.student_teacher import StudentTeacher, parameter_groups, set_rates
from longvit.model import encoder
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.training.optim import parameter_groups as groups_of_training

SETTINGS = DinoSettings(prototypes=40, head_hidden=24, head_bottleneck=8, local_crops=3, drop_path=0.5)
CONFIG: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 4, "ffn_dim": 24, "patch_px": 4, "grid_patches": 4}
REGIONS = 3


def networks(seed: int = 0, **config: Any) -> StudentTeacher:
    torch.manual_seed(seed)
    both = StudentTeacher(LongViTConfig(**(CONFIG | config)), SETTINGS).double()
    with torch.no_grad():
        for p in both.parameters():  # the initial weights are so small that attention hardly matters
            p.add_(torch.randn_like(p) * 0.3)
    return both


def crops(*sides_px: tuple[int, int], regions: int = REGIONS) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (regions, 3, h, w), generator=g, dtype=torch.uint8) for h, w in sides_px]


FIVE = (32, 32), (32, 32), (12, 16), (12, 16), (12, 16)
MIXED = (12, 16), (32, 32), (20, 12), (32, 28), (4, 4)


def gradients(both: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in both.named_parameters() if p.grad is not None}


def outputs(both: StudentTeacher, images: list[Tensor], packed: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    both.zero_grad()
    student, teacher = both(images, packed=packed)
    loss = DinoLoss(SETTINGS.prototypes).double()(student, teacher, teacher_temperature=0.04).loss
    loss.backward()
    return [student.detach(), teacher, loss.detach()], gradients(both)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"segment_lengths": (3, 8, 20), "dilated_ratios": (1, 2, 3)},
        {"segment_lengths": (3, 8, 20), "dilated_ratios": (1, 2, 3), "ragged": "padded"},
        {"segment_lengths": (4, 16, 64), "dilated_ratios": (1, 2, 4), "gradient": "detached"},
        {"stem": "conv", "sub_norm": False},
    ],
)
@pytest.mark.parametrize("sides_px", [FIVE, MIXED])
def test_crops_in_one_pass_give_outputs_and_gradients_of_separate_passes(sides_px, config, recompute: bool) -> None:
    both, images = networks(**config).eval(), crops(*sides_px)  # eval: drop path has a test of its own
    assert len(list(_packs(both.student.backbone, images))) == 1
    separate, expected = outputs(both, images, packed=False)
    both.student.backbone.set_recompute(recompute)
    together, found = outputs(both, images, packed=True)
    for a, b in zip(together, separate, strict=True):
        assert (a - b).abs().max() <= 1e-12
    assert found.keys() == expected.keys() == {n for n, _ in both.named_parameters() if n.startswith("student.")}
    for name, g in expected.items():
        assert (found[name] - g).abs().max() <= 1e-12 * max(1.0, g.abs().max().item()), name
    assert min(g.abs().max().item() for g in expected.values()) > 1e-9, "a gradient of 0 shows nothing"


def test_a_crop_does_not_see_the_crops_beside_it() -> None:
    model, images = networks().eval().student.backbone, crops(*FIVE)
    before = features(model, images)
    images[2] = 255 - images[2]
    changed = (features(model, images) - before).abs().amax(1).unflatten(0, (5, REGIONS)).amax(1)
    assert changed[2] > 1e-3
    assert changed[[0, 1, 3, 4]].max() == 0


def test_crops_that_differ_in_their_segments_go_in_packs_of_their_own() -> None:
    """Above 1,024² px the schedule is not the clipped one of a longer crop."""
    config = {"embed_dim": 4, "depth": 1, "num_heads": 2, "ffn_dim": 4, "patch_px": 1, "drop_path": 0.0}
    torch.manual_seed(0)
    model = LongViT(LongViTConfig(**config, pool_norm="token_norm")).double()
    images = crops((40, 50), (16, 16), (32, 32), (64, 64), regions=1)
    packs = list(_packs(model, images))
    assert [p.crops for p in packs] == [(3,), (0,), (2, 1)]
    separate = features(model, images, packed=False)
    assert (features(model, images) - separate).abs().max() <= 1e-12


@pytest.mark.parametrize("recompute", [False, True])
def test_drop_path_of_a_packed_crop_is_that_of_the_crop_alone(recompute: bool, monkeypatch) -> None:
    """Each crop through the plain encoder, which is handed its factors: per layer, attention's and the FFN's."""
    model, images = networks().train().student.backbone, crops(*MIXED)
    torch.manual_seed(3)
    scales = drop_path_scales(model.blocks, len(MIXED) * REGIONS)
    assert scales is not None
    assert not torch.equal(scales[:, 0], scales[:, 1])
    model.set_recompute(recompute)
    together = features(model, images, scales=scales).unflatten(0, (len(MIXED), REGIONS))
    together.square().sum().backward()
    found = gradients(model)
    model.zero_grad()
    model.set_recompute(False)
    for c, crop in enumerate(images):
        for b in range(REGIONS):
            left = iter(scales[:, :, c * REGIONS + b].flatten())
            monkeypatch.setattr(encoder, "_drop_path_scale", lambda *_, left=left: next(left))
            alone = model(crop[b : b + 1])
            assert next(left, None) is None
            assert (together[c, b] - alone[0]).abs().max() <= 1e-12
            alone.square().sum().backward()
    for name, g in gradients(model).items():
        assert (found[name] - g).abs().max() <= 1e-12 * max(1.0, g.abs().max().item()), name


def test_drop_path_has_the_rates_of_the_layers_and_keeps_the_mean() -> None:
    blocks = networks().train().student.backbone.blocks
    torch.manual_seed(0)
    scales = drop_path_scales(blocks, 20_000)
    assert scales is not None
    for layer, rate in zip(scales, (0.0, 0.25, 0.5), strict=True):
        assert abs((layer == 0).double().mean() - rate) < 0.01
        assert abs(layer.mean() - 1) < 0.02
    assert drop_path_scales(blocks.eval(), 4) is None


def test_the_teacher_drops_nothing_and_stays_out_of_training() -> None:
    both, images = networks().train(), crops(*FIVE)
    torch.manual_seed(0)
    first = both(images)
    second = both(images)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    assert not any(p.requires_grad for p in both.teacher.parameters())


def test_both_start_with_the_same_weights_and_dino_s_order_of_norm_and_mean() -> None:
    torch.manual_seed(0)
    both = StudentTeacher(LongViTConfig(**CONFIG, num_classes=3, pool_norm="fc_norm"), SETTINGS)
    for name, value in both.student.state_dict().items():
        assert torch.equal(both.teacher.state_dict()[name], value), name
    assert both.student.backbone.config.pool_norm == both.teacher.backbone.config.pool_norm == "token_norm"
    assert both.student.backbone.fc_norm.eps == 1e-6
    assert both.student.backbone.num_classes == 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996])
def test_teacher_is_the_running_average_of_the_student(momentum: float) -> None:
    both = networks()
    schedule = Schedules(DinoSettings(epochs=2, warmup_epochs=0, teacher_momentum=momentum), 4, 8)
    start = {name: p.detach().numpy().copy() for name, p in both.teacher.named_parameters()}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in start}
    momenta = oracle.cosine_schedule(momentum, 1.0, 8)
    for step in range(8):
        with torch.no_grad():
            for name, p in both.student.named_parameters():
                p.add_(torch.randn_like(p))
                seen[name].append(p.numpy().copy())
        both.update_teacher(schedule.teacher_momentum(step))
        for name, p in both.teacher.named_parameters():
            expected = oracle.averages(start[name], seen[name], momenta[: step + 1])[-1]
            np.testing.assert_allclose(p.numpy(), expected, rtol=0, atol=1e-10, err_msg=name)


def test_a_momentum_of_1_leaves_the_teacher_to_the_last_bit() -> None:
    both = networks()
    before = copy.deepcopy(both.teacher.state_dict())
    both.update_teacher(1.0)
    assert all(torch.equal(value, before[name]) for name, value in both.teacher.state_dict().items())


def test_biases_and_norms_are_not_decayed_and_nothing_is_left_out() -> None:
    both = networks()
    both.freeze_last_layer(True)
    decayed, spared = parameter_groups(both.student)
    assert sorted(decayed["names"] + spared["names"]) == sorted(n for n, _ in both.student.named_parameters())
    assert "head.last_layer.weight_v" in decayed["names"]
    assert "backbone.patch_embed.pos_embed" in decayed["names"]  # as in the authors' code
    assert all(n.endswith("bias") or "norm" in n for n in spared["names"])
    assert not any("norm" in n for n in decayed["names"])
    both.freeze_last_layer(False)
    theirs = {n for g in groups_of_training(both.student, weight_decay=0.1) if g["weight_decay"] for n in g["names"]}
    assert theirs == set(decayed["names"])
    optimizer = torch.optim.AdamW([decayed, spared], lr=1.0)
    set_rates(optimizer, lr=0.2, weight_decay=0.3)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.2, 0.3), (0.2, 0.0)]


def test_wrong_numbers_of_crops_are_refused() -> None:
    both = networks()
    with pytest.raises(ValueError, match="4 crops of every region; the settings have 5"):
        both(crops(*FIVE[:4]))
    with pytest.raises(ValueError, match=r"a row for every region, got \[3, 2\] rows"):
        features(both.student.backbone, [*crops((8, 8)), *crops((8, 8), regions=2)])
