"""Benchmark of short sequences: one dense attention against the same computation branch by branch.

    python benchmarks/short.py [--save] [--rounds 15]

Forward and backward in one thread, float32, heads of 24, the paper's segments; in turn, the minimum of the rounds.
`speed`: branches / dense. Lengths: of a local and a global crop of `dino-tiny`, of canvases of 256, 320, 448 and
512 px.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from longvit.attention import dilated_attention_packed, short
from longvit.model.longvit import DILATED_RATIOS, segment_schedule
from side_by_side import report

CASES = [(96, 9, 8), (32, 36, 8), (16, 64, 8), (8, 100, 8), (4, 196, 8), (4, 196, 16), (4, 256, 16)]


def row(sequences: int, tokens: int, heads: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sequences, tokens, 3, heads, 24, generator=generator).requires_grad_()
    grad_out = torch.randn(sequences, tokens, heads, 24, generator=generator)

    def step(backend: str) -> None:
        out = dilated_attention_packed(
            qkv, segment_lengths=segment_schedule(tokens), dilated_ratios=DILATED_RATIOS, backend=backend
        )
        torch.autograd.grad(out, qkv, grad_out)

    steps: dict[str, Callable[[], None]] = {"dense": lambda: step("auto"), "branches": lambda: step("cpu_flash")}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            if i:
                times[name].append(time.perf_counter() - start)
    dense, branches = min(times["dense"]), min(times["branches"])
    return {
        "sequences": sequences,
        "tokens": tokens,
        "heads": heads,
        "dense_ms": round(1e3 * dense, 2),
        "branches_ms": round(1e3 * branches, 2),
        "speed": round(branches / dense, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    short._CPU_TOKENS = 10**9  # also where branches are the default
    report("short", [row(*case, args.rounds) for case in CASES], args.save)


if __name__ == "__main__":
    main()
