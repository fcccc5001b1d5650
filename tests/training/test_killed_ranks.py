"""A rank killed at any instant: no other one hangs, and what is started again ends as if nothing had happened."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimiser of a process loads it, which takes longer than the run
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.parallel.ranks import launcher
from tests.training.sharded_run import SETTINGS, run

from longvit.errors import InputError
from longvit.parallel import all_ranks

RANKS = 4  # a mesh of 2 × 2
ATTEMPTS = itertools.count()
LONG = replace(SETTINGS, epochs=5)


def started(folder: Path, port: int) -> list[BaseProcess]:
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    rest = (port, next(ATTEMPTS), folder)
    processes = [context.Process(target=_rank, args=(rank, *rest)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    return list(processes)


def _rank(rank: int, port: int, attempt: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(attempt)}
    sys.stderr = (folder / f"{rank}.log").open("w")
    try:
        with all_ranks(2, timeout_s=20) as mesh:
            parameters, _ = run(mesh, folder / "checkpoints", settings=LONG, seconds=0.01)
            save_file(parameters, folder / f"{rank}.safetensors")
    except InputError as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__} {error}")
        os._exit(3)
    os._exit(0)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def ended(processes: list[BaseProcess], within_s: float = 60.0) -> list[int | None]:
    end = time.monotonic() + within_s
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path: Path) -> None:
    with launcher() as port:
        began = time.monotonic()
        assert ended(started(tmp_path / "whole", port)) == [0] * RANKS
        whole_s = time.monotonic() - began
        whole = load_file(tmp_path / "whole" / "0.safetensors")
        rng = random.Random(0)
        in_midst = 0
        for i in range(20):
            folder = tmp_path / str(i)
            processes = started(folder, port)
            victim = rng.randrange(RANKS)
            time.sleep(rng.uniform(0.1, 0.9) * whole_s)
            os.kill(processes[victim].pid or 0, signal.SIGKILL)
            codes = ended(processes)
            if codes[victim] == -signal.SIGKILL:
                in_midst += 1
                # A rank past its last collective has ended well; all others name the one that is gone.
                for rank, code in enumerate(codes):
                    said = "".join(p.read_text() for p in folder.glob(f"{rank}.[tl]*"))  # raised, or by the thread
                    assert code in (0, 3, -signal.SIGKILL), f"{i}: {victim} was killed: {codes}, {said}"
                    assert code != 3 or f"rank {victim} (" in said, (i, codes, said)
                assert ended(started(folder, port)) == [0] * RANKS
            for rank in range(RANKS):
                ours = load_file(folder / f"{rank}.safetensors")
                assert all(torch.equal(ours[name], parameter) for name, parameter in whole.items()), (i, rank)
        assert in_midst >= 15


@pytest.mark.slow
def test_torchrun_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    """The whole command line: strips on two ranks, one of them killed in mid-training, one restart allowed."""
    lines = ["case_id,slide_id,path,label,split"]
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 60, (96, 80, 3)) + (60 if i % 2 else 160)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"s{i}.png")
        lines.append(f"p{i},s{i},s{i}.png,{'dark' if i % 2 else 'light'},{'train' if i < 6 else 'test'}")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    settings = ["--model", "longvit_tiny_patch32", "--side-px", "96", "--epochs", "12", "--batch-size", "2"]
    settings += ["--num-workers", "1", "--no-controls", "--device", "cpu", "--bootstrap", "0"]

    def torchrun(out: str) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
        launcher += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        command = ["-m", "longvit", "train", str(tmp_path / "cohort.csv"), "--out", str(tmp_path / out), *settings]
        return subprocess.Popen(
            [*launcher, *command, "--sequence-ranks", "2"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    with torchrun("whole") as process:
        assert process.wait(120) == 0, process.stderr.read() if process.stderr else ""
    with torchrun("cut") as process:
        end = time.monotonic() + 60
        while not list((tmp_path / "cut" / "checkpoints").glob("step-*.json")) and time.monotonic() < end:
            time.sleep(0.05)
        ranks = [
            int(pid)
            for pid in subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        os.kill(ranks[-1], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert re.search(r"resuming after step \d+ of", said)
    for name in ("outputs.csv", "model/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
