"""Compiles the Triton kernels for an NVIDIA card that need not be there: compiled_kernels.py 90 (compute capability).

Prints the name of each that compiles and copies its tiles 16 bytes at a time; ends with an error at the first other.
"""

from __future__ import annotations

import os
import sys

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longvit.attention import triton_kernels
from longvit.attention.triton_branch import TILES

HEADS, D = 16, 24
PACKED = {f"{x}_n": 3 * HEADS * D for x in ("q", "k", "v", "dq", "dk", "dv")}  # views of one projection
DENSE = {"out_n": HEADS * D, "grad_n": HEADS * D, "lse_n": HEADS, "lse2_n": HEADS, "sums_n": HEADS}
DENSE |= {"lse_h": 1, "lse2_h": 1, "sums_h": 1}
WIDE = ("OUT", "LSE", "LSE2", "SUMS", "DQ", "DK", "DV")


def assembly(kernel, tile, capability: int) -> str:
    """PTX of one kernel for bfloat16 of head dim 24."""
    names = kernel.arg_names
    fixed = PACKED | DENSE | {"D": D, "D_TILE": 32, "rows": tile.rows, "columns": tile.columns, "PRECISION": "ieee"}
    fixed |= {"FIRST": False, "PADDED": False}
    signature, constants, hints = {}, {}, {}
    for i, name in enumerate(names):
        if name in fixed or name.endswith("_h"):
            signature[name], constants[(i,)] = "constexpr", fixed.get(name, D)
        elif name.startswith("scale"):
            signature[name] = "fp32"
        elif name in (*WIDE, "Q", "K", "V", "GRAD"):
            signature[name] = "*fp32" if name in WIDE else "*bf16"
            hints[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if name.endswith("_row"):
                hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


for name, tile in (("forward", "forward"), ("keys_backward", "keys"), ("queries_backward", "queries")):
    text = assembly(getattr(triton_kernels, name), TILES[tile], int(sys.argv[1]))
    sixteen = text.count("cp.async.cg.shared.global")  # .cg: 16 bytes; .ca: less
    assert sixteen, f"{name} loads its tiles in small pieces"
    print(name)
