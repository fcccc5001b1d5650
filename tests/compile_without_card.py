"""Compiles Triton kernels without a card: `compile_without_card.py attention|norms 90` (compute capability).

Triton's own launcher binds the arguments, specialises and compiles; only the launch itself is left out. Prints per
kernel: launches, compilations, and True if its memory accesses are wide. For attention that means tiles copied 16 bytes
at a time, for norms rows loaded with 8 bytes or more a thread.
"""

from __future__ import annotations

import os
import sys

os.environ.pop("TRITON_INTERPRET", None)

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class NoCard:
    """The driver functions that the launcher calls before the launch."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def record_compilations() -> dict[str, list]:
    """From now on kernels are compiled but not launched → kernel name: the compiled kernel of each launch."""
    run, compiled_kernels = JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled_kernels.setdefault(self.__name__, []).append(compiled)
        return compiled

    JITFunction.run = compile_only  # type: ignore[method-assign]
    return compiled_kernels


def attention() -> None:
    from longvit.attention import backends

    N, H, D = 4096, 16, 24
    q, k, v = torch.zeros(1, N, 3, H, D, dtype=torch.bfloat16).unbind(2)
    grad_out = torch.zeros(1, N, H, D, dtype=torch.bfloat16)
    out, lse = torch.zeros(1, N, H, D), torch.zeros(1, N, H)
    grads = torch.zeros(1, N, 3, H, D).unbind(2)
    kernel = backends.BACKENDS["triton"].branches
    assert kernel is not None
    operands = kernel.backward_operands(grad_out, q, k, v, out, lse, 0.2)
    for w, r in ((1024, 1), (2048, 2), (4096, 16)):
        kernel.forward((q, k, v), out, lse, w, r, 0.2, False, r == 1)
        kernel.backward(operands, grads, w, r, 0.2, first=r == 1)


def norms() -> None:
    from longvit.model import fused_norms

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


def is_wide(kernels: str, ptx: str) -> bool:
    if kernels == "attention":
        return "cp.async.cg.shared.global" in ptx  # .cg: 16 bytes; .ca: less
    return ".v4.b32" in ptx or ".v2.b32" in ptx


def main(kernels: str, capability: str) -> None:
    driver.set_active(NoCard(int(capability)))
    launches = record_compilations()
    {"attention": attention, "norms": norms}[kernels]()
    for name, compiled in launches.items():
        wide = all(is_wide(kernels, c.asm["ptx"]) for c in compiled)
        print(name, len(compiled), len({id(c) for c in compiled}), wide)


if __name__ == "__main__":
    main(*sys.argv[1:])
