"""LongViT's public behaviour: sizes, schedules, inputs, positions, recomputation, heads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import longvit
from longvit.model import embedding
from longvit.model import norm_linear as nl
from longvit.model.embedding import IMAGENET_MEAN, IMAGENET_STD, PatchEmbedding
from longvit.model.feedforward import FeedForward
from longvit.model.longvit import SEGMENT_TABLE, SIZES, LongViT, LongViTConfig, create_model, segment_schedule
from longvit.model.positions import PatchGrid, interpolation
from longvit.slides.strips import Strip

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "ffn_dim": 64, "patch_px": 8, "grid_patches": 4}


def small(**settings) -> LongViT:
    torch.manual_seed(0)
    return LongViT(LongViTConfig(**(SMALL | settings)))


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.double() / 255 - mean) / std


@pytest.mark.slow
def test_longvit_s_is_table_5() -> None:
    config = SIZES["longvit_small_patch32"]
    assert (config.depth, config.embed_dim, config.num_heads, config.ffn_dim, config.patch_px) == (
        12,
        384,
        16,
        1536,
        32,
    )
    parameters = sum(p.numel() for p in create_model("longvit_small_patch32").parameters())
    assert round(parameters / 1e6) == 23  # 22 M without the positions


def test_segments_are_table_7_at_its_five_lengths_and_grow_in_between() -> None:
    for n, row in SEGMENT_TABLE.items():
        assert segment_schedule(n) == row
    lengths = [1, 5, 64, 256, 1023, 1025, 4096, 10_000, 20_000, 100_000, 500_000, 2_000_000]
    for n in lengths:
        segments = segment_schedule(n)
        assert len(segments) == 5
        assert segments[-1] == n  # the last branch spans the whole sequence
        assert list(segments) == sorted(segments)
    for a, b in itertools.pairwise(sorted([*lengths, *SEGMENT_TABLE])):
        assert all(x <= y for x, y in zip(segment_schedule(a), segment_schedule(b), strict=True)), (a, b)
    with pytest.raises(ValueError, match="at least one patch"):
        segment_schedule(0)


@pytest.mark.parametrize("chunk", [5, 2048])
def test_a_uint8_image_equals_the_normalised_float_image(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(embedding, "CPU_CHUNK_PATCHES", chunk)
    model = small().double()
    images = pixels(2, 3, 32, 48)
    for a, b in zip(*(_with_gradients(model, x) for x in (images, normalised(images))), strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-8)


def _with_gradients(model: LongViT, images: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    tokens = model.forward_features(images)
    tokens.square().sum().backward()
    embed = model.patch_embed
    return [tokens.detach(), embed.proj.weight.grad.clone(), embed.proj.bias.grad.clone(), embed.pos_embed.grad.clone()]


def test_saliency_gradients_of_the_pixels_match_the_plain_form(monkeypatch) -> None:
    monkeypatch.setattr(embedding, "CPU_CHUNK_PATCHES", 5)
    model = small().double()
    images = normalised(pixels(1, 3, 32, 32)).requires_grad_()
    with_pixels = _with_gradients(model, images)
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    for a, b in zip(with_pixels, _with_gradients(model, images.detach()), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (9, 9), (4, 7), (13, 5), (1, 1)])
def test_positions_equal_bicubic_interpolation_of_the_whole_grid(height: int, width: int) -> None:
    embed = PatchEmbedding(8, 2, PatchGrid(4, 4)).double()
    nn.init.zeros_(embed.proj.weight)
    nn.init.zeros_(embed.proj.bias)
    tokens = embed(torch.zeros(1, 3, 2 * height, 2 * width, dtype=torch.float64))
    if (height, width) == (4, 4):
        want = embed.pos_embed
    else:
        grid = embed.pos_embed.view(1, 4, 4, 8).permute(0, 3, 1, 2)
        scale = ((height + 0.1) / 4, (width + 0.1) / 4)
        want = nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
    assert torch.allclose(tokens, want, atol=1e-12)
    assert interpolation(height, 4).sum(1).allclose(torch.ones(height, dtype=torch.float64))


def test_positions_first_interpolated_for_inference_serve_training_too() -> None:
    interpolation.cache_clear()
    model = small().double()
    images = pixels(1, 3, 40, 40)
    with torch.inference_mode():
        model(images)
    model(images).sum().backward()
    assert model.patch_embed.pos_embed.grad is not None


def test_positions_per_patch_are_parameters_of_the_image_itself() -> None:
    assert small(positions="per_patch", image_px=64).patch_embed.pos_embed.shape == (1, 64, 32)
    assert small(positions="grid", image_px=64).patch_embed.pos_embed.shape == (1, 16, 32)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 33), (0, 32)])
def test_an_image_that_is_no_whole_number_of_patches_is_an_error_with_a_way_out(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"{height} × {width} px is not made of 8 × 8 px patches: resize or pad"):
        small()(torch.zeros(1, 3, height, width))
    with pytest.raises(ValueError, match=r"\(1, 32, 32\)"):
        small()(torch.zeros(1, 32, 32))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_stays_close_to_float32(autocast: bool) -> None:
    model = create_model("longvit_tiny_patch32").eval()
    images = pixels(1, 3, 256, 256)
    with torch.no_grad():
        want = model(images)
        if not autocast:
            model.to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            got = model(images)
    # The largest of 40 random networks: 1.4e-5 under autocast; 1.5e-4 where the residual stream is rounded, too.
    assert 1 - torch.cosine_similarity(got.double(), want.double()) <= (3e-5 if autocast else 3e-4)
    assert got.dtype == (torch.float32 if autocast else torch.bfloat16)  # autocast: residual stream in float32


def test_gradients_under_autocast_are_float32_and_close() -> None:
    model = small(num_classes=2).train()
    images = pixels(2, 3, 64, 64)
    grads = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1]))
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert grads[1].dtype == torch.float32
    assert torch.cosine_similarity(*grads, dim=0) > 0.995


def test_recomputation_gives_the_same_gradients_and_runs_attention_once() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, images = small(num_classes=3).train(), pixels(1, 3, 64, 64)
    results, flops = [], []
    for recompute in (False, True):
        model.set_recompute(recompute)
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            model(images).square().sum().backward()
        flops.append(counter.get_flop_counts()["Global"][torch.ops.longvit.dilated_attention])
        results.append([p.grad.clone() for p in model.parameters()])
    assert flops[0] == flops[1]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("chunk", [3, 64, 1000])
@pytest.mark.parametrize("gelu", [False, True])
def test_norm_linear_in_chunks_equals_the_plain_form(monkeypatch, chunk: int, gelu: bool) -> None:
    monkeypatch.setattr(nl, "CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(12).double(), nn.Linear(12, 7).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(5, 13, 12, dtype=torch.float64, requires_grad=True)
    leaves = [x, *norm.parameters(), *linear.parameters()]
    plain = linear(norm(nn.functional.gelu(x) if gelu else x))
    lean = nl.norm_linear(x, norm, linear, gelu=gelu)
    assert torch.allclose(lean, plain, atol=1e-13)
    grad = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(lean, leaves, grad), torch.autograd.grad(plain, leaves, grad), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("keep_hidden", [True, False])
def test_the_ffn_equals_the_plain_form_and_passes_gradcheck(monkeypatch, keep_hidden: bool) -> None:
    monkeypatch.setattr(nl, "CHUNK_TOKENS", 4)
    torch.manual_seed(0)
    ffn = FeedForward(6, 10, 1e-5, keep_hidden).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    plain = ffn.fc2(ffn.norm(nn.functional.gelu(ffn.fc1(ffn.norm_in(x)))))
    assert torch.allclose(ffn(x), plain, atol=1e-13)
    leaves = [x, *ffn.parameters()]
    ours, want = (torch.autograd.grad(y.square().sum(), leaves) for y in (ffn(x), plain))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(ours, want, strict=True))
    assert torch.autograd.gradcheck(ffn, x)


def test_drop_path_drops_whole_sequences_in_training_only() -> None:
    from longvit.model.encoder import drop_path

    x = torch.ones(1000, 2, 3)
    torch.manual_seed(0)
    dropped = drop_path(x, 0.25, training=True)
    kept = dropped[:, 0, 0] != 0
    assert 0.7 < kept.float().mean() < 0.8
    assert torch.equal(dropped, kept.view(-1, 1, 1) * x / 0.75)
    assert drop_path(x, 0.25, training=False) is x
    rates = [block.drop_path_rate for block in create_model("longvit_tiny_patch32", drop_path=0.1).blocks]
    assert rates == pytest.approx([0.1 * i / 5 for i in range(6)])


def test_heads_and_features_have_timms_names() -> None:
    model = create_model("longvit_tiny_patch32", num_classes=3, class_names=("a", "b", "c")).eval()
    images = pixels(2, 3, 64, 96)
    with torch.no_grad():
        tokens = model.forward_features(images)
        assert tokens.shape == (2, 6, model.num_features)
        assert torch.equal(model.forward_head(tokens), model(images))
        assert model.forward_head(tokens, pre_logits=True).shape == (2, model.num_features)
        model.reset_classifier(5)
        assert model(images).shape == (2, 5)
        model.reset_classifier(0)
        assert model(images).shape == (2, model.num_features)
    assert model.config.num_classes == 0
    assert set(model.no_weight_decay()) <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_dim": 30}, "30 is not a multiple of num_heads 4"),
        ({"segment_lengths": (4, 8)}, "2 segment lengths for 5 dilated ratios"),
        ({"num_classes": 3, "class_names": ("a",)}, "1 class names for 3 classes"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_settings_that_do_not_fit_name_both_numbers(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_an_unknown_model_or_setting_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="longvit_small_patch32"):
        longvit.create_model("longvit_small")
    with pytest.raises(ValueError, match="embed_dim"):
        longvit.create_model("longvit_tiny_patch32", embed_dims=3)


def test_embed_takes_a_slide_or_a_canvas_and_keeps_the_mode() -> None:
    class Slide:
        def strips(self, side_px: int, fit: str, strip_px: int) -> Iterator[Strip]:
            assert (side_px, fit) == (64, "pad")
            yield Strip(0, np.full((64, 64, 3), 200, np.uint8), ())

    model = small(image_px=64, fit="pad").train()
    vector = model.embed(Slide())
    assert vector.shape == (32,)
    assert vector.dtype == np.float32
    assert model.training
    assert np.array_equal(vector, model.embed(np.full((64, 64, 3), 200, np.uint8)))
    with pytest.raises(TypeError, match="open_slide"):
        model.embed("a.svs")


@pytest.mark.slow
def test_torch_compile_runs_the_model_in_one_graph() -> None:
    model, images = small(num_classes=2).eval(), pixels(1, 3, 32, 32)
    with torch.no_grad():
        want = model(images)
        got = torch.compile(model, backend="aot_eager")(images)
    assert torch.allclose(got, want, atol=1e-6)
