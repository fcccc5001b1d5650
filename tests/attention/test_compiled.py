"""Machine code of the attention kernels in use, compiled without a card: detects a kernel that became slower."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the package triton is not installed (1 GB: extra longvit[triton])")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LIMITS = {  # instructions per pair of query and key; warps of a multiprocessor; bytes spilled, and spills in the loop
    "padded forward": (3.6, 12, 64, 0),
    "padded keys": (6.3, 12, 72, 1),
    "padded queries": (5.0, 12, 0, 0),
    "triton forward": (8.4, 16, 0, 0),
    "triton keys": (8.8, 8, 120, 12),
    "triton queries": (7.5, 16, 0, 0),
}
CODE = """
import dataclasses, json, kernels
rows = [dataclasses.asdict(kernels.measure(v, 90, first)) for v in kernels.in_use() for first in (True, False)]
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    # a separate process: the other tests run in the interpreter
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kernel", LIMITS)
def test_a_kernel_needs_no_more_instructions_and_room_than_when_it_was_measured(kernel: str, measured) -> None:
    rows = [row for row in measured if row["variant"].startswith(kernel)]
    assert len(rows) == 2  # the first branch, and the others
    instructions, warps, stack, spills = LIMITS[kernel]
    for row in rows:
        assert row["wgmma"], row
        assert row["instructions"] <= instructions, row
        assert row["exponentials"] <= 1.1, row
        assert row["warps"] >= warps, row
        assert row["stack"] <= stack, row
        assert row["loop_spills"] <= spills, row
