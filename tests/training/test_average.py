"""The averaged parameters: by the formula, evaluated and returned in place of the last ones, part of the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tests.training.small_run import SETTINGS, PointBatches, network, run, step

from longvit.training.checkpoint import read_checkpoint
from longvit.training.loop import train


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def test_the_average_follows_its_formula_and_is_what_is_evaluated_and_returned(tmp_path: Path) -> None:
    model, raw, evaluated = network(), [], []
    expected = flat(model)
    settings = replace(SETTINGS, ema=0.3)

    def watching(model: torch.nn.Module, batch: object) -> dict[str, torch.Tensor]:
        raw.append(flat(model))
        return step(model, batch)  # type: ignore[arg-type]

    def evaluate(model: torch.nn.Module, epoch: int) -> dict[str, float]:
        evaluated.append(flat(model))
        return {}

    train(model, PointBatches(), watching, settings, folder=tmp_path, evaluate=evaluate, progress=False)
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    names = [name for name, _ in model.named_parameters()]
    last = torch.cat([saved.tensors[f"model.{name}"].flatten() for name in names])
    of_step = [*raw[::2], last]  # two batches a step: before each step, and after the last
    for s in range(1, 10):
        decay = min(0.3, (1 + s) / (10 + s))
        expected = decay * expected + (1 - decay) * of_step[s]
        if s % 3 == 0:
            torch.testing.assert_close(evaluated[s // 3 - 1], expected)
    torch.testing.assert_close(flat(model), expected)
    assert torch.equal(flat(model), torch.cat([saved.tensors[f"ema.{name}"].flatten() for name in names]))
    assert not torch.equal(flat(model), last)


def test_the_average_leaves_the_training_itself_alone(tmp_path: Path) -> None:
    _, without = run(tmp_path / "a")
    _, averaged = run(tmp_path / "b", settings=replace(SETTINGS, ema=0.9))
    assert all(np.array_equal(without.history[k], v) for k, v in averaged.history.items())
    assert without.epochs[-1]["val_loss"] != averaged.epochs[-1]["val_loss"]


def test_a_finished_run_returns_the_average_again(tmp_path: Path) -> None:
    settings = replace(SETTINGS, ema=0.9)
    (first, _), (again, _) = run(tmp_path, settings=settings), run(tmp_path, settings=settings)
    assert torch.equal(flat(first), flat(again))
