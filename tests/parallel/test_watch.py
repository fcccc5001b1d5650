"""A rank that dies, stops or hangs: the others end soon, by its name, instead of waiting for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.parallel.ranks import launcher

from longvit.errors import InputError
from longvit.parallel import RankLostError, Ranks, all_ranks


def outcomes(folder: Path, ranks: int, function: Callable[[Ranks], None], timeout_s: float) -> list[str]:
    """End of each rank: the text of its error, or its exit code."""
    context = multiprocessing.get_context("fork")
    with launcher() as port:
        rest = (ranks, port, folder, function, timeout_s)
        processes = [context.Process(target=_rank, args=(rank, *rest)) for rank in range(ranks)]
        for process in processes:
            process.start()
        end = time.monotonic() + 60
        for process in (p for p in processes if p is not processes[1]):
            process.join(max(0.0, end - time.monotonic()))
        processes[1].join(2)
        if processes[1].is_alive():  # the culprit, where it was stopped or hangs
            processes[1].kill()
        for process in processes:
            process.join()
    texts = [folder / f"{rank}.txt" for rank in range(ranks)]
    return [t.read_text() if t.exists() else str(p.exitcode) for t, p in zip(texts, processes, strict=True)]


def _rank(rank: int, ranks: int, port: int, folder: Path, function: Callable[[Ranks], None], timeout_s: float) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    sys.stderr = (folder / f"{rank}.log").open("w")
    try:
        with all_ranks(timeout_s=timeout_s) as mesh:
            function(mesh)
    except InputError as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__} {error}")
    os._exit(0)  # as the command line does


def steps(at_the_tenth: Callable[[Ranks], None]) -> Callable[[Ranks], None]:
    """Collectives for ever; rank 1 does something else at the tenth."""

    def work(ranks: Ranks) -> None:
        value = torch.ones(1000)
        for i in range(10**6):
            if i == 10 and ranks.rank == 1:
                at_the_tenth(ranks)
            ranks.sum_over_data(value)
            value /= ranks.world

    return work


def test_a_killed_rank_is_named_by_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    ended = outcomes(tmp_path, 3, steps(lambda ranks: os.kill(os.getpid(), signal.SIGKILL)), 20.0)
    assert ended[1] == str(-signal.SIGKILL)
    for text in (ended[0], ended[2]):
        assert text.startswith(f"{RankLostError.__name__} rank 1 ({socket.gethostname()}, process ")
        assert text.endswith("has ended: it was killed")
    assert time.monotonic() - started < 20  # its process is gone: no time-out is needed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda ranks: os.kill(os.getpid(), signal.SIGSTOP), "has sent no heartbeat for"),
        (lambda ranks: time.sleep(1000), "in test_watch.py:"),
    ],
    ids=["stopped", "hangs"],
)
def test_a_rank_that_does_not_go_on_is_named_by_the_others(
    tmp_path: Path, what: Callable[[Ranks], None], said: str
) -> None:
    """They are stuck in a collective, so the watchdog thread reports it and ends them."""
    outcomes(tmp_path, 3, steps(what), 4.0)
    for rank in (0, 2):
        log = (tmp_path / f"{rank}.log").read_text()
        assert f"longvit: rank {rank} ends: rank 1 ({socket.gethostname()}, process " in log
        assert said in log


def test_a_rank_that_takes_its_time_is_waited_for(tmp_path: Path) -> None:
    """Longer than the time-out, but it has said so."""

    def write(ranks: Ranks) -> None:
        with ranks.busy("writes a checkpoint"):
            time.sleep(4)
        raise InputError("the disk is full")

    ended = outcomes(tmp_path, 3, steps(write), 2.0)
    assert ended[1] == "InputError the disk is full"
    for text in (ended[0], ended[2]):
        assert text.endswith("has ended: the disk is full")


def test_a_rank_that_computes_for_long_is_waited_for(tmp_path: Path) -> None:
    """A layer on a CPU may take minutes between two collectives."""

    def compute(ranks: Ranks) -> None:
        end = time.monotonic() + 12
        while time.monotonic() < end:
            torch.randn(200, 200).square().sum()
        raise InputError("it has come to an end")

    ended = outcomes(tmp_path, 3, steps(compute), 5.0)
    assert ended[1] == "InputError it has come to an end"
    for text in (ended[0], ended[2]):
        assert text.endswith("has ended: it has come to an end")


def test_the_same_mistake_is_said_once(tmp_path: Path) -> None:
    def refuse(ranks: Ranks) -> None:
        raise InputError("no such file")

    ended = outcomes(tmp_path, 3, refuse, 5.0)
    assert ended == ["InputError no such file", "2", "2"]
