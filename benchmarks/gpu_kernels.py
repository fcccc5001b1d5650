"""Benchmark of the attention kernels on one NVIDIA card in at most nine minutes: correctness, speed and ceilings.

    python benchmarks/gpu_kernels.py [--minutes 9] [--parts ceilings check time models]
    python benchmarks/gpu_kernels.py --cpu-smoke        all of it in Triton's interpreter at toy size, no card needed

Parts run in separate processes, the most important first. A row is written to benchmarks/results/gpu_kernels.json
at once. Kernels that give wrong numbers are not timed. Old and new kernels run in turn in one process.
Goals on an H200 at 1,048,576 patches, LongViT-S, bfloat16: forward ≤ 1.0 s, training step ≤ 4.0 s, peak ≤ 24 GB.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from gpu import rows_of
from side_by_side import HERE, machine

GOALS = {"forward_s": 1.0, "training_s": 4.0, "training_peak_gb": 24.0}
PARTS = {  # in order of importance: time limit of each, seconds
    "ceilings": 30,
    "compile": 60,
    "check": 75,
    "time": 90,
    "models": 130,
    "knockouts": 60,
    "branches": 45,
    "fused": 60,
    "graphs": 45,
    "profile": 45,
    "counters": 60,
    "libraries": 25,
}


class Results:
    """Rows so far, on the disk after each."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.machine: dict[str, Any] = machine()

    def add(self, part: str, row: dict[str, Any]) -> None:
        self.rows.append({"part": part} | row)
        print(json.dumps(self.rows[-1]), flush=True)
        if row.get("device"):
            self.machine |= {k: v for k, v in row.items() if k in ("device", "capability", "torch", "triton", "driver")}
        if self.path is not None:
            self.path.parent.mkdir(exist_ok=True, parents=True)
            new = self.path.with_suffix(".new")
            new.write_text(self.text())
            new.replace(self.path)

    def text(self) -> str:
        head = {"benchmark": "gpu_kernels", "machine": self.machine, "goals": GOALS, "reached": self.reached()}
        rows = ",\n  ".join(json.dumps(row) for row in self.rows)
        return f'{json.dumps(head)[:-1]}, "rows": [\n  {rows}\n]}}\n'

    def reached(self) -> dict[str, Any]:
        """The best at 1,048,576 patches; the step's seconds and its peak are those of one contender."""
        found: dict[str, Any] = {}
        for row in self.rows:
            if row["part"] != "models" or row.get("patches") != 1 << 20:
                continue
            fine = {name: r for name, r in row.get("results", {}).items() if "seconds" in r}
            if not fine:
                continue
            name = min(fine, key=lambda n: fine[n]["seconds"])
            found[f"{row['what']}_s"], found[f"{row['what']}_by"] = fine[name]["seconds"], name
            if row["what"] == "training":
                found["training_peak_gb"] = round(fine[name].get("peak_gib", 0) * 1.073742, 2)
        return found

    def right(self) -> list[str]:
        """Names of variants that `check` found right."""
        return [r["variant"] for r in self.rows if r["part"] == "check" and r.get("right")]

    def fastest(self) -> dict[str, str]:
        """kernel → name of its fastest variant."""
        return {r["kernel"]: r["fastest"] for r in self.rows if r["part"] == "time" and r.get("fastest")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="only these, in their order")
    parser.add_argument("--variants", nargs="+", help="time only these; default: all that `check` finds right")
    parser.add_argument("--out", type=Path, help="result file; default benchmarks/results/gpu_kernels.json")
    parser.add_argument("--cpu-smoke", action="store_true", help="toy sizes in Triton's interpreter; writes no result")
    args = parser.parse_args()
    results = Results(args.out or (None if args.cpu_smoke else HERE / "results" / "gpu_kernels.json"))
    end = time.monotonic() + args.minutes * 60
    for part in [p for p in PARTS if p in args.parts]:
        seconds = 3600.0 if args.cpu_smoke else min(PARTS[part], end - time.monotonic() - 5)
        if seconds < 10:
            results.add(part, {"skipped": "no time left"})
            continue
        command = [sys.executable, str(HERE / "gpu_kernel_parts.py"), part, "--seconds", f"{seconds:.0f}"]
        command += ["--cpu-smoke"] if args.cpu_smoke else []
        if part in ("time", "compile"):
            command += ["--variants", *(args.variants or results.right())] if part == "time" else []
        command += ["--fastest", json.dumps(results.fastest())]
        for row in rows_of(command, seconds + 15):
            results.add(part, row)
            if part == "ceilings" and "error" in row:
                raise SystemExit(f"gpu_kernels.py: {row['error']}")
    for name, value in results.reached().items():
        print(f"{name}: {value}" + (f" (goal {GOALS[name]})" if name in GOALS else ""), file=sys.stderr)


if __name__ == "__main__":
    main()
