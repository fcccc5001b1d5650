"""The loop: resume to the last bit, accumulation that equals one large batch, errors that name the culprit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.training.small_run import SETTINGS, PointBatches, network, run, step

from longvit.errors import InputError
from longvit.training.loop import NonFiniteError, TrainSettings, train
from longvit.training.optim import learning_rate, parameter_groups

SCRIPT = Path(__file__).with_name("small_run.py")


def start(folder: Path, out: Path, seconds: float = 0.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(out), str(seconds)])


def kill_when(process: subprocess.Popen[bytes], folder: Path, checkpoint: str) -> None:
    end = time.monotonic() + 60
    while not (folder / checkpoint).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_twice_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    assert start(tmp_path / "a", tmp_path / "a.safetensors").wait() == 0
    kill_when(start(tmp_path / "b", tmp_path / "b.safetensors", 0.02), tmp_path / "b", "step-00000002.json")
    kill_when(start(tmp_path / "b", tmp_path / "b.safetensors", 0.02), tmp_path / "b", "step-00000007.json")
    assert not (tmp_path / "b.safetensors").exists()
    assert start(tmp_path / "b", tmp_path / "b.safetensors").wait() == 0
    whole, resumed = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_a_finished_run_started_again_returns_at_once(tmp_path: Path) -> None:
    model, result = run(tmp_path)
    again, second = run(tmp_path)
    assert second.resumed_at == result.steps == 9
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert second.epochs == result.epochs
    assert all(np.array_equal(second.history[k], v) for k, v in result.history.items())


def test_resume_with_other_settings_shows_the_difference(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match=r"other settings \(lr 0.01 -> 0.02\); give the same"):
        run(tmp_path, settings=replace(SETTINGS, lr=0.02))
    run(tmp_path, settings=replace(SETTINGS, checkpoint_minutes=9.0))  # changes no bit, so it may differ


def test_resume_of_another_model_names_the_tensor(tmp_path: Path) -> None:
    run(tmp_path)
    other = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Linear(7, 2))
    with pytest.raises(InputError, match=r"0.bias is \(16,\) there and \(7,\) in this model"):
        train(other, PointBatches(), step, SETTINGS, folder=tmp_path)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    model, result = run(tmp_path)
    newest = tmp_path / "step-00000009.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again, second = run(tmp_path)
    assert second.resumed_at == 8
    assert "step-00000009.safetensors is damaged (checksum)" in second.skipped[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert np.array_equal(second.history["loss"], result.history["loss"])


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_accumulation_equals_one_large_batch(tmp_path: Path, batch_size: int) -> None:
    """Also where the last batch and the last window of an epoch are smaller (21 samples, 8 a step)."""
    parameters = []
    for size in (8, batch_size):
        model = network().eval()
        model[3] = torch.nn.Identity()  # type: ignore[index]
        settings = TrainSettings(epochs=2, accumulation=8 // size, lr=1e-2, weight_decay=0.1)
        result = train(
            model.double(),
            _Double(batch_size=size),
            step,
            settings,
            folder=tmp_path / str(size),
            progress=False,
        )
        parameters.append(torch.cat([p.flatten() for p in model.parameters()]))
        assert result.steps == 6
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-9, atol=1e-12)


class _Double(PointBatches):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.x = self.x.double()


def test_steps_are_adamw_on_the_clipped_gradient_at_the_scheduled_rate(tmp_path: Path) -> None:
    """Three steps on all 21 samples, against torch's own clipping and optimiser by hand."""
    settings = TrainSettings(epochs=3, accumulation=6, lr=1e-2, warmup_epochs=1, clip_norm=0.42)
    mine, theirs = (network().eval() for _ in range(2))
    for net in (mine, theirs):
        net[3] = torch.nn.Identity()  # type: ignore[index]
    result = train(mine, PointBatches(), step, settings, folder=tmp_path, progress=False)
    data = PointBatches()
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    norms = []
    for i in range(3):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(i, lr=1e-2, min_lr=1e-6, warmup_steps=1, steps=3)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(data.x), data.y).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.42).item())
        optimizer.step()
    assert min(norms) < 0.42 < max(norms)  # once clipped, once not
    np.testing.assert_allclose(result.history["grad_norm"], norms, rtol=1e-4)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_nan_loss_names_the_slide_and_leaves_the_parameters(tmp_path: Path) -> None:
    model = network()
    before = [p.clone() for p in model.parameters()]
    settings = replace(SETTINGS, accumulation=6)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1: the loss is nan on .*slide_13") as caught:
        train(model, PointBatches(poison=13), step, settings, folder=tmp_path, progress=False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).split("nan on ")[1].split(";")[0].split(", ")) <= 4  # its batch, not all 21
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_losses_per_sample_name_the_one_slide(tmp_path: Path) -> None:
    def by_sample(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        losses = torch.nn.functional.cross_entropy(model(batch.x), batch.y, reduction="none")
        return {"loss": losses.mean(), "losses": losses}

    settings = replace(SETTINGS, max_bad_steps=1)
    with pytest.raises(NonFiniteError, match=r"the loss is nan on slide_13; look at it"):
        train(network(), PointBatches(poison=13), by_sample, settings, folder=tmp_path, progress=False)
    result = train(network(), PointBatches(), by_sample, SETTINGS, folder=tmp_path / "fine", progress=False)
    assert set(result.history) == {"loss", "lr", "grad_norm"}


def test_nan_weight_names_the_layer(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(NonFiniteError, match=r"parameter 4.weight holds a NaN or an infinity before step 1"):
        train(model, PointBatches(), step, SETTINGS, folder=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_infinite_gradient_at_a_finite_loss_names_the_layer(tmp_path: Path) -> None:
    def root(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": (model(batch.x) * 0).pow(2).sum().sqrt()}

    with pytest.raises(NonFiniteError, match=r"the gradient of 0.weight is not finite on slide_"):
        train(network(), PointBatches(), root, SETTINGS, folder=tmp_path, progress=False)


def test_bfloat16_keeps_float32_parameters_and_learns(tmp_path: Path) -> None:
    settings = replace(SETTINGS, dtype="bfloat16", epochs=20, checkpoint_minutes=9)
    model, result = run(tmp_path, settings=settings)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert result.epochs[-1]["val_loss"] < 0.6 * result.epochs[0]["val_loss"]


def test_schedule_warms_up_then_falls_to_the_end() -> None:
    rates = [learning_rate(s, lr=1.0, min_lr=0.1, warmup_steps=4, steps=12) for s in range(12)]
    np.testing.assert_allclose(rates[:4], [0.325, 0.55, 0.775, 1.0])
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.55)  # half way down a cosine
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 < rates[-1] < 0.15
    assert learning_rate(0, lr=1.0, min_lr=0.0, warmup_steps=0, steps=1) == 1.0


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = torch.nn.Parameter(torch.zeros(4, 8))
        self.patch_embed = torch.nn.Linear(8, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.head = torch.nn.Linear(8, 2)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def test_weight_decay_falls_on_matrices_only_and_layer_decay_on_depth() -> None:
    groups = parameter_groups(_Block(), weight_decay=0.05, layer_decay=0.5)
    of = {name: (g["weight_decay"], g["lr_scale"]) for g in groups for name in g["names"]}  # type: ignore[attr-defined]
    assert of == {
        "position": (0.0, 0.125),
        "patch_embed.weight": (0.05, 0.125),
        "patch_embed.bias": (0.0, 0.125),
        "layers.0.weight": (0.05, 0.25),
        "layers.0.bias": (0.0, 0.25),
        "layers.1.weight": (0.05, 0.5),
        "layers.1.bias": (0.0, 0.5),
        "head.weight": (0.05, 1.0),
        "head.bias": (0.0, 1.0),
    }


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"epochs": 0}, "epochs 0: at least 1"),
        ({"lr": float("nan")}, "lr nan"),
        ({"clip_norm": 0.0}, "clip_norm 0.0: above 0"),
        ({"dtype": "float8"}, "choose float32, bfloat16, float16"),
        ({"ema": 1.0}, "ema 1.0: above 0 and below 1"),
        ({"max_bad_steps": 0}, "max_bad_steps 0: at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        TrainSettings(**wrong)


def test_checkpoint_json_is_json(tmp_path: Path) -> None:
    run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-0000000{i}.{kind}" for i in (8, 9) for kind in ("json", "safetensors")
    ]
    assert json.loads((tmp_path / "step-00000009.json").read_text())["state"]["settings"]["lr"] == 0.01
