"""Error message of a training that runs out of device memory: the sizes, and the settings that need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from longvit.errors import InputError


@contextmanager
def out_of_memory_advice(
    device: str, samples: str, per_forward: int, *, smaller: str, recompute: str = "--recompute", otherwise: str = ""
) -> Iterator[None]:
    """Turns `torch.OutOfMemoryError` into an `InputError` with settings that need less memory.

    `samples`: content of a forward pass, `per_forward` of them. `smaller`: advice where a pass has one sample.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = f"--forward-batch {per_forward // 2}" if per_forward > 1 else smaller
        raise InputError(
            f"{device}: out of memory with {samples} in a forward pass; try {first}, {recompute} or --dtype bfloat16, "
            f"each in a new folder{otherwise}"
        ) from error
