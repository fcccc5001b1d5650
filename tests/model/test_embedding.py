"""Patch embedding of images in strips, and of images in host memory with a model on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tests.conftest import EXAMPLE_SLIDE

from longvit.model import embedding
from longvit.model.embedding import PatchEmbedding
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.model.positions import PatchGrid
from longvit.slides.reader import Slide, open_slide
from longvit.slides.strips import Strip

P = 4


def patch_embedding(grid: int = 4, dtype: torch.dtype = torch.float32) -> PatchEmbedding:
    torch.manual_seed(0)
    return PatchEmbedding(24, P, PatchGrid(grid, grid)).to(dtype)


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height * P, width * P, 3), dtype=np.uint8)


def image(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0)


def strips_of(array: np.ndarray, strip_px: int) -> Iterator[np.ndarray]:
    for y_px in range(0, len(array), strip_px):
        yield array[y_px : y_px + strip_px]


@pytest.mark.parametrize("grid", [4, 9])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (9, 9), (13, 7), (1, 40), (40, 1), (30, 33)])
@pytest.mark.parametrize("autocast", [False, True])
def test_strips_give_the_bits_of_the_whole_image(
    monkeypatch: pytest.MonkeyPatch, grid: int, height: int, width: int, autocast: bool
) -> None:
    monkeypatch.setattr(embedding, "CPU_CHUNK_PATCHES", 64)
    embed, array = patch_embedding(grid), pixels(height, width)
    strip_px = embed.strip_px(width * P)
    assert strip_px % P == 0
    with torch.no_grad(), torch.autocast("cpu", enabled=autocast):
        whole = embed(image(array))
        tokens = embed.from_strips(strips_of(array, strip_px), PatchGrid(height, width))
        assert torch.equal(tokens, whole)
        first, end = height // 3, height
        if first:
            band = embed.from_strips(strips_of(array[first * P :], strip_px), PatchGrid(height, width), first=first)
            torch.testing.assert_close(band, whole.unflatten(1, (height, width))[:, first:end].flatten(1, 2))


def test_a_strip_gives_its_rows_of_the_tokens_and_its_part_of_the_gradients() -> None:
    height, width, cuts = 11, 6, (0, 3, 4, 11)
    array = pixels(height, width)
    whole, parts = patch_embedding(4, torch.float64), patch_embedding(4, torch.float64)
    expected = whole(image(array))
    grad = torch.randn(expected.shape, dtype=torch.float64)
    expected.backward(grad)
    for first, end in itertools.pairwise(cuts):
        tokens = parts(image(array[first * P : end * P]), first=first, rows=height)
        rows = slice(first * width, end * width)
        torch.testing.assert_close(tokens, expected[:, rows], rtol=0, atol=1e-12)
        tokens.backward(grad[:, rows])
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-12, atol=1e-12)


def test_strips_that_do_not_make_the_image_are_an_error() -> None:
    embed, array = patch_embedding(), pixels(6, 4)
    with pytest.raises(ValueError, match="the strips end at row 6 of patches, not at 8"):
        embed.from_strips([array], PatchGrid(8, 4))
    with pytest.raises(ValueError, match="strips of 6 × 4 patches for 5 × 4"):
        embed.from_strips([array], PatchGrid(5, 4))
    with pytest.raises(ValueError, match="not made of 4 × 4 px patches"):
        embed.from_strips([array[:3]], PatchGrid(6, 4))


def test_an_image_in_host_memory_is_moved_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """3.2 GB of pixels at 32,768² must not be moved to the GPU at once; device "meta" replaces it here."""
    monkeypatch.setattr(embedding, "CPU_CHUNK_PATCHES", 8)
    moved: list[torch.Size] = []
    original = embedding._moved

    def record(strip: torch.Tensor, device: torch.device) -> torch.Tensor:
        result = original(strip, device)
        assert result.device == device != strip.device
        moved.append(strip.shape)
        return result

    monkeypatch.setattr(embedding, "_moved", record)
    monkeypatch.setattr(embedding, "compute_dtype", lambda weight: weight.dtype)  # "meta" has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    embed = patch_embedding().to("meta")
    for images in (image(pixels(9, 4)), image(pixels(9, 4)).contiguous()):  # interleaved colours, and planes
        moved.clear()
        tokens = embed(images)
        assert (tokens.device.type, tokens.shape) == ("meta", (1, 36, 24))
        assert [shape[2] for shape in moved] == [2 * P] * 4 + [P]
        tokens.sum().backward()
        assert [shape[2] for shape in moved[5:]] == [2 * P] * 4 + [P]
        assert embed.proj.weight.grad is not None


@pytest.mark.gpu
def test_an_image_in_host_memory_gives_the_result_of_one_on_the_gpu() -> None:
    embed, array = patch_embedding().cuda(), pixels(90, 64)
    on_gpu = embed(image(array).cuda())
    on_gpu.sum().backward()
    expected = embed.proj.weight.grad
    for images in (image(array), image(array).contiguous(), image(array).contiguous().pin_memory()):
        embed.zero_grad()
        tokens = embed(images)
        assert torch.equal(tokens, on_gpu)
        tokens.sum().backward()
        assert torch.equal(embed.proj.weight.grad, expected)
    strip_px = embed.strip_px(64 * P)
    assert torch.equal(embed.from_strips(strips_of(array, strip_px), PatchGrid(90, 64)), on_gpu)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_a_slide_embedded_as_a_stream_gives_the_bits_of_its_canvas(monkeypatch: pytest.MonkeyPatch, fit: str) -> None:
    monkeypatch.setattr(embedding, "CPU_CHUNK_PATCHES", 64)
    heights: list[int] = []
    original = Slide.strips

    def record(self: Slide, *args: object, **settings: object) -> Iterator[Strip]:
        for strip in original(self, *args, **settings):  # type: ignore[arg-type]
            heights.append(len(strip.pixels))
            yield strip

    monkeypatch.setattr(Slide, "strips", record)
    config = LongViTConfig(embed_dim=16, depth=1, num_heads=2, ffn_dim=32, image_px=16 * 26, patch_px=16, fit=fit)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = LongViT(config).eval()
    with open_slide(EXAMPLE_SLIDE) as slide:
        embedding_of_stream = model.embed(slide)
        assert heights == [32] * 13  # two rows of 26 patches at a time, never the canvas
        assert np.array_equal(embedding_of_stream, model.embed(slide.canvas(config.image_px, config.fit)))
