"""The highest memory of a stretch of work above what there was when it began.

On a CPU this is what the process has from the system, in which the allocator hides a few MiB; benchmarks/bags.py takes
a process for each measurement.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch


def load_what_all_need(device: torch.device) -> None:
    """Libraries that load at their first use; else the first one measured would be charged for them."""
    import scipy.special  # noqa: F401
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401

    layer = torch.nn.Linear(2, 2, device=device)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2, device=device)).sum().backward()
    optimizer.step()


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
