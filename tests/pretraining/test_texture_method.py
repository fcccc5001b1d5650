"""Objective texture: the targets know nothing of the random colours, a run resumes to the same bits, and it learns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.pretraining.interrupted_run import settings_of, write_inputs
from tests.pretraining.test_patch_descriptors import pixels, tissue
from torch import Tensor

from longvit.data.slide_list import find_slides
from longvit.dino.schedules import Schedules
from longvit.dino.settings import DinoSettings
from longvit.errors import InputError
from longvit.model.longvit import LongViTConfig
from longvit.model.pretrained import load_model
from longvit.pretraining.export_dino import publish
from longvit.pretraining.patch_descriptors import describe
from longvit.pretraining.run import pretrain
from longvit.pretraining.settings import PretrainSettings
from longvit.pretraining.texture_method import TextureMethod, TextureRegression, Whitening, recoloured
from longvit.report.pretraining import pretrain_report
from longvit.training.loop import Interrupted

CONFIG = LongViTConfig(embed_dim=16, depth=2, num_heads=4, ffn_dim=32, patch_px=16, image_px=64, stem="conv")
TEXTURE = {"objective": "texture", "local_crops": 0}


@dataclass(frozen=True)
class Batch:
    crops: list[Tensor]


def regions(n: int = 12) -> list[np.ndarray]:
    """Every second one is smooth, the others are grainy."""
    density = tissue(n)
    density[::2] = F.avg_pool2d(density[::2], 7, 1, 3)
    crops = (255 * pixels(density)).round().byte()
    return list(crops.permute(0, 2, 3, 1).numpy())


def regression() -> TextureRegression:
    torch.manual_seed(0)
    model = TextureRegression(CONFIG, drop_path=0.0)
    model.fit_whitening(regions())
    return model


def test_whitened_numbers_have_mean_0_and_variance_1_at_most() -> None:
    spreads = np.arange(1, 7)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 6)) * spreads + 3).float()
    whitening = Whitening(6)
    whitening.fit(features)
    x = whitening(features)
    assert x.mean(0).abs().max() < 0.1
    assert 0.5 < x.var(0).min() <= x.var(0).max() < 1.05


def test_targets_are_those_of_the_crop_before_its_colours_change() -> None:
    """Two steps on one batch have different losses: each draws new colours, and the targets stay the same."""
    model, crops = regression(), (255 * pixels(tissue(4))).round()
    method = TextureMethod(model, Schedules(DinoSettings(), 10, 4), recolour=0.2)
    seen: list[tuple[Tensor, Tensor]] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    targets = model.targets(crops / 255)
    losses = [method.step(model, Batch([crops.byte()]))["loss"] for _ in range(2)]
    assert losses[0] != losses[1]
    assert not torch.equal(seen[0][0], seen[1][0])
    patches = model.patch_whitening(describe(crops / 255, CONFIG.patch_px))
    torch.testing.assert_close(targets[0], patches)


def test_recolouring_by_nothing_changes_nothing_and_otherwise_every_crop_alone() -> None:
    crops = pixels(tissue(2))
    torch.testing.assert_close(recoloured(crops, 0.0), crops, atol=5e-3, rtol=0)
    torch.manual_seed(3)
    first = recoloured(crops, 0.2)
    torch.manual_seed(3)
    torch.testing.assert_close(recoloured(crops, 0.2), first, rtol=0, atol=0)
    shift = (first - crops).mean((2, 3))
    assert (shift[0] - shift[1]).abs().max() > 0.02
    assert first.min() >= 0
    assert first.max() <= 1


def test_a_few_steps_predict_better_than_the_mean() -> None:
    model = regression()
    settings = DinoSettings(epochs=1, lr=5e-3, lr_batch=12, warmup_epochs=0, weight_decay=0, weight_decay_end=0)
    method = TextureMethod(model, Schedules(settings, 30, 12), recolour=0.0)
    optimizer, batch = method.optimizer(model), Batch([torch.from_numpy(np.stack(regions())).permute(0, 3, 1, 2)])
    errors = []
    for step in range(30):
        method.before_step(optimizer, step)
        terms = method.step(model, batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        method.transform_gradients([p.grad for p in model.parameters() if p.grad is not None], 0.0)
        optimizer.step()
        errors.append(float(terms["patch_error"]))
    variance = float(model.targets(batch.crops[0].float() / 255)[0].square().mean())
    assert errors[-1] < variance < errors[0]


def test_an_interrupted_run_ends_with_the_same_bits_and_its_report_says_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    slides, settings = find_slides([tmp_path / "slides"]), settings_of(tmp_path, **TEXTURE)
    whole = pretrain(slides, tmp_path / "whole", settings)

    step, steps = TextureMethod.step, []

    def interrupted(self: TextureMethod, model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        steps.append(1)
        if len(steps) == 8:
            raise Interrupted(15)
        return step(self, model, batch)

    monkeypatch.setattr(TextureMethod, "step", interrupted)
    with pytest.raises(Interrupted):
        pretrain(slides, tmp_path / "parts", settings)
    monkeypatch.setattr(TextureMethod, "step", step)
    parts = pretrain(slides, tmp_path / "parts", settings)
    ours, theirs = (load_model(run.teacher_dir).state_dict() for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    start = load_model(tmp_path / "weights").state_dict()
    assert not torch.equal(start["patch_embed.proj.weight"], ours["patch_embed.proj.weight"])

    assert whole.metrics["alarms"] == []
    page = pretrain_report(whole.folder).read_text(encoding="utf-8")
    assert "predicting the texture of recoloured crops" in page
    assert "DINO" not in page.split("Settings and versions")[0]
    with pytest.raises(InputError, match="not a checkpoint of a pretraining run"):
        publish(whole.folder, tmp_path / "dino.pth")


def test_settings_that_texture_cannot_have_are_refused() -> None:
    for wrong, text in (
        ({"local_crops": 4}, "local_crops 4"),
        ({"local_crops": 0, "sequence_ranks": 2}, "sequence-ranks"),
        ({"local_crops": 0, "recolour": 2.0}, "recolour 2.0"),
    ):
        with pytest.raises(InputError, match=text):
            PretrainSettings(objective="texture", **wrong)


def test_a_run_of_an_older_version_is_one_of_dino() -> None:
    from longvit.training.checkpoint import _ADDED_SETTINGS

    stored = PretrainSettings().result_settings()
    assert {name: stored[name] for name in ("objective", "recolour")}.items() <= _ADDED_SETTINGS.items()
    assert json.dumps(stored)
