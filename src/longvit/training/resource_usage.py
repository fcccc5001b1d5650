"""What a stretch of work costs: seconds, the processor's seconds, and the highest memory above what there was before.

On a CPU the memory is what the process has from the system, in which the allocator hides a few MiB; benchmarks/bags.py
takes a process for each measurement.
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
    """None where it is not known."""

    seconds: float | None
    cpu_seconds: float | None
    """Of this process, all threads."""
    peak_memory_mib: float | None
    """Only Linux and CUDA tell."""


UNKNOWN: Cost = {"seconds": None, "cpu_seconds": None, "peak_memory_mib": None}


class Costs:
    """Begins to count when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._memory = PeakMemory(device)
        self._seconds, self._cpu_seconds = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._seconds

    def cost(self, *, whole: bool = True) -> Cost:
        """What it came to; `whole` is False for work that went on behind a checkpoint and knows only its last part."""
        seconds, cpu_seconds, mib = self.seconds, time.process_time() - self._cpu_seconds, self._memory.mib()
        return {
            "seconds": round(seconds, 3) if whole else None,
            "cpu_seconds": round(cpu_seconds, 3) if whole else None,
            "peak_memory_mib": None if mib is None else round(mib, 1),
        }


def write_cost(folder: Path, cost: Cost) -> None:
    """`folder`/costs.json: beside the results and not in them, which have the same bytes whenever they are made."""
    write_text(folder / COSTS_JSON, json.dumps(cost, indent=1) + "\n")


def read_cost(folder: Path) -> Cost:
    """Of a run that wrote it, else unknown."""
    try:
        found = read_json_object(folder / COSTS_JSON)
        return {name: None if found[name] is None else float(found[name]) for name in UNKNOWN}  # type: ignore[return-value]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):  # older, or damaged: it decides nothing
        return UNKNOWN


class PeakMemory:
    """Begins to count when it is made; `mib()` says what it came to, None where the system does not tell (only Linux
    and CUDA do)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        gc.collect()
        _give_back_freed()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 2**20
        elif (resident := _status_mib("VmRSS")) is not None and _reset_peak():
            self.before = resident
        else:
            self.device = torch.device("meta")  # nobody tells

    def mib(self) -> float | None:
        """MiB above the beginning."""
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
    """VmHWM falls to VmRSS (proc(5), clear_refs 5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _give_back_freed() -> None:
    """What earlier work has freed goes back to the system (glibc keeps it, and the next would use it uncounted)."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
