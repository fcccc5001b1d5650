"""LongViT under timm's and the hub's names: heads, checkpointing, intermediate layers, pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from longvit.errors import InputError
from longvit.model.gigapath import GigaPathConfig, GigaPathSlideEncoder
from longvit.model.longvit import LongViT, LongViTConfig, create_model
from longvit.model.pretrained import save_pretrained

IMAGES = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> LongViT:
    torch.manual_seed(0)
    config = LongViTConfig(embed_dim=32, depth=3, num_heads=4, ffn_dim=64, patch_px=8, grid_patches=4, num_classes=2)
    return LongViT(config).eval()


def test_get_classifier_is_the_head_that_reset_classifier_makes(model: LongViT) -> None:
    assert model.get_classifier() is model.head
    model.reset_classifier(5)
    classifier = model.get_classifier()
    assert isinstance(classifier, nn.Linear)
    assert classifier.out_features == model.num_classes == 5
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)


def test_grad_checkpointing_is_recomputation_with_the_same_gradients(model: LongViT) -> None:
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert model.blocks.recompute is enable
        model.zero_grad()
        model(IMAGES).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
    model.set_grad_checkpointing()
    assert model.blocks.recompute


def test_intermediates_end_with_the_features_and_have_timms_shapes(model: LongViT) -> None:
    tokens, layers = model.forward_intermediates(IMAGES)
    torch.testing.assert_close(tokens, model.forward_features(IMAGES))
    assert [tuple(layer.shape) for layer in layers] == [(2, 32, 2, 3)] * 3
    torch.testing.assert_close(layers[-1].flatten(2).transpose(1, 2), tokens)
    flat = model.forward_intermediates(IMAGES, output_fmt="NLC", intermediates_only=True)
    for grid, sequence in zip(layers, flat, strict=True):
        torch.testing.assert_close(grid.flatten(2).transpose(1, 2), sequence)


@pytest.mark.parametrize(
    ("indices", "expected"), [(None, [0, 1, 2]), (2, [1, 2]), ([0, 2], [0, 2]), ([-1], [2]), ([2, -3], [0, 2])]
)
def test_indices_are_layers_or_a_number_of_last_layers(
    indices: int | list[int] | None, expected: list[int], model: LongViT
) -> None:
    every = model.forward_intermediates(IMAGES, intermediates_only=True)
    chosen = model.forward_intermediates(IMAGES, indices, intermediates_only=True)
    assert len(chosen) == len(expected)
    for layer, index in zip(chosen, expected, strict=True):
        assert torch.equal(layer, every[index])
    for wrong in ([3], 4, 0):
        with pytest.raises(ValueError, match="from -3 to 2"):
            model.forward_intermediates(IMAGES, wrong)


def test_stop_early_returns_the_tokens_of_the_last_index(model: LongViT) -> None:
    tokens, (layer,) = model.forward_intermediates(IMAGES, [0], stop_early=True, output_fmt="NLC")
    assert torch.equal(tokens, layer)


def test_norm_is_the_token_norm_where_the_model_has_one(model: LongViT) -> None:
    plain, normed = (
        model.forward_intermediates(IMAGES, 1, norm=norm, output_fmt="NLC", intermediates_only=True)[0]
        for norm in (False, True)
    )
    assert torch.equal(plain, normed)  # fc_norm is applied to the mean of the tokens
    dino = LongViT(LongViTConfig(**{**vars(model.config), "pool_norm": "token_norm"})).eval()
    dino.load_state_dict(model.state_dict())
    (normed,) = dino.forward_intermediates(IMAGES, 1, norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(normed.mean(1), dino.pool(plain))


def test_from_pretrained_is_load_model_for_a_longvit_alone(model: LongViT, tmp_path: Path) -> None:
    loaded = LongViT.from_pretrained(model.save_pretrained(tmp_path / "longvit"))
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    gigapath = GigaPathSlideEncoder(GigaPathConfig(in_dim=8, embed_dim=32, depth=1, num_heads=4, ffn_dim=64))
    save_pretrained(gigapath, tmp_path / "gigapath")
    with pytest.raises(InputError, match="GigaPathSlideEncoder"):
        LongViT.from_pretrained(tmp_path / "gigapath")


def test_pretrained_loads_the_shipped_weights_and_a_new_head() -> None:
    shipped = LongViT.from_pretrained("longvit-tiny-stem")
    model = create_model("longvit_tiny_stem_patch32", pretrained=True, num_classes=3, drop_path=0.1)
    assert (model.num_classes, model.config.drop_path) == (3, 0.1)
    assert torch.equal(model.patch_embed.pos_embed, shipped.patch_embed.pos_embed)
    assert model.training  # as in timm
    with pytest.raises(InputError, match="no weights ship"):
        create_model("longvit_small_patch32", pretrained=True)


def test_pretrained_takes_a_folder_of_the_same_size_and_keeps_its_head(tmp_path: Path) -> None:
    folder = create_model("longvit_tiny_patch32", num_classes=2).save_pretrained(tmp_path / "model")
    stored, kept = LongViT.from_pretrained(folder), create_model("longvit_tiny_patch32", folder)
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, stored.state_dict()[name])
    assert create_model("longvit_tiny_patch32", folder, num_classes=0).num_classes == 0
    with pytest.raises(InputError, match="embed_dim 192, but longvit_small_patch32 has 384"):
        create_model("longvit_small_patch32", folder)
    with pytest.raises(ValueError, match="depth: fixed by the pretrained weights"):
        create_model("longvit_tiny_patch32", folder, depth=2)
