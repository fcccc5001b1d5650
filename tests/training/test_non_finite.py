"""A NaN costs a step, not the run; several in a row end it; an overflow of float16 is not logged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.small_run import SETTINGS, PointBatches, Points, network, run, step

from longvit.errors import InputError
from longvit.training.checkpoint import read_checkpoint
from longvit.training.loop import NonFiniteError, train
from longvit.training.non_finite import Verdict, next_scale


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def test_a_nan_costs_its_step_and_is_named_also_above_the_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, before = network(), []
    settings = replace(SETTINGS, ema=0.9)

    def watching(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        before.append(flat(model))
        return step(model, batch)

    result = train(model, PointBatches(poison=13), watching, settings, folder=tmp_path)
    log = capsys.readouterr().err
    bad = np.flatnonzero(np.isnan(result.history["loss"]))
    assert len(bad) == 3  # once an epoch
    assert result.steps == 9
    assert np.isfinite(result.history["lr"]).all()
    for step_, line in zip(bad, result.skipped_steps, strict=True):
        assert line.startswith(f"epoch {step_ // 3 + 1}, step {step_ + 1}: the loss is nan on ")
        assert "slide_13" in line
        assert f"skipped: {line}" in log
    for step_, parameters in enumerate(before[::2]):
        after = before[2 * step_ + 2] if step_ < 8 else None
        assert after is None or torch.equal(parameters, after) == (step_ in bad)
    assert all(math.isfinite(epoch["train_loss"]) for epoch in result.epochs)
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert saved.tensors["optimizer.step.0.weight"] == 6  # the moments did not move either
    assert all(tensor.isfinite().all() for name, tensor in saved.tensors.items() if name != "history")
    assert flat(model).isfinite().all()


def test_bad_steps_in_a_row_are_counted_across_a_restart(tmp_path: Path) -> None:
    """Stopped after two of them, the third one ends the run, with the first one's culprit."""

    class Poisoned(PointBatches):
        end = 99

        def epoch(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Points]:
            assert numbers is not None
            for i, batch in zip(numbers, super().epoch(epoch, numbers), strict=True):
                if epoch == 1 and i == self.end:
                    raise KeyboardInterrupt
                yield batch if epoch == 0 else Points(batch.x * math.nan, batch.y, batch.names)

    batches = Poisoned()
    batches.end = 4
    with pytest.raises(KeyboardInterrupt):
        train(network(), batches, step, SETTINGS, folder=tmp_path, progress=False)
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert (saved.step, saved.state["bad_in_a_row"]) == (5, 2)
    batches.end = 99
    with pytest.raises(NonFiniteError, match=r"epoch 2, step 4: .*; 2 more after it in a row; look at it, or lower"):
        train(network(), batches, step, SETTINGS, folder=tmp_path, progress=False)
    with pytest.raises(NonFiniteError, match=r"epoch 2, step 4: .*; 3 more"):  # patience is not decisive
        train(network(), batches, step, replace(SETTINGS, max_bad_steps=4), folder=tmp_path, progress=False)


def test_an_infinite_gradient_costs_its_step_too(tmp_path: Path) -> None:
    count = [0]

    def root(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        count[0] += 1
        out = step(model, batch)
        return {"loss": out["loss"] + (model(batch.x) * 0).pow(2).sum().sqrt()} if count[0] == 3 else out

    def uniform(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": root(model, batch)["loss"]}

    result = train(network(), PointBatches(), uniform, SETTINGS, folder=tmp_path, progress=False)
    assert len(result.skipped_steps) == 1
    assert result.skipped_steps[0].startswith("epoch 1, step 2: the gradient of 0.weight is not finite on slide_")
    assert np.isfinite(result.history["loss"]).all()
    assert np.flatnonzero(~np.isfinite(result.history["grad_norm"])).tolist() == [1]


def test_float16_where_the_device_has_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^dtype float16: not on cpu; choose bfloat16 or float32$"):
        run(tmp_path, settings=replace(SETTINGS, dtype="float16"))


def test_float16_finds_its_scale_learns_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is large, so that the first scale overflows; the CPU computes float16 slowly, but it does."""
    monkeypatch.setattr("longvit.training.loop._has_float16", lambda device: True)
    monkeypatch.setattr("longvit.training.non_finite._STEPS_TO_DOUBLE", 3)
    settings = replace(SETTINGS, dtype="float16", epochs=20, clip_norm=None)
    fuse = [10**9]

    def large(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        fuse[0] -= 1
        if fuse[0] < 0:
            raise KeyboardInterrupt
        logits = model(batch.x)
        assert logits.dtype == torch.float16
        return {"loss": 300 * torch.nn.functional.cross_entropy(logits, batch.y)}

    def trained(folder: Path) -> Any:
        model = network()
        return model, train(model, PointBatches(), large, settings, folder=folder, progress=False)

    whole, result = trained(tmp_path / "whole")
    overflowed = ~np.isfinite(result.history["grad_norm"])
    assert overflowed[0]
    assert not result.skipped_steps
    assert 0 < overflowed.sum() < 20
    assert np.isfinite(result.history["loss"]).all()
    assert result.epochs[-1]["train_loss"] < 0.8 * result.epochs[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in whole.parameters())

    fuse[0] = 23  # somewhere in the fourth epoch
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut")
    fuse[0] = 10**9
    again, _ = trained(tmp_path / "cut")
    assert torch.equal(flat(whole), flat(again))
    ours, theirs = read_checkpoint(tmp_path / "whole"), read_checkpoint(tmp_path / "cut")
    assert ours is not None
    assert theirs is not None
    assert ours.state["loss_scale"] == theirs.state["loss_scale"] < 2**16
    assert ours.state["steps_since_scale"] == theirs.state["steps_since_scale"]


def test_float16_gradients_are_those_of_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale goes out again before clipping and before the norm that is reported."""
    monkeypatch.setattr("longvit.training.loop._has_float16", lambda device: True)
    _, half = run(tmp_path / "half", settings=replace(SETTINGS, dtype="float16", epochs=1, clip_norm=0.3))
    _, single = run(tmp_path / "single", settings=replace(SETTINGS, epochs=1, clip_norm=0.3))
    np.testing.assert_allclose(half.history["grad_norm"], single.history["grad_norm"], rtol=0.02)
    np.testing.assert_allclose(half.history["loss"], single.history["loss"], rtol=0.02)


def test_the_scale_halves_at_an_overflow_and_doubles_after_two_thousand_steps() -> None:
    assert next_scale(64.0, 1500, Verdict.OVERFLOW) == (32.0, 0)
    assert next_scale(64.0, 1998, Verdict.FINE) == (64.0, 1999)
    assert next_scale(64.0, 1999, Verdict.FINE) == (128.0, 0)
    assert next_scale(64.0, 7, Verdict.BAD) == (64.0, 7)
