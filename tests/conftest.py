"""What several tests need: the reference material beside the project, and marks that skip with a reason."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest -n: one core each; small tensors lose time to more threads
os.environ.setdefault("TRITON_INTERPRET", "1")  # our GPU kernels run on a CPU; read when torch imports triton

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `nohup make test &`: tests of Ctrl-C start processes to hear it
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
EXAMPLE_SLIDE = ROOT / "examples" / "CMU-1-Small-Region.svs"


def shared(path: str) -> Path:
    """A file of the reference material; skips the test where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs the reference material: {path} is not at ../shared")
    return found


@pytest.fixture(autouse=True)
def the_same_random_weights_whichever_tests_ran_before() -> None:
    import torch

    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
