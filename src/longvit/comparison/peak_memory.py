"""The highest memory of a stretch of work above what there was when it began."""

from __future__ import annotations

from pathlib import Path

import torch


class PeakMemory:
    """Begins to count when it is made; `mib()` says what it came to, None where the system does not tell (only Linux
    and CUDA do)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
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
