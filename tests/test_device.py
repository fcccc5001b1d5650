"""Memory of freed tensors: large ones leave the process, also after smaller ones have come and gone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_RESIDENT = """
import os, sys
from longvit.device import return_freed_memory
said = return_freed_memory() if sys.argv[1] == "yes" else None
import torch
torch.set_num_threads(1)

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

mib = 1 << 18  # float32 numbers
torch.ones(30 * mib)
before = resident_mib()
tensors = [torch.ones((16 if i % 2 else 1) * mib) for i in range(20)]
del tensors[1::2]  # the large ones: holes between the small ones that stay
print(said, resident_mib() - before)
"""


def _after(setting: str, **env: str) -> tuple[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _RESIDENT, setting], capture_output=True, text=True, check=True, env=env or None
    )
    said, mib = done.stdout.split()
    return said, float(mib)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_holes_of_freed_tensors_go_back_to_the_system() -> None:
    _, by_default = _after("no")
    said, returned = _after("yes")
    assert said == "True"
    assert by_default > 150  # 160 MiB of holes: the reason for the function
    assert returned < 30


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_what_the_environment_says_of_malloc_stays() -> None:
    said, _ = _after("yes", MALLOC_MMAP_THRESHOLD_="1000000")
    assert said == "False"
