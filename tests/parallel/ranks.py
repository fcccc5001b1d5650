"""Runs a function on several gloo ranks (forked processes, one thread each) and returns the results of all ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from longvit.parallel.ranks import all_ranks


def on_ranks(ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """[function(*args) of rank 0, of rank 1, …]; an error of a rank is raised here."""
    return _started(_in_a_group, ranks, (), function, args)


@contextmanager
def launcher() -> Iterator[int]:
    """The port of a store as served by torchrun, in a separate process: a process that serves must not be forked."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(send,), daemon=True)
    process.start()
    try:
        yield receive.recv()
    finally:
        process.kill()
        process.join()


def _serve(send: Connection) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    send.send(store.port)
    signal.pause()


def on_mesh(data: int, sequence: int, function: Callable[..., Any], *args: Any, timeout_s: float = 40.0) -> list[Any]:
    """[function(ranks, *args) of each rank]: ranks as started by torchrun, on a mesh of data × sequence."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return _started(_as_torchrun_rank, data * sequence, (port, sequence, timeout_s), function, args)


def _started(start: Callable[..., None], ranks: int, settings: tuple[Any, ...], function: Any, args: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(start, (ranks, folder, *settings, function, args), nprocs=ranks, start_method="fork")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _in_a_group(rank: int, ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _as_torchrun_rank(
    rank: int, ranks: int, folder: str, port: int, sequence: int, timeout_s: float, function: Any, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with all_ranks(sequence, timeout_s=timeout_s) as mesh:
        torch.save(function(mesh, *args), Path(folder) / f"{rank}.pt")
