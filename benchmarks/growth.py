"""Benchmark of the growth of time and memory with the number of patches at fixed segments; linear is expected.

    python benchmarks/growth.py [--save] [--rounds 3]

LongViT-S, forward, float32, segments of the 1,024² row (64 … 1,024) for every length from 1,024 to 65,536 patches.
`per_patch` is the time of one patch relative to the shortest image.
"""

from __future__ import annotations

import argparse

from side_by_side import alternate, report, worker

SEGMENTS = ("64", "128", "256", "512", "1024")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    commands = {
        str(image): worker("ours", "model", "--image", str(image), "--segments", *SEGMENTS, "--runs", "3")
        for image in args.image
    }
    results = alternate(commands, args.rounds)
    shortest = results[str(args.image[0])]["seconds"] / args.image[0] ** 2
    rows = [
        {
            "patches": (image // 32) ** 2,
            "per_patch": round(results[str(image)]["seconds"] / image**2 / shortest, 3),
            "mib_above_inputs": round(results[str(image)]["above_inputs_mib"]),
        }
        for image in args.image
    ]
    report("growth", rows, args.save)


if __name__ == "__main__":
    main()
