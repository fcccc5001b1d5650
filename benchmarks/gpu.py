"""Benchmark of LongViT on one NVIDIA card: attention, model and training step at the paper's sizes, beside the limits.

    python benchmarks/gpu.py [--minutes 9] [--parts check forward training] [--peer ../shared/peers/peer.py]
    python benchmarks/gpu.py --cpu-smoke        the same code at tiny sizes, no card needed

Every part runs in a separate process, the most important first; a crash or hang loses only its own rows. Rows are
written at once to benchmarks/results/gpu.json. `of_floor`: fraction of the time that is the lower bound of the card.
The bound is the larger of exponentials (one per query-key pair and direction, 16 per multiprocessor and clock) and
matrix products. The published code is reference material beside the project; where it is absent a row states so.
Goals on an H200 at 1,048,576 patches (32,768²): forward ≤ 1.5 s, training step ≤ 6 s, peak ≤ 24 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from side_by_side import HERE, PEERS, machine

GOALS = {"forward_s": 1.5, "training_s": 6.0, "training_peak_gb": 24.0}
PARTS = {  # in order of importance: time limit of each, seconds
    "device": 30,
    "check": 60,
    "tune": 70,
    "forward": 80,
    "training": 140,
    "attention": 100,
    "check_model": 70,
    "published": 90,
    "graphs": 70,
}


class Results:
    """Rows of the result file, written after each row."""

    def __init__(self, path: Path | None, earlier: Path | None = None) -> None:
        self.path = path
        stored = json.loads(earlier.read_text()) if earlier else {"rows": [], "machine": machine()}
        self.rows: list[dict[str, Any]] = [r for r in stored["rows"] if "skipped" not in r]
        self.machine: dict[str, Any] = stored["machine"]

    def add(self, part: str, row: dict[str, Any]) -> None:
        self.rows.append({"part": part} | row)
        print(json.dumps(self.rows[-1]), flush=True)
        if self.path is not None and len(self.rows) > 1:  # the first row states whether there is a card
            self.path.parent.mkdir(exist_ok=True)
            new = self.path.with_suffix(".new")
            new.write_text(self.text())
            new.replace(self.path)

    def text(self) -> str:
        head = {"benchmark": "gpu", "machine": self.machine, "goals": GOALS, "reached": self.reached()}
        rows = ",\n  ".join(json.dumps(row) for row in self.rows)
        return f'{json.dumps(head)[:-1]}, "rows": [\n  {rows}\n]}}\n'

    def reached(self) -> dict[str, Any]:
        """Best results of ours at 32,768²."""
        best: dict[str, Any] = {}
        for row in self.rows:
            if row.get("image_px") != 32768 or row["part"] not in ("forward", "training"):
                continue
            fine = [r for r in row.get("results", {}).values() if "seconds" in r]
            if fine:
                best[f"{row['part']}_s"] = min(r["seconds"] for r in fine)
                if row["part"] == "training":
                    best["training_peak_gb"] = round(min(r["peak_gib"] for r in fine if "peak_gib" in r) * 1.073742, 2)
        return best

    def agreeing(self) -> list[str]:
        """CUDA back ends that gave correct numbers; timings of others are meaningless."""
        rows = [r for r in self.rows if r["part"] == "check" and r.get("dtype") == "bfloat16"]
        return list(dict.fromkeys(r["backend"] for r in rows if r.get("agrees")))

    def tiles(self) -> dict[str, list[int]]:
        return {r["kernel"]: r["tile"] for r in self.rows if r["part"] == "tune" and r.get("tile")}


def rows_of(command: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """JSON rows of a command as it prints them; a crash or time-out is the last row."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=HERE)
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        assert child.stdout
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        code = child.wait()
        timer.cancel()
        if late.is_set():
            yield {"error": f"stopped after {seconds:.0f} s"}
        elif code:
            errors.seek(0)
            yield {"error": (errors.read().strip().splitlines() or [f"exit code {code}"])[-1][:300]}


def run(args: argparse.Namespace, results: Results) -> None:
    end = time.monotonic() + args.minutes * 60
    shared = ["--peer", str(Path(args.peer).resolve()), *(["--cpu-smoke"] if args.cpu_smoke else [])]
    shared += ["--images", *map(str, args.images)] if args.images else []

    def part(*names: str, more: Sequence[str] = ()) -> None:
        if not (names := tuple(name for name in names if name in args.parts)):
            return
        wanted = sum(PARTS[name] for name in names)
        seconds = wanted if args.cpu_smoke else min(wanted, end - time.monotonic() - 5)
        if seconds < 10:
            results.add(names[0], {"skipped": "no time left"})
            return
        command = [sys.executable, str(HERE / "gpu_parts.py"), *names, "--seconds", f"{seconds:.0f}", *shared, *more]
        for row in rows_of(command, seconds + 10):
            if row.get("part") == "device":
                results.machine |= {k: v for k, v in row.items() if k != "part"}
            results.add(names[0], row)

    part("device")
    if results.rows and "error" in results.rows[-1]:
        raise SystemExit(f"gpu.py: {results.rows[-1]['error']}")
    for backend in ["cpu_flash"] if args.cpu_smoke else ["cuda_flash", "cuda_efficient", "triton"]:
        part("check", more=["--backends", backend])
    backends = [name for name in results.agreeing() if name in (args.backends or [name])]
    if "triton" in backends:
        part("tune", more=["--backends", "triton"])
    more = ["--backends", *(backends or ["plain"])]
    more += ["--tiles", json.dumps(tiles)] if (tiles := results.tiles()) else []
    timed = ("forward", "training", "attention", "check_model", "published", "graphs")
    for names in [timed] if args.cpu_smoke else [(name,) for name in timed]:  # smoke: torch is loaded once
        part(*names, more=more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="only these, in their order")
    parser.add_argument("--backends", nargs="+", help="only these of the attention's, among those that agree")
    parser.add_argument("--images", nargs="+", type=int, help="sides in px; default: 32768 4096 8192 16384")
    parser.add_argument("--add-to", type=Path, metavar="FILE", help="add to these results of the same card")
    parser.add_argument("--peer", default=str(PEERS), help="the published code's runner")
    parser.add_argument(
        "--out", type=Path, help="result file; default benchmarks/results/gpu.json, none with --cpu-smoke"
    )
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny sizes on the CPU, to test this script")
    args = parser.parse_args()
    default = None if args.cpu_smoke else HERE / "results" / "gpu.json"
    results = Results(args.out or default, args.add_to)
    run(args, results)
    for name, value in results.reached().items():
        print(f"{name}: {value} (goal {GOALS[name]})", file=sys.stderr)


if __name__ == "__main__":
    main()
