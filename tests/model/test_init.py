"""Initial weights: those of the published code stay the default; the others are what they are said to be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.positions import SINE_AMPLITUDE, PatchGrid, sine_positions

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2, "ffn_dim": 32, "grid_patches": 6}


def model(init: str) -> LongViT:
    torch.manual_seed(0)
    return LongViT(LongViTConfig(**SMALL, num_classes=3, init=init))  # type: ignore[arg-type]


def linear_layers(longvit: LongViT) -> list[nn.Linear]:
    return [layer for layer in longvit.modules() if isinstance(layer, nn.Linear)]


def test_the_default_is_the_published_initialisation() -> None:
    assert LongViTConfig().init == "published"
    published = model("published")
    assert all(layer.weight.abs().max() <= 0.02 for layer in linear_layers(published))
    assert published.patch_embed.pos_embed.abs().max() <= 0.02


def test_xavier_is_bounded_by_both_widths_and_reaches_the_bound() -> None:
    longvit = model("xavier")
    longvit.reset_classifier(50)
    assert longvit.head in linear_layers(longvit)
    for layer in linear_layers(longvit):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_initial_positions_are_the_sines_of_row_and_column() -> None:
    grid = PatchGrid(3, 5)
    positions = sine_positions(grid, 8).view(3, 5, 8)
    for row in range(3):
        for column in range(5):
            places = [(row + 0.5) / 3, (column + 0.5) / 5]
            expected = [
                SINE_AMPLITUDE * wave(2 * math.pi * cycles * place)
                for place in places
                for wave in (math.sin, math.cos)
                for cycles in (0.125, 4.0)
            ]
            torch.testing.assert_close(positions[row, column], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model("xavier").patch_embed.pos_embed.data, sine_positions(PatchGrid(6, 6), 16))


def test_a_width_without_whole_quarters_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        LongViTConfig(embed_dim=6, num_heads=2, init="xavier")
