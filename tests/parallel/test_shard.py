"""A LongViT on strips of its images: loss, gradients and training equal one process on every mesh."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tests.parallel.ranks import on_ranks
from tests.small_slides import write_slide
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import longvit
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.parallel import average_gradients, shard

PATCH_PX, ROWS, COLUMNS, SLIDES = 4, 9, 5, 4  # 45 tokens: no rank count divides them; 2 and 4 do not divide the rows
SETTINGS: dict[str, Any] = {
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 4,
    "ffn_dim": 24,
    "patch_px": PATCH_PX,
    "grid_patches": 4,
    "num_classes": 3,
    "segment_lengths": (8, 20, 64),
    "dilated_ratios": (1, 2, 4),
}


def make(**more: Any) -> LongViT:
    torch.manual_seed(0)
    model = LongViT(LongViTConfig(**(SETTINGS | more))).double()
    with torch.no_grad():
        for p in model.parameters():  # the initial weights are so small that attention hardly matters
            p.add_(torch.randn_like(p) * 0.3)
    return model


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (SLIDES, 3, ROWS * PATCH_PX, COLUMNS * PATCH_PX), generator=generator)
    return pixels.to(torch.uint8), torch.arange(SLIDES) % 3


def gradients(model: LongViT) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def single(more: dict[str, Any], recompute: bool) -> tuple[Tensor, dict[str, Tensor]]:
    model, (images, labels) = make(**more), batch()
    model.set_recompute(recompute)
    torch.manual_seed(1)  # drop path
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return loss.detach(), gradients(model)


def on_mesh(shape: tuple[int, int], more: dict[str, Any], recompute: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of this rank's slides, and the averaged gradients."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "sequence"))
    images, labels = (t.chunk(shape[0])[mesh.get_local_rank("data")] for t in batch())
    model = copy.deepcopy(shard(make(**more), mesh))  # as EMA does: the group is not copied
    model.set_recompute(recompute)
    first_px, end_px = model.rows_px(ROWS * PATCH_PX)
    torch.manual_seed(1)
    loss = F.cross_entropy(model(images[:, :, first_px:end_px]), labels)
    loss.backward()
    average_gradients(model.parameters())
    return loss.detach(), gradients(model)


def assert_same(
    rank_results: list[tuple[Tensor, dict[str, Tensor]]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    loss, grads = expected
    assert abs(sum(rank_loss for rank_loss, _ in rank_results) / len(rank_results) - loss) <= 1e-10
    for _, rank_grads in rank_results:
        assert rank_grads.keys() == grads.keys()
        for name, g in grads.items():
            assert g.abs().max() > 1e-6, f"{name}: a gradient of 0 proves nothing"
            assert (rank_grads[name] - g).abs().max() <= 1e-10, name


def test_loss_and_every_gradient_on_a_2_by_2_mesh_are_those_of_one_process() -> None:
    assert_same(on_ranks(4, on_mesh, (2, 2), {}), single({}, False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "more", "recompute"),
    [
        ((1, 1), {}, False),
        ((1, 2), {"pool_norm": "token_norm"}, False),
        ((1, 3), {"drop_path": 0.5}, False),
        ((1, 4), {}, True),
        ((4, 1), {}, False),
        ((2, 2), {"pool_norm": "token_norm"}, True),
        ((1, 3), {"gradient": "detached", "segment_lengths": "auto", "dilated_ratios": (1, 2, 4, 8, 16)}, True),
        ((1, 8), {}, False),
        ((2, 2), {"stem": "conv", "sub_norm": False, "pool_norm": "token_norm"}, True),
    ],
)
def test_every_mesh_and_setting_gives_the_gradients_of_one_process(shape, more, recompute) -> None:
    assert_same(on_ranks(shape[0] * shape[1], on_mesh, shape, more, recompute), single(more, False))


def in_bfloat16(model: LongViT, rows: slice) -> list[Tensor]:
    """Logits and gradients under autocast, as in training."""
    images, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images[:, :, rows])
        F.cross_entropy(logits, labels).backward()
    average_gradients(model.parameters())
    return [logits.detach().double(), *(g.double() for g in gradients(model).values())]


def in_bfloat16_on_ranks() -> list[Tensor]:
    model = shard(make().float())
    return in_bfloat16(model, slice(*model.rows_px(ROWS * PATCH_PX)))


@pytest.mark.slow
def test_autocast_costs_the_sharded_model_no_more_than_the_single_one() -> None:
    model, (images, labels) = make(), batch()
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    exact = [logits.detach(), *gradients(model).values()]
    single_errors = [
        (a - b).norm() / b.norm() for a, b in zip(in_bfloat16(make().float(), slice(None)), exact, strict=True)
    ]
    for results in on_ranks(3, in_bfloat16_on_ranks):
        errors = [(a - b).norm() / b.norm() for a, b in zip(results, exact, strict=True)]
        assert sum(errors) <= 1.5 * sum(single_errors), (errors, single_errors)


def with_ddp() -> tuple[Tensor, dict[str, Tensor]]:
    model = shard(make(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence")))
    model.set_recompute(True)
    (images, labels), own = batch(), slice(*model.rows_px(ROWS * PATCH_PX))
    slides = slice(0, 2) if dist.get_rank() < 2 else slice(2, 4)
    replica = DistributedDataParallel(model)  # kept alive until the backward is done: it averages the gradients
    loss = F.cross_entropy(replica(images[slides, :, own]), labels[slides])
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.slow
def test_distributed_data_parallel_over_the_whole_mesh_averages_to_the_same_gradients() -> None:
    assert_same(on_ranks(4, with_ddp), single({}, False))


def exchanges(recompute: bool) -> tuple[int, int]:
    """Exchanges and bytes of a forward and backward."""
    model, (images, labels) = shard(make()), batch()
    model.set_recompute(recompute)
    first_px, end_px = model.rows_px(ROWS * PATCH_PX)
    F.cross_entropy(model(images[:, :, first_px:end_px]), labels).backward()
    return model.wire.exchanges, model.wire.received


def test_recomputation_neither_attends_nor_exchanges_twice() -> None:
    kept, recomputed = (on_ranks(2, exchanges, recompute)[0] for recompute in (False, True))
    assert kept == recomputed
    assert kept[0] == 2 * SETTINGS["depth"]  # forward and backward of each layer


def trained(model: LongViT, slides: slice, rows: slice) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(5):
        images, labels = batch(step)
        F.cross_entropy(model(images[slides, :, rows]), labels[slides]).backward()
        average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


def trained_on_mesh() -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    model, own = shard(make(), mesh), mesh.get_local_rank("data") * 2
    return trained(model, slice(own, own + 2), slice(*model.rows_px(ROWS * PATCH_PX)))


@pytest.mark.slow
def test_five_steps_of_training_on_a_2_by_2_mesh_give_the_parameters_of_one_process() -> None:
    expected, before = trained(make(), slice(None), slice(None)), make().state_dict()
    for rank_parameters in on_ranks(4, trained_on_mesh):
        for name, p in expected.items():
            assert (p - before[name]).abs().max() > 1e-3
            assert (rank_parameters[name] - p).abs().max() <= 1e-8, name


def embedded(path: Path) -> np.ndarray:
    model = shard(make(image_px=36, num_classes=0))
    with longvit.open_slide(path) as slide:
        return model.embed(slide)


def test_embedding_of_a_slide_read_in_strips_is_that_of_one_process(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tiff")
    with longvit.open_slide(path) as slide:
        expected = make(image_px=36, num_classes=0).embed(slide)
    for embedding in on_ranks(2, embedded, path):
        np.testing.assert_allclose(embedding, expected, atol=1e-6)


def test_sharded_model_shares_the_parameters_of_the_model_and_does_not_change_it() -> None:
    model, (images, _) = make(), batch()
    expected = model(images)
    sharded = shard(model)
    assert list(sharded.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(sharded.parameters(), model.parameters(), strict=True))
    assert torch.equal(model(images), expected)
    torch.testing.assert_close(sharded(images), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(sharded)(images), expected, rtol=0, atol=1e-12)


def strip_that_does_not_fit() -> str:
    model, (images, _) = shard(make()), batch()
    rank = dist.get_rank()
    with pytest.raises(ValueError, match="1 rows of patches do not give 2 ranks one each"):
        model.rows_px(PATCH_PX)
    with pytest.raises(ValueError) as caught:
        model(images[:, :, : 8 + rank])
    return str(caught.value)


def test_a_strip_that_does_not_fit_raises_on_every_rank_instead_of_hanging() -> None:
    assert (
        on_ranks(2, strip_that_does_not_fit)
        == ["rank 1: a strip of 9 × 20 px is not made of rows of 4 × 4 px patches"] * 2
    )
