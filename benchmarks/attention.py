"""Benchmark of dilated attention against the authors' published code and against bare fused calls.

    python benchmarks/attention.py [--save] [--rounds 3] [--tokens 16384]

float32, 16 heads of 24, the paper's segments. Ratios: `speed` is published / ours, `over_bare` ours / bare fused calls
on contiguous data, `memory` ours / published, as peak above the inputs.
"""

from __future__ import annotations

import argparse

from side_by_side import alternate, has_published, report, worker


def row(tokens: int, backward: bool, rounds: int) -> dict[str, object]:
    flags = ["--tokens", str(tokens), *(["--backward"] if backward else [])]
    names = ["ours", "bare", *(["published"] if has_published() else [])]
    results = alternate({name: worker(name, "attention", *flags) for name in names}, rounds)
    ours = results["ours"]
    result: dict[str, object] = {
        "what": "forward + backward" if backward else "forward",
        "tokens": tokens,
        "over_bare": round(ours["seconds"] / results["bare"]["seconds"], 3),
        "ours_mib_above_inputs": round(ours["above_inputs_mib"]),
    }
    if "published" in results:
        published = results["published"]
        result["speed"] = round(published["seconds"] / ours["seconds"], 3)
        result["memory"] = round(ours["above_inputs_mib"] / published["above_inputs_mib"], 3)
        result["published_mib_above_inputs"] = round(published["above_inputs_mib"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    report("attention", [row(args.tokens, backward, args.rounds) for backward in (False, True)], args.save)


if __name__ == "__main__":
    main()
