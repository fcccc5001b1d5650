"""Threads are as many as the process may use (Slurm, taskset, a container), not as many as the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longvit.processes import cpu_count as module
from longvit.processes.cpu_count import cpu_count


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of control groups on a machine that lends 16 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(module, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(module, "_OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def write(folder: Path, own: str, files: dict[str, str]) -> None:
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_affinity_mask_counts(cgroups: Path) -> None:
    assert cpu_count() == 16


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/job\n", {"job/cpu.max": "250000 100000\n"}, 3),
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, 16),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "200000 100000\n"}, 2),
        ("0::/host/pod\n", {"cpu.max": "400000 100000\n"}, 4),  # a container whose path is the host's
        ("0::/job\n", {"job/cpu.max": "10000 100000\n"}, 1),
        ("0::/job\n", {"job/cpu.max": "9900000 100000\n"}, 16),
        (
            "4:cpu,cpuacct:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "500000", "cpu/job/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpu,cpuacct:/job\n0::/\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 16),
        ("3:cpuset:/job\n", {"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"}, 16),
        ("0::/job\n", {"job/cpu.max": "damaged"}, 16),
    ],
)
def test_a_limit_of_a_control_group_counts(cgroups: Path, own: str, files: dict[str, str], cpus: int) -> None:
    write(cgroups, own, files)
    assert cpu_count() == cpus
