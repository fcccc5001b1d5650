"""Measurement of commands in turn (A B A B …), so that drift of the machine affects all; medians and ratios.

The authors' published code is reference material beside the project (../shared/peers). Where it is absent, a benchmark
reports ours only and states so.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = HERE.parents[1] / "shared" / "peers" / "peer.py"


def worker(code: str, what: str, *flags: str) -> list[str]:
    """Command of one measurement."""
    return [sys.executable, str(HERE / "worker.py"), code, what, *flags]


def measure(command: list[str]) -> dict[str, Any]:
    """Runs a command and reads the JSON line it prints last."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def alternate(commands: dict[str, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by name of the commands, `rounds` times in turn: seconds, peak MiB, MiB above the inputs."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(measure(command))
    return {
        name: {
            "seconds": statistics.median(s for r in results for s in r["seconds"]),
            "peak_mib": statistics.median(r["peak_mib"] for r in results),
            "above_inputs_mib": statistics.median(r["above_inputs_mib"] for r in results),
        }
        for name, results in runs.items()
    }


def has_published() -> bool:
    """True where the authors' code is present."""
    return PEERS.is_file()


def machine() -> dict[str, Any]:
    """Description of the machine, for result files."""
    import torch

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "date": date.today().isoformat(),
        "processor": f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report_text(name: str, rows: list[dict[str, Any]]) -> str:
    """Text of a result file: JSON, one row per line."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return f'{{"benchmark": "{name}", "machine": {json.dumps(machine())}, "rows": [\n  {lines}\n]}}\n'


def report(name: str, rows: list[dict[str, Any]], save: bool) -> None:
    """Prints the result as JSON, one row per line; with `save`, also writes it to benchmarks/results/."""
    text = report_text(name, rows)
    print(text, end="")
    if save:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"{name}.json").write_text(text)
