"""Launches the fused norm kernels up to the card itself, which need not be there: compiled_norms.py 90 (capability).

Prints per kernel: launches, compilations, and whether every load of rows is 8 bytes or more a thread.
"""

from __future__ import annotations

import os
import sys

os.environ.pop("TRITON_INTERPRET", None)

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CAPABILITY = int(sys.argv[1])


class NoCard:
    """What the launcher asks of a driver before the start."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


driver.set_active(NoCard())
from longvit.model import fused_norms  # noqa: E402

launch = JITFunction.run
seen: dict[str, list] = {}


def without_start(self, *args, grid, warmup, **kwargs):
    compiled = launch(self, *args, grid=grid, warmup=True, **kwargs)
    seen.setdefault(self.__name__, []).append(compiled)
    return compiled


JITFunction.run = without_start  # type: ignore[method-assign]

half = torch.bfloat16
for tokens in (4096, 1000):
    for width, x_dtype, gelu, add in (
        (384, torch.float32, False, True),
        (384, half, False, False),
        (1536, half, True, False),
    ):
        x, y = torch.zeros(tokens, width, dtype=x_dtype), torch.zeros(tokens, width, dtype=half)
        w, b = torch.zeros(width), torch.zeros(width)
        sums = fused_norms.RowSums(x)
        if add:
            fused_norms.add_norm(x, y, None, w, b, 1e-5, half)
            fused_norms.add(x, y, x)
            more = {"residual": x, "narrow": torch.empty_like(y), "sum_out": True}
        else:
            fused_norms.norm(x, w, b, 1e-5, gelu, half)
            more = {"n": torch.empty_like(y), "sum_out": gelu}
        fused_norms.norm_backward(x, y, w, b, 1e-5, gelu, sums, **more)
    fused_norms.cast_and_sum(
        torch.zeros(tokens, 384), None, half, fused_norms.RowSums(torch.zeros(tokens, 384), "cast")
    )
    fused_norms.patches(torch.zeros(1, 3, 64, 4096, dtype=torch.uint8), 32, 128, half)
for name, kernels in seen.items():
    wide = all(".v4.b32" in c.asm["ptx"] or ".v2.b32" in c.asm["ptx"] for c in kernels)
    print(name, len(kernels), len({id(c) for c in kernels}), wide)
