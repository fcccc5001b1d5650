"""A bag of 100,000 tiles, 384 features each, through every system of `longvit.baselines`: seconds and memory of a step.

    python benchmarks/bags.py [--save] [--tiles 50000 100000] [--systems clam_sb transmil …] [--rounds 3]

Each measurement in a process of its own: a bag of random features on a square grid, then forward (train mode) and
backward of the cross-entropy. `prepare_seconds` is what is done once per bag (phenotypes, graph), `seconds` the median
step, `cpu_seconds` the processor's, `peak_mib` VmHWM above what is resident with libraries, system and bag (after a
step of a bag of 300 tiles): activations, their gradients and those of the parameters. `growth_of_…`: over a bag half
as large; 2 is linear. In time only two grow faster by what they are: the exact neighbours of GCN-MIL in feature space,
in their preparation (quadratic; its memory is not: in chunks), and LongNet, whose longest segments are as long as the
bag (a share of 1 / 256 of all pairs). SNN has no tiles.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import measure, report
from worker import memory_mib, reset_peak

WIDTH = 384
ENOUGH_S = 40.0  # no further round behind so long
SIGNATURES = (94, 334, 521, 468, 1496, 479)  # the six of MCAT, as many genes as its tables hold
SETTINGS: dict[str, list[dict[str, Any]]] = {"gcn_mil": [{"graph": "features"}, {"graph": "coordinates"}]}


def one(name: str, tiles: int, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A measurement, in this process."""
    import torch
    from torch.nn import functional

    from longvit.baselines.bag import Bag
    from longvit.baselines.system import create_system

    torch.manual_seed(0)
    omics = SIGNATURES if name == "mcat" else None
    made = create_system(name, in_dim=WIDTH, outputs=2, omics=omics, **settings).train()

    def bag(n: int) -> Bag:
        place, side = torch.arange(n), math.isqrt(n - 1) + 1
        coords = torch.stack([place % side, place // side], 1) * 256
        return Bag(torch.randn(n, WIDTH), coords, tuple(torch.randn(g) for g in SIGNATURES) if omics else None)

    def step(of: Bag) -> None:
        found = made(of, 1)
        found.total(functional.cross_entropy(found.logits[None], torch.ones(1, dtype=torch.long))).backward()
        made.zero_grad()

    small, large = bag(300), bag(tiles)
    made.fit([small])
    step(made.prepare(small))
    start = time.perf_counter()
    large = made.prepare(large)
    prepared = time.perf_counter() - start
    before = memory_mib("VmRSS")
    reset_peak()
    wall, cpu = [], []
    while len(wall) < rounds and sum(wall) < ENOUGH_S:
        begun = time.perf_counter(), time.process_time()
        step(large)
        wall.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    return {
        "parameters": sum(p.numel() for p in made.parameters()),
        "prepare_seconds": round(prepared, 3),
        "rounds": len(wall),
        "seconds": round(statistics.median(wall), 4),
        "cpu_seconds": round(statistics.median(cpu), 4),
        "peak_mib": round(memory_mib("VmHWM") - before),
    }


def rows(names: list[str], sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    found = []
    for name in names:
        for settings in SETTINGS.get(name, [{}]):
            of_size: dict[int, dict[str, Any]] = {}
            for tiles in sizes:
                command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--tiles", str(tiles)]
                result = measure([*command, "--rounds", str(rounds), "--settings", json.dumps(settings)])
                of_size[tiles] = {"system": name, **settings, "tiles": tiles, **result}
                if tiles // 2 in of_size:
                    half = of_size[tiles // 2]
                    for what in ("seconds", "peak_mib"):
                        growth = result[what] / half[what] if half[what] else None
                        of_size[tiles][f"growth_of_{what}"] = growth and round(growth, 2)
                print(json.dumps(of_size[tiles]), file=sys.stderr, flush=True)
            found += of_size.values()
    return found


def main() -> None:
    from longvit.baselines.catalogue import SYSTEMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[50_000, 100_000])
    parser.add_argument("--systems", nargs="+", default=[name for name in SYSTEMS if name != "snn"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.tiles[0], args.rounds, args.settings)))
        return
    report("bags", rows(args.systems, args.tiles, args.rounds), args.save)


if __name__ == "__main__":
    main()
