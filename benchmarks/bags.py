"""Benchmark of the systems of `longvit.baselines` on a bag of 100,000 tiles of 384 features: time, memory of a step.

    python benchmarks/bags.py [--save] [--tiles 50000 100000] [--systems clam_sb transmil …] [--rounds 3]

Each measurement runs in a separate process: a bag of random features on a square grid, then forward (train mode) and
backward of the cross-entropy.

- `prepare_seconds`: preparation, once per bag (phenotypes, graph)
- `seconds`: median step; `cpu_seconds`: the same in CPU time
- `peak_mib`: VmHWM above the memory of libraries, system and bag (after a step of a bag of 300 tiles)
- `growth_of_…`: ratio to a bag half as large; 2 is linear

Two systems have superlinear time. GCN-MIL's exact neighbours in feature space take quadratic time to prepare, in chunks
of memory. LongNet's longest segments are as long as the bag (1 / 256 of all pairs). SNN has no tiles.
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
ENOUGH_S = 40.0  # no further round after this time
SIGNATURES = (94, 334, 521, 468, 1496, 479)  # number of genes of MCAT's six signatures in its tables
SETTINGS: dict[str, list[dict[str, Any]]] = {"gcn_mil": [{"graph": "features"}, {"graph": "coordinates"}]}


def measure_step(name: str, tiles: int, rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Measures one system in this process."""
    import torch
    from torch.nn import functional

    from longvit.baselines.bag import Bag
    from longvit.baselines.system import create_system

    torch.manual_seed(0)
    omics = SIGNATURES if name == "mcat" else None
    system = create_system(name, in_dim=WIDTH, outputs=2, omics=omics, **settings).train()

    def bag(n: int) -> Bag:
        place, side = torch.arange(n), math.isqrt(n - 1) + 1
        coords = torch.stack([place % side, place // side], 1) * 256
        return Bag(torch.randn(n, WIDTH), coords, tuple(torch.randn(g) for g in SIGNATURES) if omics else None)

    def step(bag: Bag) -> None:
        prediction = system(bag, 1)
        loss = functional.cross_entropy(prediction.logits[None], torch.ones(1, dtype=torch.long))
        prediction.total(loss).backward()
        system.zero_grad()

    small, large = bag(300), bag(tiles)
    system.fit([small])
    step(system.prepare(small))
    start = time.perf_counter()
    large = system.prepare(large)
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
        "parameters": sum(p.numel() for p in system.parameters()),
        "prepare_seconds": round(prepared, 3),
        "rounds": len(wall),
        "seconds": round(statistics.median(wall), 4),
        "cpu_seconds": round(statistics.median(cpu), 4),
        "peak_mib": round(memory_mib("VmHWM") - before),
    }


def rows(names: list[str], sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    results = []
    for name in names:
        for settings in SETTINGS.get(name, [{}]):
            by_size: dict[int, dict[str, Any]] = {}
            for tiles in sizes:
                command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--tiles", str(tiles)]
                result = measure([*command, "--rounds", str(rounds), "--settings", json.dumps(settings)])
                by_size[tiles] = {"system": name, **settings, "tiles": tiles, **result}
                if tiles // 2 in by_size:
                    half = by_size[tiles // 2]
                    for what in ("seconds", "peak_mib"):
                        growth = result[what] / half[what] if half[what] else None
                        by_size[tiles][f"growth_of_{what}"] = growth and round(growth, 2)
                print(json.dumps(by_size[tiles]), file=sys.stderr, flush=True)
            results += by_size.values()
    return results


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
        print(json.dumps(measure_step(args.one, args.tiles[0], args.rounds, args.settings)))
        return
    report("bags", rows(args.systems, args.tiles, args.rounds), args.save)


if __name__ == "__main__":
    main()
