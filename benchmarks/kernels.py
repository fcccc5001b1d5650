"""Offline benchmark of the attention kernels: compiles them without a GPU and counts machine instructions.

    python benchmarks/kernels.py [--capability 90 80] [--save]      needs the extra `triton`; no card, no torch.cuda

Prints, per kernel and tile: registers and stack per thread (a stack above 0 is a spill), and CTAs and warps that fit on
a multiprocessor. For the main loop, per pair of query and key: instructions, exponentials (MUFU), matrix instructions.
The lower bound is in cycles of a scheduler per pair and 32 lanes. It assumes 16 exponentials and 4,096 matrix FLOP per
clock and multiprocessor (sm_90). `tests/attention/test_compiled.py` checks the kernels in use against this output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))

HEADS, DIM = 16, 24
PRODUCTS = {"forward": 2, "keys": 4, "queries": 3}


@dataclass(frozen=True)
class Variant:
    """A kernel with its tile: `rows` × `columns` of queries × keys (keys × queries for `keys`), `tiles` of them."""

    family: str  # "triton": `triton_kernels`; "padded": `padded_kernels`
    kernel: str  # forward, keys, queries
    rows: int
    columns: int
    warps: int
    stages: int
    tiles: int = 1
    folded: bool = True
    """The scale is part of the queries: no factor per pair."""
    registers: int | None = None
    """Most registers per thread."""
    polynomials: int = 0
    """Number of exponentials, out of every four, computed as polynomials."""

    @property
    def name(self) -> str:
        shape = f"{'2·' if self.tiles == 2 else ''}{self.rows}x{self.columns}x{self.warps}x{self.stages}"
        more = f" ≤{self.registers}" if self.registers else ""
        more += f" {self.polynomials}/4 polynomials" if self.polynomials else ""
        return f"{self.family} {self.kernel} {shape}{'' if self.folded else ' scaled'}{more}"


@dataclass
class Machine:
    """Registers, memory and instruction counts of a compiled variant."""

    variant: str
    capability: int
    registers: int
    stack: int
    loop_spills: int
    """Loads and stores of spilled registers in the main loop."""
    shared_bytes: int
    ctas: int
    warps: int
    pairs_per_thread: float
    instructions: float  # these four per pair, in the main loop
    exponentials: float
    matrix: float
    wgmma: bool
    fallback_instructions: float | None  # of the online softmax, where the kernel has one
    floor: dict[str, float]


def constants(variant: Variant, first: bool = False) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """→ the kernel, its compile-time arguments, the types of its pointers."""
    from longvit.attention import padded_kernels, triton_kernels

    padded = variant.family == "padded"
    module = padded_kernels if padded else triton_kernels
    name = {"forward": "forward", "keys": "keys_backward", "queries": "queries_backward"}[variant.kernel]
    function = getattr(module, name)
    half = ["Q", "K", "V", "GRAD"]
    pointers = {n: "*bf16" if n in half else "*fp32" for n in function.arg_names if n.isupper() and n not in NO_POINTER}
    width = 32 if padded else DIM
    given: dict[str, Any] = {
        "D": DIM, "D_TILE": 32, "rows": variant.rows, "columns": variant.columns, "TILES": variant.tiles,
        "FIRST": first, "PADDED": False, "FOLDED": variant.folded, "PRECISION": "ieee",
        "POLYNOMIALS": variant.polynomials, "largest_n": 0, "largest_h": 2,
    }  # fmt: skip
    for x in ("q", "k", "v", "grad", "out", "dq", "dk", "dv"):
        of_padded = padded and x in ("q", "k", "v", "grad") and (x != "q" or variant.kernel != "forward")
        token = HEADS * (width if of_padded else DIM)
        if not of_padded and x != "out" and x != "grad":
            token *= 3  # q, k and v, and their gradients, are parts of one tensor
        given |= {f"{x}_n": token, f"{x}_h": width if of_padded else DIM}
    for x in ("lse", "lse2", "sums"):
        given |= {f"{x}_n": HEADS, f"{x}_h": 1}
    return function, {k: v for k, v in given.items() if k in function.arg_names}, pointers


NO_POINTER = {"N", "H", "BLOCKS", "D", "D_TILE", "TILES", "FIRST", "PADDED", "FOLDED", "PRECISION", "POLYNOMIALS"}


def compiled(variant: Variant, capability: int = 90, first: bool = False) -> Any:
    """Triton's compiled kernel (`.asm`, `.metadata`)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, given, pointers = constants(variant, first)
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(function.arg_names):
        if name in given:
            signature[name], values[(i,)] = "constexpr", given[name]
            continue
        signature[name] = pointers.get(name) or ("fp32" if name.startswith("scale") else "i32")
        if name in pointers or name.endswith("_row"):
            attributes[(i,)] = [["tt.divisibility", 16]]  # as the launcher finds on a card
    options: dict[str, Any] = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "enable_fp_fusion": True,
    } | ({"maxnreg": variant.registers} if variant.registers else {})
    source = ASTSource(fn=function, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def sass(kernel: Any) -> tuple[list[str], str]:
    """→ the machine code, a line per instruction or label; the resources that it takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code, resources = (_dump(flag, file.name) for flag in ("-sass", "-res-usage"))
    return code.splitlines(), resources


def _dump(flag: str, path: str) -> str:
    return subprocess.run([str(tools() / "cuobjdump"), flag, path], capture_output=True, text=True, check=True).stdout


_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);")


def loops(lines: list[str]) -> list[list[str]]:
    """The bodies of innermost loops that hold a matrix instruction, in the order of the code."""
    code = [(int(m[1], 16), m[2]) for line in lines if (m := _LINE.match(line))]
    found: list[tuple[int, int]] = []
    for at, text in code:
        target = re.search(r"\bBRA(?:\.\w+)* (?:`\(\.L_x_\d+\)|\S*?0x([0-9a-f]+))", text)
        if target and target[1] and int(target[1], 16) <= at:
            found.append((int(target[1], 16), at))
    inner = [a for a in found if not any(b != a and b[0] >= a[0] and b[1] <= a[1] for b in found)]
    bodies = [[text for at, text in code if start <= at <= end] for start, end in inner]
    return [body for body in bodies if any(MATRIX.search(text) for text in body)]


MATRIX = re.compile(r"\b(HGMMA|HMMA|QGMMA)\b")


def measure(variant: Variant, capability: int = 90, first: bool = False) -> Machine:
    """Compiles a variant and counts."""
    kernel = compiled(variant, capability, first)
    lines, resources = sass(kernel)
    registers = int(re.search(r"REG:(\d+)", resources)[1])  # type: ignore[index]
    stack = int(re.search(r"STACK:(\d+)", resources)[1])  # type: ignore[index]
    threads = variant.warps * 32
    shared = kernel.metadata.shared
    per_sm = {90: 227, 80: 163}.get(capability, 163)
    ctas = min(65536 // (-(-registers // 8) * 8 * threads), per_sm * 1024 // (shared + 1024), 64 // variant.warps, 32)
    pairs = variant.rows * variant.columns * variant.tiles / threads
    bodies = loops(lines)
    count = lambda body, what: sum(bool(re.search(what, text)) for text in body)  # noqa: E731
    # a masked last step (triton_kernels) is a loop too, and so is the online softmax: the main loop comes first by cost
    bodies.sort(key=len)
    main, last = bodies[0], bodies[-1]
    width = 32
    products = PRODUCTS[variant.kernel]
    return Machine(
        variant.name,
        capability,
        registers,
        stack,
        count(main, r"\b(LDL|STL)\b"),
        shared,
        ctas,
        ctas * variant.warps,
        pairs,
        round(len(main) / pairs, 2),
        round(count(main, r"\bMUFU\.EX2") / pairs, 3),
        round(count(main, MATRIX.pattern) / pairs, 4),
        any("HGMMA" in text for text in main),
        round(len(last) / pairs * (variant.tiles if variant.family == "padded" else 1), 2)
        if variant.kernel == "forward" and variant.family == "padded"
        else None,
        {"exponentials": 8.0, "matrix": products * 2 * width * 32 / (4096 / 4)},
    )


def in_use() -> Iterator[Variant]:
    """The kernels with the tiles of `triton_branch` and `padded_branch`."""
    from longvit.attention import padded_branch, triton_branch

    for family, branch in (("triton", triton_branch), ("padded", padded_branch)):
        for kernel, t in branch.TILES.items():
            shape = (t.rows, t.columns, t.warps, t.stages, t.tiles)
            yield Variant(family, kernel, *shape, registers=t.registers, polynomials=t.polynomials)


def variants() -> Iterator[Variant]:
    """Kernels in use, then other candidates."""
    yield from in_use()
    yield Variant("triton", "keys", 64, 128, 4, 3)
    for kernel, tiles in (("forward", 2), ("keys", 1), ("queries", 2)):
        yield Variant("padded", kernel, 64, 64, 4, 3, tiles)
        yield Variant("padded", kernel, 64, 64, 4, 3, tiles, folded=False)
        yield Variant("padded", kernel, 64, 64, 4, 3, tiles, registers=128, polynomials=1)
        yield Variant("padded", kernel, 64, 64, 4, 3, tiles, registers=128, polynomials=2)
    yield Variant("padded", "forward", 64, 64, 4, 3)
    yield Variant("padded", "queries", 64, 64, 4, 3)
    for shape in ("128x64x8x3", "128x64x4x3", "64x128x4x3"):
        for kernel in PRODUCTS:
            yield Variant("padded", kernel, *map(int, shape.split("x")))


def line(m: Machine) -> str:
    cells = [m.registers, m.stack, m.loop_spills, m.shared_bytes, m.ctas, m.warps]
    cells += [m.instructions, m.exponentials, m.matrix, m.fallback_instructions or "", *m.floor.values()]
    widths = (9, 5, 9, 6, 4, 5, 10, 9, 11, 6, 11, 6)
    text = " ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{m.variant:44} {text} {'' if m.wgmma or m.capability < 90 else 'no wgmma'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", default=[90])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/kernels.json")
    args = parser.parse_args()
    import triton

    rows = []
    heads = "registers stack (in loop) shared CTAs warps issue/pair MUFU/pair matrix/pair online floor: MUFU, matrix"
    print(f"{'triton ' + triton.__version__:44} {heads}")
    for capability in args.capability:
        for variant in variants():
            try:
                found = measure(variant, capability)
            except Exception as error:
                print(f"{variant.name:44} {type(error).__name__}: {str(error)[:120]}")
                continue
            rows.append(asdict(found))
            print(line(found), flush=True)
    if args.save:
        head = {"benchmark": "kernels", "triton": triton.__version__, "rows": rows}
        (HERE / "results" / "kernels.json").write_text(json.dumps(head, indent=1) + "\n")


if __name__ == "__main__":
    main()
