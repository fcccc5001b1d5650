"""Resource usage of a piece of work: seconds, processor seconds, and peak memory above that at its start.

On a CPU the memory is that of the process, in which the allocator hides a few MiB; benchmarks/bags.py uses a process
for each measurement.
"""

from __future__ import annotations

import ctypes
import gc
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import torch

from longvit.files import write_text
from longvit.json_file import read_json_object

COSTS_JSON = "costs.json"


class Cost(TypedDict):
    """Resource usage; None where it is not known."""

    seconds: float | None
    cpu_seconds: float | None
    """Processor seconds of this process, all threads."""
    peak_memory_mib: float | None
    """Peak memory in MiB; known on Linux and CUDA only."""


UNKNOWN: Cost = {"seconds": None, "cpu_seconds": None, "peak_memory_mib": None}


class Costs:
    """Measurement of resource usage from its creation on."""

    def __init__(self, device: torch.device) -> None:
        self._memory = PeakMemory(device)
        self._seconds, self._cpu_seconds = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._seconds

    def cost(self, *, whole: bool = True) -> Cost:
        """Resource usage so far; `whole` is False for resumed work, whose first part is not known."""
        seconds, cpu_seconds, mib = self.seconds, time.process_time() - self._cpu_seconds, self._memory.mib()
        return {
            "seconds": round(seconds, 3) if whole else None,
            "cpu_seconds": round(cpu_seconds, 3) if whole else None,
            "peak_memory_mib": None if mib is None else round(mib, 1),
        }


def write_cost(folder: Path, cost: Cost) -> None:
    """Writes `folder`/costs.json. It is no part of the results, which have the same bytes in every run."""
    write_text(folder / COSTS_JSON, json.dumps(cost, indent=1) + "\n")


def read_cost(folder: Path) -> Cost:
    """Resource usage of a run; unknown where costs.json is absent or damaged."""
    try:
        cost = read_json_object(folder / COSTS_JSON)
        return {name: None if cost[name] is None else float(cost[name]) for name in UNKNOWN}  # type: ignore[return-value]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):  # of an older version, or damaged
        return UNKNOWN


class PeakMemory:
    """Measurement of peak memory from its creation on; known on Linux and CUDA only."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        gc.collect()
        _return_freed_memory()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 2**20
        elif (resident := _status_mib("VmRSS")) is not None and _reset_peak():
            self.before = resident
        else:
            self.device = torch.device("meta")  # not known

    def mib(self) -> float | None:
        """Peak in MiB above the start; None where it is not known."""
        if self.device.type == "meta":
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - self.before
        peak = _status_mib("VmHWM")
        return None if peak is None else max(0.0, peak - self.before)


def _status_mib(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)


def _reset_peak() -> bool:
    """Resets VmHWM to VmRSS (proc(5), clear_refs 5); False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _return_freed_memory() -> None:
    """Returns freed memory to the system: glibc keeps it, and later work would use it uncounted."""
    with suppress(OSError, AttributeError, TypeError):  # another C library; Windows has none
        ctypes.CDLL(None).malloc_trim(0)
