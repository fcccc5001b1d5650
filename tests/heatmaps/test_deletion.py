"""Deletion test: on a model whose contributions are known, the curves are their sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.heatmaps.made import made_canvas

from longvit.errors import InputError
from longvit.heatmaps.deletion import deletion, deletion_of, forward_passes, summarise
from longvit.interpret import class_contributions, patch_contributions, risk_contributions
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.report.deletion import slides_to_test

WHITE = (255, 255, 255)


def test_a_linear_score_falls_by_the_sums_of_what_is_replaced() -> None:
    """score = Σ w · pixels: replacing patch i takes c_i = w · (pixels − background) away, in closed form."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (64, 96, 3), dtype=np.uint8)
    weights = rng.normal(size=(64, 96, 3))
    change = (weights * (pixels.astype(float) - 255)).reshape(4, 16, 6, 16, 3).sum((1, 3, 4))
    seen: list[int] = []

    def score_of(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return (images * weights).sum((1, 2, 3))

    fractions = (0, 0.125, 0.25, 0.5, 1)
    curves = deletion_of(score_of, pixels, change, WHITE, fractions=fractions, orders=2, seed=3)
    counts = [0, 3, 6, 12, 24]
    start = float((pixels * weights).sum())
    falling, rising = np.sort(change.ravel())[::-1], np.sort(change.ravel())
    assert curves.patches == 24
    assert curves.most == pytest.approx([start - falling[:n].sum() for n in counts])
    assert curves.least == pytest.approx([start - rising[:n].sum() for n in counts])
    order = np.random.default_rng(3).permutation(24)
    assert curves.random[0] == pytest.approx([start - change.ravel()[order[:n]].sum() for n in counts])
    assert curves.most_fall > 0
    assert curves.least_fall > 0
    assert sum(seen) == 2 + 3 * 4
    area = np.trapezoid(curves.random.mean(0) - curves.most, fractions)
    assert curves.most_fall == pytest.approx(area)


def test_the_wrong_map_is_found_out() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (64, 64, 3), dtype=np.uint8)
    weights = rng.normal(size=pixels.shape)
    change = (weights * (pixels.astype(float) - 255)).reshape(4, 16, 4, 16, 3).sum((1, 3, 4))
    curves = deletion_of(lambda x: (x * weights).sum((1, 2, 3)), pixels, -change, WHITE, orders=8)
    assert curves.most_fall < 0
    assert curves.least_fall < 0


@pytest.mark.parametrize("classes", [2, 3])
def test_a_longvit_without_attention_falls_by_its_contributions(classes: int) -> None:
    """Each token is normalised alone and sees no other, so that replacing a patch changes its own term only."""
    torch.manual_seed(0)
    config = LongViTConfig(
        embed_dim=32, depth=2, num_heads=4, ffn_dim=48, num_classes=classes, pool_norm="token_norm", image_px=256
    )
    model = LongViT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    canvas = made_canvas("stretch")
    empty = replace(canvas, pixels=np.full_like(canvas.pixels, 255))
    change = class_contributions(model, canvas, 1).per_patch - class_contributions(model, empty, 1).per_patch
    contributions = class_contributions(model, canvas, 1)
    order = np.argsort(contributions.per_patch.ravel(), kind="stable")[::-1]
    curves = deletion(model, canvas, 1, fractions=(0, 0.25, 0.5, 1), orders=1)
    expected = [contributions.score - change.ravel()[order[:n]].sum(dtype=np.float64) for n in (0, 16, 32, 64)]
    assert curves.most == pytest.approx(expected, abs=2e-4)
    assert curves.patches == 64
    assert not model.training


