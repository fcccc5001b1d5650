"""TensorBoard event files: every metric once, also after a run was killed and resumed."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.small_run import SETTINGS, PointBatches, network, run, step

from longvit.errors import InputError
from longvit.training.loop import train

SETTINGS = replace(SETTINGS, tensorboard=True, checkpoint_minutes=9)


def events_of(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of all files as TensorBoard sees them: a session's start drops what it will write again."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    seen: list[tuple[str, int, float]] = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.session_log.status == SessionLog.START:
                seen = [e for e in seen if e[1] < event.step]
            seen += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return seen


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"^tensorboard: needs tensorboardX; pip install 'longvit\[tensorboard\]'$"):
        run(tmp_path, settings=SETTINGS)


def test_every_step_and_epoch_stands_there_once_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    count = [0]

    def dying(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        count[0] += 1
        if count[0] == 11:  # in the sixth step; the checkpoint is that of the third
            raise KeyboardInterrupt
        return step(model, batch)

    def evaluate(model: torch.nn.Module, epoch: int) -> dict[str, float]:
        return {"val_auc": 0.5 + epoch / 10}

    arguments: dict[str, Any] = {"folder": tmp_path, "evaluate": evaluate, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        train(network(), PointBatches(), dying, SETTINGS, **arguments)
    before = len(events_of(tmp_path))
    assert before > 0
    result = train(network(), PointBatches(), step, SETTINGS, **arguments)
    train(network(), PointBatches(), step, SETTINGS, **arguments)  # a finished run adds nothing
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    seen = events_of(tmp_path)
    assert len(seen) == len({(tag, at) for tag, at, _ in seen})
    loss = sorted((at, value) for tag, at, value in seen if tag == "train/loss")
    assert [at for at, _ in loss] == list(range(1, 10))
    np.testing.assert_allclose([value for _, value in loss], result.history["loss"], rtol=1e-6)
    auc = sorted((at, value) for tag, at, value in seen if tag == "epoch/val_auc")
    assert auc == [(3, 0.5), (6, pytest.approx(0.6)), (9, pytest.approx(0.7))]
    assert {tag for tag, _, _ in seen} == {
        "train/loss",
        "train/accuracy",
        "train/lr",
        "train/grad_norm",
        "epoch/train_loss",
        "epoch/val_auc",
    }
