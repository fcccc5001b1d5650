"""Stopped at any instant and started again, a run ends with the same bits; signals end it in good order."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.interrupted_run import whole_run
from tests.training.small_run import SETTINGS, PointBatches, network, run, step

from longvit.training.checkpoint import Checkpoint, read_checkpoint
from longvit.training.interruption import SIGNALS, Interrupted, StopSignals
from longvit.training.loop import train

ROOT = str(Path(__file__).resolve().parents[2])


def forked(target: Any, *args: Any) -> ForkServerProcess:
    """A process from a server that has torch loaded: a few milliseconds instead of seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.interrupted_run"])
    process = context.Process(target=target, args=args)
    with pytest.MonkeyPatch.context() as patch:  # the server does not get sys.path before Python 3.13
        patch.setenv("PYTHONPATH", ROOT, prepend=os.pathsep)
        process.start()
    return process


def code_of(process: ForkServerProcess) -> int:
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def newest(folder: Path) -> Checkpoint:
    saved = read_checkpoint(folder)
    assert saved is not None
    return saved


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    """Parameters, average, optimiser, random states, history, settings: to the last bit."""
    assert a.step == b.step
    assert a.tensors.keys() == b.tensors.keys()
    for name in a.tensors:
        assert torch.equal(a.tensors[name], b.tensors[name]), name
    assert json.dumps(a.state) == json.dumps(b.state)


@pytest.mark.slow
def test_forty_interruptions_end_with_the_same_bits(tmp_path: Path) -> None:
    """20 by SIGTERM, 10 by SIGKILL at random instants, 10 by SIGKILL inside a save."""
    assert code_of(forked(whole_run, tmp_path / "warm")) == 0  # the server starts
    begin = time.monotonic()
    assert code_of(forked(whole_run, tmp_path / "whole")) == 0
    seconds = time.monotonic() - begin
    operations = int((tmp_path / "whole.operations").read_text())
    whole = newest(tmp_path / "whole")
    assert {"ema.0.weight", "optimizer.exp_avg.0.weight", "history"} <= whole.tensors.keys()
    rng, codes, resumed_at = random.Random(4), Counter[int](), set()
    for i in range(40):
        folder, share = tmp_path / str(i), 0.95
        while True:
            if i < 30:
                process = forked(whole_run, folder)
                time.sleep(rng.uniform(0, share) * seconds)
                process.terminate() if i < 20 else process.kill()
            else:
                process = forked(whole_run, folder, rng.randrange(1, operations))
            code = code_of(process)
            if code != 0:
                break
            for path in folder.iterdir():  # it was over before: once more, earlier
                path.unlink()
            share *= 0.7
        codes[code] += 1
        saved = read_checkpoint(folder)
        resumed_at.add(0 if saved is None else saved.step)
        assert code_of(forked(whole_run, folder)) == 0
        assert_same(newest(folder), whole)
    assert codes[-signal.SIGKILL] == 20
    assert codes[128 + signal.SIGTERM] >= 10, codes  # the others came before the run began
    assert len(resumed_at) >= 6, resumed_at


def signalling(number: int, at_batch: int, times: int = 1) -> Any:
    """`step` that sends this process a signal while it computes a batch."""
    seen = [0]

    def call(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        seen[0] += 1
        if seen[0] == at_batch:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return step(model, batch)

    return call


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    settings = replace(SETTINGS, checkpoint_minutes=9)
    before = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after a checkpoint") as caught:
        train(network(), PointBatches(), signalling(number, 3), settings, folder=tmp_path, progress=False)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.exit_code == {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138}[number.name]
    assert newest(tmp_path).step == 2  # two batches a step; nothing was due yet
    assert [signal.getsignal(s) for s in SIGNALS] == before
    train(network(), PointBatches(), step, settings, folder=tmp_path, progress=False)
    train(network(), PointBatches(), step, settings, folder=tmp_path / "whole", progress=False)
    assert_same(newest(tmp_path), newest(tmp_path / "whole"))


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        train(network(), PointBatches(), signalling(signal.SIGINT, 3, 2), SETTINGS, folder=tmp_path, progress=False)
    assert not isinstance(caught.value, Interrupted)
    assert newest(tmp_path).step == 1


def test_a_signal_during_a_long_evaluation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    """Slurm kills half a minute after SIGTERM. The checkpoint is that of before, also with one to keep."""
    settings = replace(SETTINGS, ema=0.9, keep_checkpoints=1, checkpoint_minutes=9)

    def evaluate(model: torch.nn.Module, epoch: int) -> dict[str, float]:
        torch.rand(3)  # what it drew is forgotten too
        if evaluate.is_to_stop and epoch == 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
            raise AssertionError("it waited")
        return {"val": sum(float(p.sum()) for p in model.parameters())}

    evaluate.is_to_stop = True  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        train(network(), PointBatches(), step, settings, folder=tmp_path, evaluate=evaluate, progress=False)
    assert (newest(tmp_path).step, len(newest(tmp_path).state["epochs"])) == (6, 1)
    evaluate.is_to_stop = False  # type: ignore[attr-defined]
    train(network(), PointBatches(), step, settings, folder=tmp_path, evaluate=evaluate, progress=False)
    train(network(), PointBatches(), step, settings, folder=tmp_path / "whole", evaluate=evaluate, progress=False)
    assert_same(newest(tmp_path), newest(tmp_path / "whole"))


def test_training_in_a_thread_leaves_the_signals_alone(tmp_path: Path) -> None:
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert newest(tmp_path).step == 9


def test_what_is_ignored_stays_ignored() -> None:
    """nohup and jobs in the background: Ctrl-C in the same terminal is not for them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals(log=False) as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
