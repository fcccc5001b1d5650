"""A graphed forward pass: when it records, when it replays, and that it gives the model's own numbers."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from longvit.model import cuda_graph
from longvit.model.cuda_graph import GraphedForward
from longvit.model.longvit import LongViT, LongViTConfig

CONFIG = LongViTConfig(embed_dim=32, depth=2, num_heads=4, ffn_dim=48, num_classes=3, grid_patches=4)


def image(side_px: int = 96, batch: int = 1) -> Tensor:
    return torch.randint(0, 256, (batch, 3, side_px, side_px), dtype=torch.uint8)


@pytest.fixture
def model() -> LongViT:
    return LongViT(CONFIG).eval()


class Recordings:
    """Stands in for `Recorded` on a CPU."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []
        self.failing = False

    def __call__(self, step, x: Tensor):
        self.made.append(tuple(x.shape))
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        return step


@pytest.fixture
def recordings(monkeypatch) -> Recordings:
    """As on a card."""
    made = Recordings()
    monkeypatch.setattr(cuda_graph, "Recorded", made)
    cannot = GraphedForward._cannot
    monkeypatch.setattr(GraphedForward, "_cannot", lambda self, x: cannot(self, OnACard(x)))
    return made


class OnACard:
    """What `_cannot` asks of a tensor."""

    def __init__(self, x: Tensor) -> None:
        self.device, self.shape = torch.device("cuda"), x.shape


def test_without_a_card_the_model_runs_and_the_log_says_so_once(model, caplog) -> None:
    forward = GraphedForward(model)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        x = image()
        assert torch.equal(forward(x), model(x))
        forward(x)
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph, the forward pass runs as it is: the model is on cpu"
    ]


def test_one_recording_per_shape_autocast_and_place_of_the_weights(model, recordings, monkeypatch) -> None:
    forward = GraphedForward(model, pre_logits=True)
    with torch.no_grad():
        small, large = image(64), image(96)
        for x in (small, large, small, large):
            assert torch.equal(forward(x), model.forward_head(model.forward_features(x), pre_logits=True))
        assert recordings.made == [(1, 4, 32), (1, 9, 32)]
        with torch.autocast("cpu", torch.bfloat16):
            forward(small)
        assert len(recordings.made) == 3
        monkeypatch.setenv("LONGVIT_ATTENTION", "plain")
        forward(small)
        assert len(recordings.made) == 4
        model.head.weight.copy_(torch.zeros_like(model.head.weight))  # in place: the graph sees it
        forward(small)
        assert len(recordings.made) == 4
        model.blocks[0].attn.qkv.weight.data = model.blocks[0].attn.qkv.weight.data.clone()
        forward(small)
        assert len(recordings.made) == 5


def test_only_so_many_graphs_hold_memory(model, recordings) -> None:
    forward = GraphedForward(model, graphs=2)
    with torch.no_grad():
        for side in (64, 96, 64, 128, 64, 96):
            forward(image(side))
    assert [n for _, n, _ in recordings.made] == [4, 9, 16, 9]


def test_a_failed_recording_is_one_line_and_not_tried_again(model, recordings, caplog) -> None:
    recordings.failing, x = True, image()
    forward = GraphedForward(model)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        assert torch.equal(forward(x), model(x))
        forward(x)
    assert len(recordings.made) == 1
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph, the forward pass runs as it is: operation not permitted when stream is capturing"
    ]


def test_training_and_large_images_run_without_a_graph(model, recordings, caplog) -> None:
    with torch.no_grad():
        GraphedForward(model, most_patches=8)(image(96))
        assert not caplog.records
        GraphedForward(model.train())(image(96))
    assert "training mode" in caplog.records[0].getMessage()
    GraphedForward(model.eval())(image(96)).sum().backward()
    assert not recordings.made


@pytest.mark.gpu
@pytest.mark.parametrize("side_px", [96, 1024])
def test_a_graph_gives_the_bits_of_the_model(side_px: int) -> None:
    model = LongViT(CONFIG).eval().cuda()
    forward = GraphedForward(model)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(3):
            x = image(side_px).cuda()
            assert torch.equal(forward(x), model(x))
    assert not forward._has_said
