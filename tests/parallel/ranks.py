"""Runs a function on several gloo ranks (forked processes, one thread each) and brings back what each returned."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """[function(*args) of rank 0, of rank 1, …]; an error in one of them is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_one, (ranks, folder, function, args), nprocs=ranks, start_method="fork")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _one(rank: int, ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
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