@pytest.mark.parametrize("bins", [1, 4])
def test_a_survival_model_is_tested_on_its_risk(bins: int) -> None:
    """Without attention the logits of every image are known, and the risk is written out from the hazards."""
    torch.manual_seed(0)
    config = LongViTConfig(
        embed_dim=32, depth=1, num_heads=4, ffn_dim=48, num_classes=bins, pool_norm="token_norm", image_px=256,
        task="survival",
    )  # fmt: skip
    model = LongViT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    canvas = made_canvas("stretch")
    empty = replace(canvas, pixels=np.full_like(canvas.pixels, 255))
    part_KN, empty_KN = (
        np.stack([patch_contributions(model, image, k).ravel().astype(np.float64) for k in range(bins)])
        for image in (canvas, empty)
    )
    with torch.no_grad():
        logits_K = model(torch.from_numpy(canvas.pixels).permute(2, 0, 1)[None])[0].double().numpy()

    def risk(replaced: np.ndarray) -> float:
        z_K = logits_K - (part_KN - empty_KN)[:, replaced].sum(1)
        hazard_K = 1 / (1 + np.exp(-z_K))
        return z_K[0] if bins == 1 else -sum(np.prod(1 - hazard_K[: k + 1]) for k in range(bins))

    order = np.argsort(risk_contributions(model, canvas).per_patch.ravel(), kind="stable")[::-1]
    curves = deletion(model, canvas, fractions=(0, 0.25, 0.5, 1), orders=1)
    assert curves.most == pytest.approx([risk(order[:n]) for n in (0, 16, 32, 64)], abs=2e-4)
    assert curves.least == pytest.approx([risk(order[::-1][:n]) for n in (0, 16, 32, 64)], abs=2e-4)
    assert curves.most[1] < curves.least[1]


def test_blank_patches_are_never_replaced() -> None:
    """Random orders over empty glass would fall slowly, and any map would look faithful beside them."""
    pixels = np.full((64, 64, 3), 250, np.uint8)
    pixels[:16, :48] = 100
    seen: list[np.ndarray] = []

    def score_of(images: np.ndarray) -> np.ndarray:
        seen.extend(images)
        return images.mean((1, 2, 3))

    curves = deletion_of(score_of, pixels, np.arange(16.0).reshape(4, 4), WHITE, fractions=(0, 0.3, 1), orders=2)
    assert curves.patches == 3
    assert all((image[16:] == 250).all() for image in seen)
    assert all((image[:, 48:] == 250).all() for image in seen)


def test_a_blank_slide_and_wrong_fractions_are_one_line() -> None:
    blank = np.full((64, 64, 3), 255, np.uint8)
    for fractions, words in (((0, 1), "no patch differs"), ((0, 0.5), "ascend from 0 to 1"), ((0, 1, 1), "ascend")):
        with pytest.raises(InputError, match=words):
            deletion_of(lambda x: x.mean((1, 2, 3)), blank, np.zeros((4, 4)), WHITE, fractions=fractions)
    with pytest.raises(InputError, match="orders 0: at least 1"):
        deletion_of(lambda x: x.mean((1, 2, 3)), blank, np.zeros((4, 4)), WHITE, orders=0)


def test_the_interval_holds_the_mean_and_one_slide_has_none() -> None:
    areas = np.random.default_rng(0).normal(0.3, 0.1, 40)
    summary = summarise(areas.tolist())
    assert summary.low is not None
    assert summary.high is not None
    assert summary.low < summary.mean < summary.high
    half = 1.96 * areas.std() / np.sqrt(40)
    assert summary.high - summary.low == pytest.approx(2 * half, rel=0.15)
    assert (summarise([0.5]).low, summarise([0.5]).slides) == (None, 1)
    assert summarise([0.5, 0.7], ["a", "a"]).low is None


def test_the_slides_of_one_patient_do_not_narrow_the_interval() -> None:
    areas = np.random.default_rng(0).normal(0.3, 0.1, 10).tolist()
    alone = summarise(areas)
    copied = summarise([area for area in areas for _ in range(5)], [str(i) for i in range(10) for _ in range(5)])
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))


def test_the_test_of_a_report_is_bounded_unless_asked() -> None:
    names = [f"s{i:03d}" for i in range(50)]
    small = slides_to_test(names, None, parameters=3_500_000, patches=196)
    assert len(small) == 8, small
    assert (small[0], small[-1]) == ("s000", "s049")
    assert slides_to_test(names, None, parameters=22_000_000, patches=16_384) == []
    assert len(slides_to_test(names, 3, parameters=22_000_000, patches=16_384)) == 3
    assert slides_to_test([], None, parameters=1, patches=1) == []
    assert forward_passes(fractions=5, orders=2) == 4 + 3 * 4
