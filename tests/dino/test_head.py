"""The head: its equation, its names in checkpoints, its frozen last layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.oracles import dino as oracle
from torch import nn

from longvit.dino.head import DinoHead, freeze_last_layer
from longvit.dino.settings import DinoSettings

SMALL = DinoSettings(prototypes=13, head_hidden=11, head_bottleneck=5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_outputs_are_the_cosines_of_the_equation(layers: int) -> None:
    torch.manual_seed(0)
    head = DinoHead(7, DinoSettings(prototypes=13, head_hidden=11, head_bottleneck=5, head_layers=layers)).double()
    with torch.no_grad():
        for p in head.mlp.parameters():
            p.copy_(torch.randn_like(p))
    x = torch.randn(4, 7, dtype=torch.float64)
    linears = [m for m in head.mlp if isinstance(m, nn.Linear)]
    weights = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in linears]
    expected = oracle.head(x.numpy(), weights, head.last_layer.weight_v.detach().numpy())
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(head, x.requires_grad_())


def test_default_head_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        head = DinoHead(384, DinoSettings())
    shapes = {name: tuple(t.shape) for name, t in head.state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (2048, 384),
        "mlp.0.bias": (2048,),
        "mlp.2.weight": (2048, 2048),
        "mlp.2.bias": (2048,),
        "mlp.4.weight": (256, 2048),
        "mlp.4.bias": (256,),
        "last_layer.weight_v": (65_536, 256),
        "last_layer.weight_g": (65_536, 1),
    }


def test_start_is_a_normal_of_0_02_without_bias() -> None:
    torch.manual_seed(0)
    head = DinoHead(384, DinoSettings(prototypes=10))
    for layer in head.mlp:
        if isinstance(layer, nn.Linear):
            assert abs(layer.weight.std() - 0.02) < 2e-4
            assert not layer.bias.any()


def test_frozen_last_layer_keeps_its_weights_against_decay_and_moments_too() -> None:
    torch.manual_seed(0)
    head = DinoHead(7, SMALL)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.5)
    moved = []
    for frozen in (False, True, True, False):
        before = head.last_layer.weight_v.detach().clone(), head.mlp[0].weight.detach().clone()
        freeze_last_layer(head, frozen)
        head(torch.randn(4, 7)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # zeros instead of None must not move it either
        assert not torch.equal(head.mlp[0].weight, before[1])
        moved.append(not torch.equal(head.last_layer.weight_v, before[0]))
    assert moved == [True, False, False, True]
