"""Number of CPUs that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def cpu_count() -> int:
    """CPUs of the affinity mask (Slurm, taskset), at most the CPU time that a control group grants (containers).

    A grant of 2.5 CPUs counts as 3.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *map(math.ceil, _cgroup_limits())]))


def _cgroup_limits() -> Iterator[float]:
    """CPU limits of this process's control groups and the groups above them, in CPUs (versions 1 and 2)."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, read = _CGROUPS, _limit_v2
        elif "cpu" in controllers.split(","):
            root, read = _CGROUPS / "cpu", _limit_v1
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):  # in a container, the path may be that of the host
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no limit
                yield read(folder)
            if folder == root:
                break


def _limit_v2(folder: Path) -> float:
    """`cpu.max`: "200000 100000", or "max 100000" without a limit (ValueError)."""
    quota_us, period_us = (folder / "cpu.max").read_text().split()
    return int(quota_us) / int(period_us)


def _limit_v1(folder: Path) -> float:
    """`cpu.cfs_quota_us` over `cpu.cfs_period_us`; a quota of -1 is no limit (ValueError)."""
    quota_us = int((folder / "cpu.cfs_quota_us").read_text())
    if quota_us < 0:
        raise ValueError(quota_us)
    return quota_us / int((folder / "cpu.cfs_period_us").read_text())
