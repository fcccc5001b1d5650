"""Training on several ranks is the training of one process, on any mesh; the ranks stop, skip and resume together."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parallel.ranks import on_mesh
from tests.training.sharded_run import SETTINGS, run

from longvit.parallel import Ranks
from longvit.training.checkpoint import read_checkpoint
from longvit.training.loop import Interrupted, TrainResult


def agree(
    ours: tuple[dict[str, torch.Tensor], TrainResult], alone: tuple[dict[str, torch.Tensor], TrainResult]
) -> None:
    for name, parameter in alone[0].items():
        assert (ours[0][name] - parameter).abs().max() <= 1e-8, name
    for name, column in alone[1].history.items():
        assert np.allclose(ours[1].history[name], column, rtol=1e-6, equal_nan=True), name  # the metrics are float32
    assert [e["val_loss"] for e in ours[1].epochs] == pytest.approx([e["val_loss"] for e in alone[1].epochs], abs=1e-9)


@pytest.mark.parametrize(("data", "sequence"), [(1, 4), (2, 2), (4, 1), (1, 3)])
def test_any_mesh_trains_to_the_parameters_of_one_process(tmp_path: Path, data: int, sequence: int) -> None:
    """With drop path, accumulation, clipping, an average of parameters and steps of unequal shares."""
    batch_size = 2 if data == 2 else 1
    alone = run(folder=tmp_path / "alone", batch_size=batch_size)
    results = on_mesh(data, sequence, _run, tmp_path / "ranks", {"batch_size": batch_size, "recompute": data == 1})
    assert alone[1].steps >= 4
    for result in results:
        agree(result, alone)
        assert all(torch.equal(result[0][name], p) for name, p in results[0][0].items())  # ranks have the same bits


def test_a_checkpoint_goes_on_on_another_mesh(tmp_path: Path) -> None:
    """Stopped after an epoch on 2 × 2, it resumes on 1 × 3 and then alone, to the same parameters."""
    settings = replace(SETTINGS, epochs=3)
    alone = run(folder=tmp_path / "alone", settings=settings)
    folder = tmp_path / "ranks"
    assert on_mesh(2, 2, _stopped, folder, settings, 0) == [128 + signal.SIGTERM] * 4
    assert on_mesh(1, 3, _stopped, folder, settings, 1) == [128 + signal.SIGTERM] * 3
    again = run(folder=folder, settings=settings)
    assert again[1].resumed_at is not None
    agree(again, alone)


def test_a_nan_on_one_rank_is_skipped_by_all_and_named_once(tmp_path: Path) -> None:
    alone = run(folder=tmp_path / "alone", poison=5)
    results = on_mesh(2, 2, _run, tmp_path / "ranks", {"poison": 5})
    skipped = alone[1].skipped_steps
    assert len(skipped) == SETTINGS.epochs
    assert all("the loss is nan on slide_5" in line for line in skipped)
    for result in results:
        assert result[1].skipped_steps == skipped
        agree(result, alone)


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    on_mesh(2, 1, _run_in_folders_of_their_own, tmp_path)
    assert read_checkpoint(tmp_path / "0") is not None
    assert not (tmp_path / "1").exists()


def _run(ranks: Ranks, folder: Path, settings: dict[str, Any]) -> Any:
    return run(ranks, folder, **settings)


def _run_in_folders_of_their_own(ranks: Ranks, folder: Path) -> None:
    run(ranks, folder / str(ranks.rank))


def _stopped(ranks: Ranks, folder: Path, settings: Any, after_epoch: int) -> int:
    """The last rank alone gets the signal, while it evaluates; → the exit code."""

    def wait(ranks: Ranks, epoch: int) -> None:
        if epoch == after_epoch and ranks.rank == ranks.world - 1:
            stop.append(True)

    stop: list[bool] = []
    real = ranks.highest

    def highest(values: list[int], device: torch.device) -> list[int]:
        if stop:  # outside the evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        return real(values, device)

    object.__setattr__(ranks, "highest", highest)
    try:
        run(ranks, folder, settings=settings, wait=wait)
    except Interrupted as error:
        return error.exit_code
    finally:
        object.__delattr__(ranks, "highest")
    return 0
