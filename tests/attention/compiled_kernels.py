"""Launches the Triton kernels up to the card itself, which need not be there: compiled_kernels.py 90 (capability).

Triton's own launcher binds the arguments of `triton_branch`, specialises and compiles; only the start is left out.
Prints per kernel: launches, compilations, and whether each copies its tiles 16 bytes at a time.
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
from longvit.attention import triton_branch  # noqa: E402

launch = JITFunction.run
seen: dict[str, list] = {}


def without_start(self, *args, grid, warmup, **kwargs):
    compiled = launch(self, *args, grid=grid, warmup=True, **kwargs)
    seen.setdefault(self.__name__, []).append(compiled)
    return compiled


JITFunction.run = without_start  # type: ignore[method-assign]

N, H, D = 4096, 16, 24
q, k, v = torch.zeros(1, N, 3, H, D, dtype=torch.bfloat16).unbind(2)
grad_out = torch.zeros(1, N, H, D, dtype=torch.bfloat16)
out, lse = torch.zeros(1, N, H, D), torch.zeros(1, N, H)
grads = torch.zeros(1, N, 3, H, D).unbind(2)
queries = triton_branch.backward_operands(grad_out, q, k, v, out, lse, 0.2)
for w, r in ((1024, 1), (2048, 2), (4096, 16)):
    triton_branch.branch_forward((q, k, v), out, lse, w, r, 0.2, first=r == 1)
    triton_branch.branch_backward(queries, grads, w, r, 0.2, first=r == 1)
for name, kernels in seen.items():
    sixteen = all("cp.async.cg.shared.global" in c.asm["ptx"] for c in kernels)  # .cg: 16 bytes; .ca: less
    print(name, len(kernels), len({id(c) for c in kernels}), sixteen)
