"""Devices by name: memory, matrix products, exponentials, from the makers' data sheets (dense, SXM form).

Softmax takes one exponential per (query, key) pair, and a GPU has few units for them: 16 per multiprocessor and clock
(CUDA C++ programming guide, arithmetic instructions). On a Hopper card that is 3.9 T a second, against 989 TFLOP/s of
matrix products (FlashAttention-3, arXiv 2407.08608, section 1). So at a head dim of 24 exponentials limit attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longvit.errors import InputError
from longvit.process_identity import memory_bytes

GIB = 2**30
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Device:
    """One device: `flops` and `exponentials` per second, memory in GiB."""

    name: str
    kind: Literal["cuda", "cpu"]
    memory_gib: float
    flops: Mapping[str, float]
    exponentials: float
    runtime_gib: float
    """Memory of the process besides tensors: the CUDA context and its libraries, or Python and PyTorch."""
    source: str


def _card(name: str, memory_gib: float, half: float, single: float, exponentials: float, **more: float) -> Device:
    flops = {"float32": single, "bfloat16": half, "float16": half, **more}
    return Device(name, "cuda", memory_gib, flops, exponentials, 0.8, "data sheet")


CARDS = {
    c.name: c
    for c in (
        _card("h100", 79.6, 989e12, 67e12, 3.9e12),
        _card("h200", 140.4, 989e12, 67e12, 3.9e12),
        _card("a100-80gb", 79.2, 312e12, 19.5e12, 2.4e12),  # 108 × 16 × 1.41 GHz
        _card("v100-32gb", 31.7, 125e12, 15.7e12, 2.0e12, bfloat16=15.7e12),  # 80 × 16 × 1.53 GHz; no bf16 units
    )
}


def device_named(name: str) -> Device:
    """A card of `CARDS`, or "cpu": this machine. Raises InputError for another name."""
    if name == "cpu":
        return this_machine()
    if name not in CARDS:
        raise InputError(f"no device {name!r} to plan for; there are {', '.join([*CARDS, 'cpu'])}")
    return CARDS[name]


def this_machine() -> Device:
    """This machine's CPU: its memory, and its speed, measured in a fraction of a second."""
    import time

    import torch

    def rate(step: Callable[[], Any], work: float) -> float:
        step()
        best = min(_seconds(step, time.perf_counter) for _ in range(3))
        return work / best

    def product(dtype: torch.dtype) -> float:
        a = torch.ones(768, 768, dtype=dtype)
        return rate(lambda: a @ a, 2 * 768**3)

    x = torch.zeros(1 << 18)
    flops = {name: product(getattr(torch, name)) for name in ("float32", "bfloat16")}
    memory = memory_bytes() / GIB
    return Device(
        "cpu",
        "cpu",
        memory,
        {**flops, "float16": flops["float32"]},
        rate(lambda: x.exp(), x.numel()),
        0.5,
        f"measured now on this machine, {torch.get_num_threads()} threads",
    )


def _seconds(step: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start
