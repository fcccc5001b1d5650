"""The authors' models, tensor by tensor: LongViT (tokens, logits, loss, gradients), Prov-GigaPath's slide encoder."""

from __future__ import annotations

import json

import pytest
import torch
from tests.conftest import shared

from longvit.model.pretrained import convert

pytestmark = pytest.mark.shared


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((got.double() - want.double()).abs().max() <= tolerance * want.abs().max())


@pytest.fixture(scope="module")
def tensors():
    from safetensors.torch import load_file

    return load_file(shared("golden/longvit_tiny.io.safetensors"))


def longvit():
    case = json.loads(shared("golden/longvit_tiny.json").read_text())
    return convert(
        shared("golden/longvit_tiny.weights.safetensors"),
        num_heads=case["num_heads"],
        segment_lengths=tuple(case["segment_lengths"]),
        dilated_ratios=tuple(case["dilated_ratios"]),
        gradient="detached",
        ragged="padded",
    )


@pytest.mark.parametrize("size", ["native", "larger", "non_square"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("keep_hidden", [False, True])
def test_longvit_tokens_logits_loss_and_gradients(tensors, size: str, recompute: bool, keep_hidden: bool) -> None:
    model = longvit().train()
    model.set_recompute(recompute)
    for block in model.blocks:
        block.mlp.keep_hidden = keep_hidden
    tokens = model.forward_features(tensors[f"{size}.image"])
    logits = model.forward_head(tokens)
    assert close(tokens, tensors[f"{size}.tokens"])
    assert close(logits, tensors[f"{size}.logits"])
    losses = [torch.nn.functional.cross_entropy(logits, torch.tensor([k])) for k in range(3)]
    loss = min(losses, key=lambda x: abs(x.item() - tensors[f"{size}.loss"].item()))  # the label is not in the file
    assert close(loss, tensors[f"{size}.loss"][0])
    loss.backward()
    dim = model.config.embed_dim
    assert close(model.patch_embed.proj.weight.grad, tensors[f"{size}.grad_patch_proj"])
    assert close(model.patch_embed.pos_embed.grad, tensors[f"{size}.grad_pos_embed"])
    assert close(model.blocks[0].attn.qkv.weight.grad[:dim], tensors[f"{size}.grad_q0"])


@pytest.mark.parametrize("tiles", [300, 1500, 3900])
def test_gigapath_embedding_after_every_layer(tiles: int) -> None:
    from safetensors.torch import load_file

    io = load_file(shared("golden/gigapath_tiny.io.safetensors"))
    case = json.loads(shared("golden/gigapath_tiny.json").read_text())
    model = convert(
        shared("golden/gigapath_tiny.weights.safetensors"),
        num_heads=case["num_heads"],
        grid_tiles=case["slide_ngrids"],
        tile_px=case["tile_size"],
        max_slide_px=case["max_wsi_size"],
    )
    assert model.config.pattern().segment_lengths == tuple(case["segment_lengths"])
    with torch.no_grad():
        layers = model.all_layers(io[f"n{tiles}.features"], io[f"n{tiles}.coords"])
    assert len(layers) == case["depth"] + 1
    for i, layer in enumerate(layers):
        assert close(layer, io[f"n{tiles}.layer{i}"]), i
